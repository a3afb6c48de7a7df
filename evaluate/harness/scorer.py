"""Our backend of lm-eval: its requests scored in float32, several times sooner than by its `hf` backend.

It differs in how, not in what. Tokens come from batched calls of the tokenizer; what prompts share goes through the
model once; the options of a question are one row; batches are filled to a budget of tokens; only scored positions
reach the head, in float32 whatever the model's dtype. Requests that end up as one token sequence share a forward pass
while each keeps its own split (lm-eval's shared gather mixes them up when the splits differ).
"""

import functools
import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from lm_eval.models.huggingface import HFLM

from compress.base.errors import InputError, reason_of
from compress.base.journal import Batch, Journal
from compress.base.progress import say
from compress.evaluate.chat import Message, takes_system
from compress.evaluate.harness.generation import Generator
from compress.evaluate.harness.requests import Asked, distinct, encode_pairs, ids_of
from compress.inference.halving import Halving
from compress.inference.likelihood import log_probabilities
from compress.inference.planning import Job, plan
from compress.inference.prefix_cache import TreeModel
from compress.inference.readout import Checkpoint
from compress.inference.sharing import why_plain
from compress.inference.tree import Ids, build_tree

Request = tuple[Any, Sequence[int] | Ids, Sequence[int] | Ids]
"""lm-eval's token request: ((context, continuation) as text or None, context ids, continuation ids)."""
_CPU_TOKENS = 1024  # a CPU is busy with less, and more leaves its caches
Score = tuple[float, bool]
"""(log p of the continuation in nats, whether greedy decoding gives it)."""


class Scorer(HFLM):  # type: ignore[misc]
    """lm-eval's `LM` interface over a `Checkpoint`; batches go through a journal, which shares them out and keeps them.

    A start-up trial decides whether the model can share computations (see `compress.inference.sharing`); where not,
    every sequence is computed by itself. Each batch of sampled answers starts from `seed` and its number: where a task
    samples, neither an interruption nor the number of processes shows.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        batch_tokens: int,
        journal: Journal | None = None,
        *,
        seed: int = 0,
        tell: bool = True,
    ) -> None:
        super().__init__(
            pretrained=checkpoint.model,
            tokenizer=checkpoint.tokenizer,
            backend="causal",
            batch_size=1,
            softmax_dtype="float32",
            max_length=checkpoint.context,
        )
        self._checkpoint = checkpoint
        self._batch_tokens = min(batch_tokens, _CPU_TOKENS) if checkpoint.device.type == "cpu" else batch_tokens
        self._journal = journal or Journal()
        self._trees = TreeModel(checkpoint)
        self._halving = Halving(self._trees.forget)
        reason, error = why_plain(checkpoint)
        self._shares = reason is None
        self._without_system = 0
        self._generator = Generator(
            self,
            checkpoint,
            self._trees,
            self._halving,
            shares=self._shares,
            batch_tokens=batch_tokens,
            seed=seed,
        )
        if not tell:
            return
        if reason is None:
            say(f"What prompts share is computed once (a trial differed from the plain forward pass by {error:.0e}).")
        else:
            say(f"Every prompt is computed by itself: {reason}.")

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[Score]:
        """(log p(continuation | context) in nats, whether greedy decoding gives it) for each request."""
        pairs = [request.args for request in requests]
        tokens = [
            (pair, *ids) for pair, ids in zip(pairs, encode_pairs(self, pairs, self._checkpoint.prefix), strict=True)
        ]
        for request, (_, _, continuation) in zip(requests, tokens, strict=True):
            self._require_room(len(continuation), request.task_name)
        return self._loglikelihood_tokens(tokens, disable_tqdm=disable_tqdm)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """log p(text) in nats of each whole text."""
        self.batch_size_per_gpu = sys.maxsize  # all windows in one call: the batches are made there
        scores: list[float] = super().loglikelihood_rolling(requests, disable_tqdm=True)
        return scores

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[Score]:
        """Scores in the order of `requests`; `override_bs` is lm-eval's, and of no use here.

        Requests share sequences, sequences are the rows of jobs, and a job is one batch of the journal, whose scores
        come in the order of its rows. `i` is a request's place in `requests` throughout.
        """
        targets = [np.asarray(continuation, np.int64) for _, _, continuation in requests]
        asked = self._asked(requests)
        # The first position that is read off a sequence is that of its longest continuation.
        first = [len(each.ids) - max(len(targets[i]) for i in each.requests) for each in asked]
        jobs = plan([each.ids for each in asked], first, self._batch_tokens, share=self._shares)
        rows = [job.in_rows(asked) for job in jobs]
        answered = [[i for row in own for each in row for i in each.requests] for own in rows]
        found = self._journal.measure(
            "Scoring answers",
            [
                Batch([job.content(ids_of(own)), [targets[i].tolist() for i in to]], len(to))
                for job, own, to in zip(jobs, rows, answered, strict=True)
            ],
            lambda number: self._score(jobs[number], rows[number], targets),
            visible=not disable_tqdm,
        )
        self._trees.forget()
        scores: list[Score] = [(0.0, True)] * len(requests)  # what an empty continuation has
        for own, results in zip(answered, found, strict=True):
            for i, (log_p, greedy) in zip(own, results, strict=True):
                scores[i] = (log_p, greedy)
        return scores

    def _asked(self, requests: Sequence[Request]) -> list[Asked]:
        """The distinct sequences to run: all tokens but the last, cut to the model's length as lm-eval cuts them."""
        limit, cut = self.max_length, 0
        sequences: dict[int, Ids] = {}
        for i, (_, context, continuation) in enumerate(requests):
            if not len(continuation):
                continue
            whole = np.concatenate([np.asarray(context, np.int64), np.asarray(continuation, np.int64)])
            self._checkpoint.check_ids(whole)
            cut += len(whole) > limit + 1
            sequences[i] = whole[-(limit + 1) : -1]
        if cut:
            say(f"{cut} of {len(requests)} prompts are longer than {limit} tokens; their start is cut off.")
        return distinct(sequences)

    def _score(self, job: Job, rows: Sequence[Sequence[Asked]], targets: Sequence[Ids]) -> list[Score]:
        """Scores of a job's requests in the order of its rows; of a few rows at a time where memory runs out."""

        def padded_tokens(rows: Sequence[Sequence[Asked]]) -> int:
            return len(rows) * max(len(each.ids) for row in rows for each in row)

        return self._halving.run(rows, lambda part: self._score_rows(job, part, targets), padded_tokens)

    @torch.inference_mode()
    def _score_rows(self, job: Job, rows: Sequence[Sequence[Asked]], targets: Sequence[Ids]) -> list[Score]:
        """Score `targets[i]` as the end of its sequence, for each request i of `rows`, in their order."""
        # One forward pass: a tree a row, states [rows, nodes of the largest tree, D].
        trees = [build_tree(row, job.base) for row in ids_of(rows)]
        states = self._trees.states(trees, job)

        # A path is a sequence's nodes within its tree. A sequence lacks its last token, so the last n nodes of the path
        # are those that each of the n tokens of a continuation comes after. Counted through the whole batch, node k of
        # row r is node r * width + k.
        width = states.shape[1]
        wanted: list[Ids] = []
        nodes: list[Ids] = []
        for number, (tree, row) in enumerate(zip(trees, rows, strict=True)):
            for path, each in zip(tree.paths, row, strict=True):
                for target in (targets[i] for i in each.requests):
                    wanted.append(target)
                    nodes.append(number * width + path[len(path) - len(target) :])

        # Options that begin alike read the same nodes: the head sees each once, and a token finds it by its slot.
        read, slots = np.unique(np.concatenate(nodes), return_inverse=True)
        chosen = states.flatten(0, 1)[torch.from_numpy(read).to(states.device)]
        tokens = torch.from_numpy(np.concatenate(wanted))
        log_p, greedy = log_probabilities(self._checkpoint, chosen, torch.from_numpy(slots), tokens)

        # Back from tokens to requests.
        sizes = [len(target) for target in wanted]
        return [
            (math.fsum(values.tolist()), bool(flags.all()))
            for values, flags in zip(torch.split(log_p, sizes), torch.split(greedy, sizes), strict=True)
        ]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Greedy continuations (or as a task's generation settings say)."""
        return self._generator.answers(requests, self._journal, visible=not disable_tqdm)

    def apply_chat_template(self, chat_history: list[Message], add_generation_prompt: bool = True) -> str:
        """A prompt as lm-eval writes it in the tokenizer's template; without its system text where the template has no
        place for one: see `tell_of_chats`.

        Raises:
            InputError: the template refuses the messages.
        """
        try:
            prompt: str = super().apply_chat_template(chat_history, add_generation_prompt)
        except Exception as error:  # whatever a template does
            roles = ", ".join(message["role"] for message in chat_history)
            raise InputError(
                f"The chat template of {self._checkpoint.name} refuses a prompt of the messages {roles} "
                f"({reason_of(error)}): write solved examples into one message (--no-fewshot-as-multiturn), leave the "
                "task out, or score prompts as plain text (without eval.chat_template)."
            ) from error
        self._without_system += chat_history[0]["role"] == "system" and not self._takes_system
        return prompt

    @functools.cached_property
    def _takes_system(self) -> bool:
        return takes_system(self.tokenizer)

    def tell_of_chats(self) -> None:
        """Say how many prompts lost what their task says first."""
        if self._without_system:
            say(
                f"The chat template has no place for a system text: {self._without_system} prompts are without the "
                "description of their task, as lm-eval writes them."
            )

    def _require_room(self, tokens: int, task: str) -> None:
        if tokens > self.max_length:
            raise InputError(
                f"The task {task} asks for an answer option of {tokens} tokens, and {self._checkpoint.name} reads at "
                f"most {self.max_length}: leave the task out, or choose a model with a longer context."
            )
