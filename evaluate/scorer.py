"""Our backend of lm-eval: its requests scored with float32 log-softmax, in batches of a token budget.

It differs from lm-eval's `hf` backend in how, not in what: only scored positions reach the head, logits are float32
in every dtype, and requests that end up as one token sequence share a forward pass while each keeps its own split
(lm-eval's shared gather mixes them up when the splits differ).
"""

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor

from compress.errors import InputError
from compress.evaluate.checkpoint import Checkpoint
from compress.evaluate.journal import Batch, Journal
from compress.progress import say

Request = tuple[tuple[str, str], list[int], list[int]]
"""lm-eval's token request: ((context, continuation) as text, context ids, continuation ids)."""


class Scorer(HFLM):  # type: ignore[misc]
    """lm-eval's `LM` interface over a `Checkpoint`; batches go through a journal, which shares them out and keeps them.

    Each batch of generated answers starts from `seed` and its number: where a task samples, neither an interruption nor
    the number of processes shows.
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
        self._batch_tokens = batch_tokens
        self._journal = journal or Journal()
        self._seed = seed

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log p(continuation | context) in nats, whether greedy decoding gives it) for each request."""
        scores: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return scores

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """log p(text) in nats of each whole text."""
        self.batch_size_per_gpu = sys.maxsize  # all windows in one call: the batches are made there
        scores: list[float] = super().loglikelihood_rolling(requests, disable_tqdm=True)
        return scores

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """Scores in the order of `requests`; `override_bs` is lm-eval's, and of no use here."""
        rows: dict[tuple[int, ...], list[int]] = {}
        for index, (_, context, continuation) in enumerate(requests):
            self._require_room(len(continuation), "an answer option of {} tokens")
            rows.setdefault(tuple((context + continuation)[-(self.max_length + 1) : -1]), []).append(index)
        cut = sum(len(c) + len(t) > self.max_length + 1 for _, c, t in requests)
        if cut:
            say(f"{cut} of {len(requests)} prompts are longer than {self.max_length} tokens; their start is cut off.")
        batches = list(token_batches(list(rows), self._batch_tokens))
        wanted = [[(row, index) for row, ids in enumerate(batch) for index in rows[ids]] for batch in batches]
        jobs = [
            (batch, [row for row, _ in pairs], [requests[index][2] for _, index in pairs])
            for batch, pairs in zip(batches, wanted, strict=True)
        ]
        found = self._journal.measure(
            "Scoring answers",
            [Batch(job, len(job[1])) for job in jobs],
            lambda i: self._score(*jobs[i]),
            visible=not disable_tqdm,
        )
        scores: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        for pairs, results in zip(wanted, found, strict=True):
            for (_, index), (log_p, greedy) in zip(pairs, results, strict=True):
                scores[index] = (log_p, greedy)
        return scores

    @torch.inference_mode()
    def _score(
        self, batch: Sequence[tuple[int, ...]], rows: Sequence[int], targets: Sequence[list[int]]
    ) -> list[tuple[float, bool]]:
        """Score each `targets[i]` as the end of row `rows[i]`; every scored position goes through the head once."""
        checkpoint, device = self._checkpoint, self._checkpoint.device
        ids = torch.zeros(len(batch), max(map(len, batch)), dtype=torch.long)
        for row, tokens in enumerate(batch):
            ids[row, : len(tokens)] = torch.tensor(tokens)
        states = checkpoint.states(ids.to(device))
        pairs = [
            (row, len(batch[row]) - len(target) + offset)
            for row, target in zip(rows, targets, strict=True)
            for offset in range(len(target))
        ]
        slots = {pair: slot for slot, pair in enumerate(dict.fromkeys(pairs))}
        row_index, position = (torch.tensor(column, device=device) for column in zip(*slots, strict=True))
        slot = torch.tensor([slots[pair] for pair in pairs])
        token = torch.tensor([token for target in targets for token in target])
        log_p, greedy = self._log_probabilities(states[row_index, position], slot, token)
        sizes = [len(target) for target in targets]
        return [
            (float(values.sum()), bool(flags.all()))
            for values, flags in zip(torch.split(log_p, sizes), torch.split(greedy, sizes), strict=True)
        ]

    def _log_probabilities(self, states: Tensor, slot: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
        """For each i: log p of `token[i]` after `states[slot[i]]` (float64, CPU), and whether it is the argmax."""
        log_p = torch.empty(len(slot), dtype=torch.float64)
        greedy = torch.empty(len(slot), dtype=torch.bool)
        step = self._checkpoint.chunk_tokens
        for start in range(0, len(states), step):
            table = self._checkpoint.logits(states[start : start + step]).log_softmax(dim=-1)
            here = ((slot >= start) & (slot < start + step)).nonzero().squeeze(1)
            local, wanted = (slot[here] - start).to(table.device), token[here].to(table.device)
            log_p[here] = table[local, wanted].cpu().double()
            greedy[here] = (table.argmax(dim=-1)[local] == wanted).cpu()
        return log_p, greedy

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Greedy continuations (or as a task's generation settings say), longest prompts first."""
        self._require_room(max(map(self._new_tokens, requests)) + 1, "a prompt and its answer ({} tokens or more)")
        lengths = [len(self.tok_encode(request.args[0])) for request in requests]
        order = sorted(range(len(requests)), key=lambda i: -lengths[i])
        batches = []
        while order:
            room = lengths[order[0]] + self._new_tokens(requests[order[0]])
            count = max(1, self._batch_tokens // room)
            batches.append(order[:count])
            order = order[count:]
        found = self._journal.measure(
            "Generating answers",
            [Batch([requests[i].args for i in batch], len(batch)) for batch in batches],
            lambda number: self._generate([requests[i] for i in batches[number]], self._seed + number),
            visible=not disable_tqdm,
        )
        texts = [""] * len(requests)
        for batch, answers in zip(batches, found, strict=True):
            for index, text in zip(batch, answers, strict=True):
                texts[index] = text
        return texts

    def _generate(self, requests: list[Any], seed: int) -> list[str]:
        """lm-eval's own generation of one batch."""
        torch.manual_seed(seed)
        self.batch_size_per_gpu = len(requests)
        texts: list[str] = super().generate_until(requests, disable_tqdm=True)
        return texts

    def _require_room(self, tokens: int, what: str) -> None:
        if tokens > self.max_length:
            raise InputError(
                f"A task asks for {what.format(tokens)}, and {self._checkpoint.name} reads at most {self.max_length}: "
                "leave the task out, or choose a model with a longer context."
            )

    def _new_tokens(self, request: Any) -> int:
        settings = request.args[1]
        return int(settings.get("max_gen_toks", settings.get("max_new_tokens", self.max_gen_toks)))


def token_batches(rows: Sequence[tuple[int, ...]], batch_tokens: int) -> Iterator[list[tuple[int, ...]]]:
    """Rows, longest first, in batches whose padded size (rows x longest) is at most `batch_tokens`, or of one row."""
    batch: list[tuple[int, ...]] = []
    for row in sorted(rows, key=lambda row: (-len(row), row)):
        if batch and (len(batch) + 1) * len(batch[0]) > batch_tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch
