"""lm-eval's generation requests: greedy answers by our decoding, all others by lm-eval's own generation."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text

from compress.base.errors import InputError
from compress.base.journal import Batch, Journal
from compress.evaluate.harness.requests import Asked, distinct, encode, ids_of
from compress.inference.decoding import Stops, decode, end_tokens
from compress.inference.halving import Halving
from compress.inference.planning import Job, decoding_cost, plan
from compress.inference.prefix_cache import TreeModel
from compress.inference.readout import Checkpoint
from compress.inference.tree import Ids

_STAGE = "Generating answers"
_OUR_SETTINGS = {"until", "max_gen_toks", "do_sample", "temperature", "top_p", "top_k"}
_NO_EFFECT_ON_GREEDY = {
    "_from_model_config", "bos_token_id", "cache_implementation", "decoder_start_token_id", "do_sample", "eos_token_id",
    "max_length", "max_new_tokens", "min_p", "output_attentions", "output_hidden_states", "pad_token_id", "temperature",
    "top_k", "top_p", "transformers_version", "typical_p", "use_cache",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Batch:
    """A job, the prompts in its rows, and where their answers end: at `until`, or after `limit` tokens."""

    job: Job
    rows: list[list[Asked]]
    until: tuple[str, ...]
    limit: int

    @property
    def prompts(self) -> list[Asked]:
        """All prompts, in the order of the rows."""
        return [each for row in self.rows for each in row]

    def to_measure(self) -> Batch:
        """What decides the answers, and how many requests they are for."""
        content = [self.job.content(ids_of(self.rows)), self.until, self.limit]
        return Batch(content, sum(len(each.requests) for each in self.prompts))


class Generator:
    """Answers to lm-eval's requests for an `HFLM` over a checkpoint, through a journal.

    Prompts of similar length are decoded together, those on one passage from one prefill of it. Where `shares` is
    false, a task samples, or the model's generation config changes what greedy decoding gives (a repetition penalty,
    say), lm-eval's own generation is used, each batch seeded with `seed` and its number.
    """

    def __init__(
        self,
        lm: Any,
        checkpoint: Checkpoint,
        trees: TreeModel,
        halving: Halving,
        *,
        shares: bool,
        batch_tokens: int,
        seed: int,
    ) -> None:
        self._lm = lm
        self._checkpoint = checkpoint
        self._trees = trees
        self._halving = halving
        self._batch_tokens = batch_tokens
        self._seed = seed
        config = checkpoint.model.generation_config
        self._greedy_is_plain = shares and set(config.to_diff_dict()) <= _NO_EFFECT_ON_GREEDY
        self._end_tokens = end_tokens(checkpoint.model, checkpoint.tokenizer)

    def answers(self, requests: Sequence[Any], journal: Journal, *, visible: bool) -> list[str]:
        """The text after each request's prompt, up to its first stop string.

        Raises:
            InputError: an answer leaves no room for a prompt, or does not fit the memory.
        """
        settings = [normalize_gen_kwargs(request.args[1], self._lm.max_gen_toks) for request in requests]
        for request, each in zip(requests, settings, strict=True):
            longest = int(each["max_gen_toks"])
            if longest + 1 > self._lm.max_length:
                raise InputError(
                    f"The task {request.task_name} asks for a prompt and its answer ({longest + 1} tokens or more), "
                    f"and {self._checkpoint.name} reads at most {self._lm.max_length}: leave the task out, or choose a "
                    "model with a longer context."
                )
        encoded = encode(self._lm, [request.args[0] for request in requests], prefix=self._checkpoint.prefix)
        for ids in encoded.values():
            self._checkpoint.check_ids(np.asarray(ids))
        prompts = [encoded[request.args[0]] for request in requests]
        ours = [i for i, each in enumerate(settings) if self._greedy_is_plain and _is_greedy(each)]
        texts = self._greedy(ours, prompts, settings, journal, visible)
        theirs = sorted(set(range(len(requests))) - set(ours))
        texts |= self._by_harness(theirs, prompts, requests, settings, journal, visible)
        return [texts[i] for i in range(len(requests))]

    def _greedy(
        self, chosen: Sequence[int], prompts: Sequence[Ids], settings: Sequence[Any], journal: Journal, visible: bool
    ) -> dict[int, str]:
        """Answers to the chosen requests; those with the same stop strings and limit are planned together."""
        kinds: dict[tuple[tuple[str, ...], int], list[int]] = {}
        for i in chosen:
            kinds.setdefault((tuple(settings[i]["until"]), int(settings[i]["max_gen_toks"])), []).append(i)
        batches = [batch for kind, indices in kinds.items() for batch in self._plan(*kind, indices, prompts)]
        measured = journal.measure(
            _STAGE,
            [batch.to_measure() for batch in batches],
            lambda number: self._decode(batches[number]),
            visible=visible and bool(batches),
        )
        self._trees.forget()
        return {
            i: text
            for batch, answers in zip(batches, measured, strict=True)
            for each, text in zip(batch.prompts, answers, strict=True)
            for i in each.requests
        }

    def _plan(
        self, until: tuple[str, ...], limit: int, indices: Sequence[int], prompts: Sequence[Ids]
    ) -> Iterator[_Batch]:
        """Batches of the distinct prompts, cut at their start to leave room for the answer."""
        given = {i: prompts[i] if len(prompts[i]) else np.array([self._lm.prefix_token_id]) for i in indices}
        asked = distinct({i: prompt[-(self._lm.max_length - limit) :] for i, prompt in given.items()})
        sequences, last = [each.ids for each in asked], [len(each.ids) - 1 for each in asked]
        for job in plan(sequences, last, self._batch_tokens, cost=decoding_cost(limit)):
            yield _Batch(job, job.in_rows(asked), until, limit)

    def _decode(self, batch: _Batch) -> list[str]:
        """The answer to each prompt."""
        lm = self._lm
        stops = Stops(lm.tokenizer, batch.until, self._end_tokens)
        end_of_text = lm.tok_decode([lm.eot_token_id], skip_special_tokens=False)
        strings = handle_stop_sequences(list(batch.until), eos=end_of_text)

        def texts(rows: Sequence[Sequence[Ids]]) -> list[str]:
            answers = decode(self._checkpoint, self._trees, batch.job, rows, batch.limit, stops)
            return [postprocess_generated_text(lm.tok_decode(answer), strings, None) for answer in answers]

        def tokens(rows: Sequence[Sequence[Ids]]) -> int:
            return sum(len(ids) + batch.limit for row in rows for ids in row)

        return self._halving.run(ids_of(batch.rows), texts, tokens)

    def _by_harness(
        self,
        chosen: Sequence[int],
        prompts: Sequence[Ids],
        requests: Sequence[Any],
        settings: Sequence[Any],
        journal: Journal,
        visible: bool,
    ) -> dict[int, str]:
        """lm-eval's answers to the chosen requests, in batches of the budget, longest prompts first."""
        left = sorted(chosen, key=lambda i: -len(prompts[i]))
        batches: list[list[int]] = []
        while left:
            room = len(prompts[left[0]]) + int(settings[left[0]]["max_gen_toks"])
            count = max(1, self._batch_tokens // room)
            batches.append(left[:count])
            left = left[count:]

        def generate(part: Sequence[int]) -> list[str]:
            self._lm.batch_size_per_gpu = len(part)
            texts: list[str] = HFLM.generate_until(self._lm, [requests[i] for i in part], disable_tqdm=True)
            return texts

        def tokens(part: Sequence[int]) -> int:
            return sum(len(prompts[i]) + int(settings[i]["max_gen_toks"]) for i in part)

        def answer(number: int) -> list[str]:
            torch.manual_seed(self._seed + number)
            return self._halving.run(batches[number], generate, tokens)

        measured = journal.measure(
            _STAGE,
            [Batch([requests[i].args for i in batch], len(batch)) for batch in batches],
            answer,
            visible=visible and bool(batches),
        )
        return {
            i: text
            for batch, texts in zip(batches, measured, strict=True)
            for i, text in zip(batch, texts, strict=True)
        }


def _is_greedy(settings: Any) -> bool:
    """Whether lm-eval's normalised settings ask for nothing but greedy decoding with stop strings and a limit."""
    plain = not settings["do_sample"] and not settings.get("temperature") and set(settings) <= _OUR_SETTINGS
    return plain and all(isinstance(string, str) and string for string in settings["until"])
