"""Is the trimmed model the whole one on the ids that stay? Measured on logits, in fp32 on the CPU.

Both are given the same tokens, all of which stay. What is before the heads is then the same arithmetic on the same
numbers; a head with fewer rows may sum in another order.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from compress.base.errors import CompressError
from compress.base.progress import working
from compress.model.lengths import context_tokens
from compress.model.load import load_config, load_model
from compress.prune.check import IDENTITY_TOLERANCE, NUM_SEQUENCES, NUM_TOKENS


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogitsCheck:
    """How far apart the logits of the ids that stay were."""

    skipped: str | None = None
    """Why nothing was compared; None when it was."""
    max_abs_difference: float | None = None
    """0 where they were the same bit for bit."""
    max_abs_logit: float | None = None
    tokens: int = 0


@torch.no_grad()
def compare_logits(whole: Path, trimmed: Path, kept: Sequence[int]) -> LogitsCheck:
    """Compare the models on random tokens, each in memory alone.

    Raises:
        CompressError: the trimmed one differs.
    """
    old = torch.tensor(kept)
    generator = torch.Generator().manual_seed(0)
    tokens = min(NUM_TOKENS, context_tokens(load_config(whole)) or NUM_TOKENS)
    ids = torch.randint(len(kept), (NUM_SEQUENCES, tokens), generator=generator)
    expected = _logits(whole, old[ids])[..., old]
    found = _logits(trimmed, ids)[..., : len(kept)]
    difference, largest = (found - expected).abs().max().item(), expected.abs().max().item()
    if not difference <= IDENTITY_TOLERANCE * max(largest, 1.0):
        raise CompressError(
            f"The logits of the trimmed model differ from the whole one's by up to {difference:.3g} (the largest is "
            f"{largest:.3g}): this architecture uses token ids in a way this tool does not know, so nothing was "
            "written. Please report the model's type and config.json."
        )
    return LogitsCheck(max_abs_difference=difference, max_abs_logit=largest, tokens=ids.numel())


def _logits(folder: Path, ids: Tensor) -> Tensor:
    """Logits [B, S, V] for `ids` [B, S]."""
    model = load_model(folder, dtype=torch.float32)
    with working(f"checking {folder}"):
        logits: Tensor = model(input_ids=ids, use_cache=False).logits
    return logits
