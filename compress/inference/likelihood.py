"""Log-probabilities of tokens from hidden states: the head on scored positions alone, float32 log-sum-exp."""

import torch
from torch import Tensor

from compress.inference.readout import Checkpoint, require_numbers

_CPU_CHUNK_TOKENS, _CPU_CHUNK_LOGITS = 128, 1 << 21  # enough rows for the product, few enough logits for the caches


def log_probabilities(checkpoint: Checkpoint, states: Tensor, slot: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
    """For each i: log p of `token[i]` after `states[slot[i]]`, and whether it is the argmax.

    `states` is [N, D] on the checkpoint's device, `slot` and `token` [M] on the CPU. Returns float64 nats and booleans,
    [M] on the CPU: z[token] - logsumexp(z) of the float32 logits z, of which one chunk exists at a time.

    Raises:
        InputError: one is NaN.
    """
    log_p = torch.empty(len(slot), dtype=torch.float64)
    greedy = torch.empty(len(slot), dtype=torch.bool)
    step = checkpoint.chunk_tokens
    if states.device.type == "cpu":
        step = min(step, max(_CPU_CHUNK_TOKENS, _CPU_CHUNK_LOGITS // checkpoint.vocab_size))
    for start in range(0, len(states), step):
        logits = checkpoint.logits(states[start : start + step])
        here = ((slot >= start) & (slot < start + step)).nonzero().squeeze(1)
        local, wanted = (slot[here] - start).to(logits.device), token[here].to(logits.device)
        log_p[here] = (logits[local, wanted] - logits.logsumexp(dim=-1)[local]).cpu().double()
        greedy[here] = (logits.argmax(dim=-1)[local] == wanted).cpu()
    require_numbers(log_p, checkpoint)
    return log_p, greedy
