"""Our backend of lm-eval: its requests scored in float32, several times sooner than by its `hf` backend.

It differs in how, not in what. Tokens come from batched calls of the tokenizer; what prompts share goes through the
model once; the options of a question are one row; batches are filled to a budget of tokens; only scored positions
reach the head, in float32 whatever the model's dtype. Requests that end up as one token sequence share a forward pass
while each keeps its own split (lm-eval's shared gather mixes them up when the splits differ).
"""

import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from lm_eval.models.huggingface import HFLM

from compress.base.errors import InputError
from compress.base.journal import Batch, Journal
from compress.base.progress import say
from compress.evaluate.harness.generation import Generator
from compress.evaluate.harness.requests import encode_pairs
from compress.inference.halving import Halving
from compress.inference.likelihood import log_probabilities
from compress.inference.planning import Job, plan
from compress.inference.prefix_cache import TreeModel
from compress.inference.readout import Checkpoint
from compress.inference.sharing import why_plain
from compress.inference.tree import Ids, build_row

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
        self, checkpoint: Checkpoint, batch_tokens: int, journal: Journal | None = None, *, seed: int = 0
    ) -> None:
        super().__init__(
            pretrained=checkpoint.model,
            tokenizer=checkpoint.tokenizer,
            backend="causal",
            batch_size=1,
            softmax_dtype="float32",
        )
        self._checkpoint = checkpoint
        self._batch_tokens = min(batch_tokens, _CPU_TOKENS) if checkpoint.device.type == "cpu" else batch_tokens
        self._journal = journal or Journal()
        self._trees = TreeModel(checkpoint)
        self._halving = Halving(self._trees.forget)
        reason, error = why_plain(checkpoint)
        self._shares = reason is None
        self._generator = Generator(
            self,
            checkpoint,
            self._trees,
            self._halving,
            shares=self._shares,
            batch_tokens=batch_tokens,
            seed=seed,
        )
        if reason is None:
            say(f"What prompts share is computed once (a trial differed from the plain forward pass by {error:.0e}).")
        else:
            say(f"Every prompt is computed by itself: {reason}.")

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[Score]:
        """(log p(continuation | context) in nats, whether greedy decoding gives it) for each request."""
        pairs = [request.args for request in requests]
        tokens = [(pair, *ids) for pair, ids in zip(pairs, encode_pairs(self, pairs), strict=True)]
        return self._loglikelihood_tokens(tokens, disable_tqdm=disable_tqdm)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """log p(text) in nats of each whole text."""
        self.batch_size_per_gpu = sys.maxsize  # all windows in one call: the batches are made there
        scores: list[float] = super().loglikelihood_rolling(requests, disable_tqdm=True)
        return scores

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[Score]:
        """Scores in the order of `requests`; `override_bs` is lm-eval's, and of no use here."""
        scores: list[Score] = [(0.0, True)] * len(requests)  # what an empty continuation has
        sequences, members = self._sequences(requests)
        first = [min(len(ids) - len(requests[i][2]) for i in own) for ids, own in zip(sequences, members, strict=True)]
        jobs = plan(sequences, first, self._batch_tokens, share=self._shares)
        wanted = [[index for number in job.members for index in members[number]] for job in jobs]
        found = self._journal.measure(
            "Scoring answers",
            [
                Batch([job.content(sequences), [np.asarray(requests[i][2]).tolist() for i in indices]], len(indices))
                for job, indices in zip(jobs, wanted, strict=True)
            ],
            lambda number: self._score(jobs[number], sequences, members, requests),
            visible=not disable_tqdm,
        )
        self._trees.forget()
        for indices, results in zip(wanted, found, strict=True):
            for index, (log_p, greedy) in zip(indices, results, strict=True):
                scores[index] = (log_p, greedy)
        return scores

    def _sequences(self, requests: Sequence[Request]) -> tuple[list[Ids], list[list[int]]]:
        """The distinct sequences to run, cut to the model's length as lm-eval cuts them, and the requests of each."""
        limit, cut = self.max_length, 0
        found: dict[bytes, tuple[Ids, list[int]]] = {}
        for index, (_, context, continuation) in enumerate(requests):
            if not len(continuation):
                continue
            self._require_room(len(continuation))
            whole = np.concatenate([np.asarray(context, np.int64), np.asarray(continuation, np.int64)])
            cut += len(whole) > limit + 1
            ids = whole[-(limit + 1) : -1]
            found.setdefault(ids.tobytes(), (ids, []))[1].append(index)
        if cut:
            say(f"{cut} of {len(requests)} prompts are longer than {limit} tokens; their start is cut off.")
        return [ids for ids, _ in found.values()], [own for _, own in found.values()]

    def _score(
        self, job: Job, sequences: Sequence[Ids], members: Sequence[Sequence[int]], requests: Sequence[Request]
    ) -> list[Score]:
        """Scores of the job's requests, in the order of its rows."""

        def score(rows: Sequence[tuple[int, ...]]) -> list[Score]:
            targets = [[[requests[i][2] for i in members[number]] for number in row] for row in rows]
            return self._score_rows(job, [[sequences[number] for number in row] for row in rows], targets)

        def tokens(rows: Sequence[tuple[int, ...]]) -> int:
            return len(rows) * max(len(sequences[number]) for row in rows for number in row)

        return self._halving.run(job.rows, score, tokens)

    @torch.inference_mode()
    def _score_rows(
        self, job: Job, rows: Sequence[Sequence[Ids]], targets: Sequence[Sequence[Sequence[Any]]]
    ) -> list[Score]:
        """Score each of `targets[r][k]` as the end of sequence `rows[r][k]`; a scored position meets the head once."""
        trees = [build_row(sequences, job.base) for sequences in rows]
        states = self._trees.states(trees, job)
        ends = [
            (number * states.shape[1] + path[len(path) - len(target) :], np.asarray(target, np.int64))
            for number, (tree, per_sequence) in enumerate(zip(trees, targets, strict=True))
            for path, own in zip(tree.paths, per_sequence, strict=True)
            for target in own
        ]
        positions, slots = np.unique(np.concatenate([nodes for nodes, _ in ends]), return_inverse=True)
        chosen = states.flatten(0, 1)[torch.from_numpy(positions).to(states.device)]
        tokens = torch.from_numpy(np.concatenate([target for _, target in ends]))
        log_p, greedy = log_probabilities(self._checkpoint, chosen, torch.from_numpy(slots), tokens)
        sizes = [len(target) for _, target in ends]
        return [
            (math.fsum(values.tolist()), bool(flags.all()))
            for values, flags in zip(torch.split(log_p, sizes), torch.split(greedy, sizes), strict=True)
        ]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Greedy continuations (or as a task's generation settings say)."""
        return self._generator.answers(requests, self._journal, visible=not disable_tqdm)

    def _require_room(self, tokens: int) -> None:
        if tokens > self.max_length:
            raise InputError(
                f"A task asks for an answer option of {tokens} tokens, and {self._checkpoint.name} reads at most "
                f"{self.max_length}: leave the task out, or choose a model with a longer context."
            )
