"""Log-probabilities of tokens: the head in chunks of positions, so that no [tokens, vocabulary] tensor exists."""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from compress.inference.readout import Readout, require_numbers

_CPU_CHUNK_TOKENS, _CPU_CHUNK_LOGITS = 128, 1 << 21  # enough rows for the product, few enough logits for the caches
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


def text_loss(readout: Readout, ids: Tensor) -> Tensor:
    """The sum of `token_losses`, a float64 scalar on the CPU."""
    return token_losses(readout, ids).sum()
