"""What a cache keeps of a row of text, as bytes: hidden states, draws of the teacher, or its most likely tokens.

hidden     the last hidden state of each place in the teacher's dtype, [S, D]; or, with rows: int8, [S, B] float16, the
           scale of each block of 32 of its values, and [S, D] int8, how many scales a value is
samples    [S] uint8, how many of the draws differ; [S] float16, the entropy of p; then an entry of 3 or 4 bytes for
           each of those, id * 2^b + times - 1, with b as many bits as the number of draws - 1 needs
topk       [S, k] uint32, ids from the most likely on; [S, k] float16, their log-probabilities
"""

import dataclasses
import zlib
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compress.distill.objective.sparse import Sparse
from compress.distill.teachers.config import CacheConfig
from compress.distill.teachers.row_files import Bytes
from compress.model.parts import OutputHead

_CHUNK_LOGITS = 1 << 24
BLOCK = 32
"""Values of a hidden state that share a scale, as in llama.cpp's Q8_0."""


def hidden_rows(states: Tensor) -> list[Bytes]:
    """The bytes of each row of states [B, S, D]."""
    return list(states.cpu().contiguous().flatten(1).view(torch.uint8).numpy())


def read_hidden(rows: list[Bytes], length: int, dtype: torch.dtype) -> Tensor:
    """States [B, length, D] of what `hidden_rows` made."""
    return torch.stack([torch.from_numpy(row) for row in rows]).view(dtype).view(len(rows), length, -1)


def rounded_rows(states: Tensor) -> list[Bytes]:
    """The bytes of each row of states [B, S, D], 8 bits a value and 16 a block; a value is off by half its block's
    scale, which is a 127th of its largest value."""
    values = states.float().cpu()
    blocks = nn.functional.pad(values, (0, -values.shape[-1] % BLOCK))
    blocks = blocks.view(*values.shape[:-1], -1, BLOCK)
    scales = (blocks.abs().amax(-1) / 127).half()
    steps = (blocks / scales[..., None]).nan_to_num(0.0).round().clamp(-127, 127).flatten(-2)
    numbers = steps[..., : values.shape[-1]].to(torch.int8)
    parts = zip(scales.numpy(), numbers.numpy(), strict=True)
    return [np.concatenate([part.ravel().view(np.uint8) for part in row]) for row in parts]


def read_rounded(rows: list[Bytes], length: int, width: int, dtype: torch.dtype) -> Tensor:
    """States [B, length, width] of what `rounded_rows` made."""
    blocks = -(-width // BLOCK)
    raw = torch.from_numpy(np.stack(rows))
    scales = raw[:, : 2 * length * blocks].contiguous().view(torch.float16).view(len(rows), length, blocks)
    numbers = raw[:, 2 * length * blocks :].view(torch.int8).view(len(rows), length, width)
    return (numbers.float() * scales.float().repeat_interleave(BLOCK, -1)[..., :width]).to(dtype)


@dataclasses.dataclass(frozen=True)
class Draws:
    """Token ids drawn from the teacher with replacement; a row's depend on the seed and on its number alone."""

    config: CacheConfig
    vocabulary: int

    def encode(self, states: Tensor, head: OutputHead, row_ids: NDArray[np.int64]) -> list[Bytes]:
        """Of the rows of states [B, S, D] with these numbers."""
        return [self._row(row, head, int(number)) for row, number in zip(states, row_ids, strict=True)]

    def _row(self, states: Tensor, head: OutputHead, number: int) -> Bytes:
        length, draws = len(states), self.config.draws
        random = np.random.default_rng([self.config.seed, number]).random((length, draws))
        ids, entropy, step = np.empty((length, draws), np.int64), np.empty(length, "<f2"), _step(self.vocabulary)
        for start in range(0, length, step):
            place = slice(start, start + step)
            log_p = head.logits(states[place]).double().log_softmax(-1)
            sums = log_p.exp().cumsum(-1)
            drawn = torch.searchsorted(sums, torch.from_numpy(random[place]).to(sums.device) * sums[:, -1:], right=True)
            ids[place] = drawn.clamp(max=self.vocabulary - 1).sort(-1).values.cpu().numpy()
            entropy[place] = -(log_p.exp() * log_p).nan_to_num(0.0).sum(-1).cpu().numpy()
        first = np.ones(ids.shape, np.bool_)
        first[:, 1:] = ids[:, 1:] != ids[:, :-1]
        times, numbers = np.diff(np.flatnonzero(first), append=ids.size), first.sum(1)
        steps = np.diff(ids[first], prepend=0)
        starts = np.cumsum(numbers) - numbers
        steps[starts] = ids[:, 0]
        planes = (numbers.astype("u1"), entropy, (times - 1).astype("u1"), steps.astype("<u4"))
        return np.frombuffer(zlib.compress(b"".join(map(_bytewise, planes))), np.uint8)

    def decode(self, rows: list[Bytes], length: int) -> Sparse:
        """Ids and weights [B, S, K] and entropies [B, S] of rows of `length` places; K is the most that a place has."""
        read = [_read_draws(np.frombuffer(zlib.decompress(row.data), np.uint8), length) for row in rows]
        numbers, entropy = (np.stack([row[part] for row in read]) for part in (0, 1))
        there = np.arange(numbers.max()) < numbers[..., None]
        ids, weights = np.zeros(there.shape, np.int64), np.zeros(there.shape, np.float32)
        ids[there] = np.concatenate([row[2] for row in read])
        weights[there] = np.concatenate([row[3] for row in read]) / self.config.draws
        return Sparse(torch.from_numpy(ids), torch.from_numpy(weights), torch.from_numpy(entropy))


def _read_draws(raw: Bytes, length: int) -> tuple[NDArray[Any], ...]:
    """Of a row: how many tokens each place has [S], entropies [S]; of all those tokens ids and number of draws."""
    numbers = raw[:length].astype(np.int64)
    entropy, raw = _whole(raw[length : 3 * length], "<f2").astype(np.float32), raw[3 * length :]
    total = int(numbers.sum())
    steps, starts = _whole(raw[total:], "<u4").astype(np.int64), np.cumsum(numbers) - numbers
    sums = np.cumsum(steps)
    return numbers, entropy, sums - np.repeat((sums - steps)[starts], numbers), raw[:total].astype(np.float32) + 1


def _bytewise(values: NDArray[Any]) -> bytes:
    """The lowest bytes of all values, then the next: of numbers that are alike, what zlib finds to be so."""
    return np.ascontiguousarray(values).view(np.uint8).reshape(len(values), -1).T.tobytes()


def _whole(planes: Bytes, kind: str) -> NDArray[Any]:
    """What `_bytewise` took apart."""
    size = np.dtype(kind).itemsize
    return np.ascontiguousarray(planes.reshape(size, -1).T).view(kind).ravel()


@dataclasses.dataclass(frozen=True)
class MostLikely:
    """The k most likely tokens, as if there were no others: their probabilities are made to add up to 1."""

    config: CacheConfig
    vocabulary: int

    def encode(self, states: Tensor, head: OutputHead, row_ids: NDArray[np.int64]) -> list[Bytes]:
        """Of the rows of states [B, S, D]."""
        return [self._row(row, head) for row in states]

    def _row(self, states: Tensor, head: OutputHead) -> Bytes:
        step = _step(self.vocabulary)
        parts = [states[start : start + step] for start in range(0, len(states), step)]
        found = [head.logits(part).double().log_softmax(-1).topk(self.config.k) for part in parts]
        ids = torch.cat([each.indices for each in found]).cpu().numpy().astype("<u4")
        values = torch.cat([each.values for each in found]).cpu().numpy().astype("<f2")
        return np.concatenate([ids.ravel().view(np.uint8), values.ravel().view(np.uint8)])

    def decode(self, rows: list[Bytes], length: int) -> Sparse:
        """As of `Draws`; the entropy is that of the weights."""
        size = length * self.config.k * 4
        ids = np.stack([row[:size].view("<u4").reshape(length, -1) for row in rows]).astype(np.int64)
        kept = np.stack([row[size:].view("<f2").reshape(length, -1) for row in rows]).astype(np.float32)
        weights = torch.from_numpy(kept).log_softmax(-1)
        return Sparse(torch.from_numpy(ids), weights.exp(), -(weights.exp() * weights).sum(-1))


SPARSE: dict[str, type[Draws] | type[MostLikely]] = {"samples": Draws, "topk": MostLikely}


def _step(vocabulary: int) -> int:
    """How many places' logits exist at once."""
    return max(1, _CHUNK_LOGITS // vocabulary)
