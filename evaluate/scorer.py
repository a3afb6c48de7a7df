"""Our backend of lm-eval: its requests scored with float32 log-softmax, in batches of a token budget.

It differs from lm-eval's `hf` backend in how, not in what: only scored positions reach the head, logits are float32
in every dtype, and requests that end up as one token sequence share a forward pass while each keeps its own split
(lm-eval's shared gather mixes them up when the splits differ).
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor

from compress.errors import InputError
from compress.evaluate.checkpoint import Checkpoint
from compress.progress import progress_bar, say

Request = tuple[tuple[str, str], list[int], list[int]]
"""lm-eval's token request: ((context, continuation) as text, context ids, continuation ids)."""


class Scorer(HFLM):  # type: ignore[misc]
    """lm-eval's `LM` interface over a `Checkpoint`."""

    def __init__(self, checkpoint: Checkpoint, batch_tokens: int) -> None:
        super().__init__(
            pretrained=checkpoint.model,
            tokenizer=checkpoint.tokenizer,
            backend="causal",
            batch_size=1,
            softmax_dtype="float32",
        )
        self._checkpoint = checkpoint
        self._batch_tokens = batch_tokens

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log p(continuation | context) in nats, whether greedy decoding gives it) for each request."""
        scores: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return scores

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """log p(text) in nats of each whole text."""
        self.batch_size_per_gpu = max(1, self._batch_tokens // self.max_length)
        scores: list[float] = super().loglikelihood_rolling(requests, disable_tqdm=True)
        return scores

    @torch.inference_mode()
    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """Scores in the order of `requests`; `override_bs` marks lm-eval's inner calls, which show no bar."""
        rows: dict[tuple[int, ...], list[int]] = {}
        for index, (_, context, continuation) in enumerate(requests):
            self._require_room(len(continuation), "an answer option of {} tokens")
            rows.setdefault(tuple((context + continuation)[-(self.max_length + 1) : -1]), []).append(index)
        cut = sum(len(c) + len(t) > self.max_length + 1 for _, c, t in requests)
        if cut:
            say(f"{cut} of {len(requests)} prompts are longer than {self.max_length} tokens; their start is cut off.")
        scores: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        visible = not disable_tqdm and override_bs is None
        with progress_bar("Scoring answers", len(requests), visible=visible) as bar:
            for batch in token_batches(list(rows), self._batch_tokens):
                wanted = [(row, index) for row, ids in enumerate(batch) for index in rows[ids]]
                targets = [requests[index][2] for _, index in wanted]
                found = self._score(batch, [row for row, _ in wanted], targets)
                for (_, index), score in zip(wanted, found, strict=True):
                    scores[index] = score
                bar.advance(len(wanted))
        return scores

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
        texts = [""] * len(requests)
        with progress_bar("Generating answers", len(requests), visible=not disable_tqdm) as bar:
            while order:
                room = lengths[order[0]] + self._new_tokens(requests[order[0]])
                count = max(1, self._batch_tokens // room)
                batch, order = order[:count], order[count:]
                self.batch_size_per_gpu = len(batch)
                found = super().generate_until([requests[i] for i in batch], disable_tqdm=True)
                for index, text in zip(batch, found, strict=True):
                    texts[index] = text
                bar.advance(len(batch))
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
