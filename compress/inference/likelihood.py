"""Log-probabilities of tokens: the head in chunks of positions, so that no [tokens, vocabulary] tensor exists."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from compress.inference.readout import Readout, require_numbers

_CPU_CHUNK_TOKENS, _CPU_CHUNK_LOGITS = 128, 1 << 21  # enough rows for the product, few enough logits for the caches
_LEAST_LOG_P = -50.0  # of a rest that is nothing
_LOSS_CHUNK_LOGITS = 1 << 25  # 128 MiB of float32


def log_probabilities(readout: Readout, states: Tensor, slot: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
    """For each i: log p of `token[i]` after `states[slot[i]]`, and whether it is the argmax.

    `states` is [N, D] on the model's device, `slot` and `token` [M] on the CPU. Returns float64 nats and booleans,
    [M] on the CPU: z[token] - logsumexp(z) of the float32 logits z, of which one chunk exists at a time.

    Raises:
        InputError: one is NaN.
    """
    log_p = torch.empty(len(slot), dtype=torch.float64)
    greedy = torch.empty(len(slot), dtype=torch.bool)
    step = readout.chunk_tokens
    if states.device.type == "cpu":
        step = min(step, max(_CPU_CHUNK_TOKENS, _CPU_CHUNK_LOGITS // readout.vocab_size))
    for start in range(0, len(states), step):
        logits = readout.logits(states[start : start + step])
        here = ((slot >= start) & (slot < start + step)).nonzero().squeeze(1)
        local, wanted = (slot[here] - start).to(logits.device), token[here].to(logits.device)
        log_p[here] = (logits[local, wanted] - logits.logsumexp(dim=-1)[local]).cpu().double()
        greedy[here] = (logits.argmax(dim=-1)[local] == wanted).cpu()
    require_numbers(log_p, readout)
    return log_p, greedy


def token_losses(readout: Readout, ids: Tensor) -> Tensor:
    """-log p(x_t | x_<t), nats, for t = 1 .. S-1 of each row of `ids` [B, S], on the model's device.

    float64 [B (S-1)] on the CPU, of float32 logits. Differentiable in the model's weights below the head: a chunk's
    logits are computed again in the backward pass.
    """
    states = readout.states(ids)[:, :-1].flatten(0, 1)
    labels = ids[:, 1:].flatten()

    def chunk_loss(states: Tensor, labels: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(readout.logits(states), labels, reduction="none")

    step = max(1, _LOSS_CHUNK_LOGITS // readout.vocab_size)
    chunks = (slice(start, start + step) for start in range(0, len(states), step))
    losses = [checkpoint(chunk_loss, states[chunk], labels[chunk], use_reentrant=False) for chunk in chunks]
    return torch.cat(losses).cpu().double()


class Likely(NamedTuple):
    """The likeliest next tokens of a model at N places of a text, and all others as one."""

    ids: Tensor
    """[N, k]"""
    log_p: Tensor
    """[N, k + 1], float64, nats: theirs, and that of the rest."""


def likely_tokens(readout: Readout, ids: Tensor, count: int = 64) -> Likely:
    """The `count` likeliest tokens after each token of `ids` [B, S] but the last of each row."""
    states = readout.states(ids)[:, :-1].flatten(0, 1)
    found: list[tuple[Tensor, Tensor]] = []
    step = max(1, _LOSS_CHUNK_LOGITS // readout.vocab_size)
    for start in range(0, len(states), step):
        logits = readout.logits(states[start : start + step])
        top = logits.topk(min(count, logits.shape[-1])).indices
        found.append((top, _with_rest(logits, top)))
    chosen, log_p = (torch.cat(column) for column in zip(*found, strict=True))
    return Likely(chosen, log_p)


def token_divergences(readout: Readout, ids: Tensor, reference: Likely) -> Tensor:
    """KL(p || q) at the same places, nats, float64 [N] on the CPU: p the reference's and q the model's probabilities of
    the reference's tokens and of the rest. It is at most the KL over the whole vocabulary, and close to it."""
    states = readout.states(ids)[:, :-1].flatten(0, 1)
    step = max(1, _LOSS_CHUNK_LOGITS // readout.vocab_size)
    found: list[Tensor] = []
    for start in range(0, len(states), step):
        log_p = reference.log_p[start : start + step]
        log_q = _with_rest(readout.logits(states[start : start + step]), reference.ids[start : start + step])
        found.append((log_p.exp() * (log_p - log_q)).sum(dim=-1))
    return torch.cat(found).cpu()


def _with_rest(logits: Tensor, tokens: Tensor) -> Tensor:
    """Log-probabilities [N, k + 1] of `tokens` [N, k] and of all others together, float64."""
    rest = logits.scatter(-1, tokens, -torch.inf).logsumexp(dim=-1, keepdim=True)
    parts = torch.cat([logits.gather(-1, tokens), rest], dim=-1).double()
    return parts.log_softmax(dim=-1).clamp(min=_LEAST_LOG_P)


def text_loss(readout: Readout, ids: Tensor) -> Tensor:
    """The sum of `token_losses`, a float64 scalar on the CPU."""
    return token_losses(readout, ids).sum()
