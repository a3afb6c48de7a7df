"""What a masked language model says of tokens that are hidden from it: some places of a row at a time.

A pass hides every `every`-th place of each row and reads the states of those; `every` passes have read all of them.
With 0 each place has a pass to itself, as pseudo-perplexity is defined (Salazar et al. 2020, arXiv:1910.14659, section
2.1).
"""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress.inference.readout import Checkpoint

_TOP = 5


def states_of_blanks(checkpoint: Checkpoint, rows: Tensor, places: Tensor, every: int) -> Tensor:
    """What the head turns into the logits of hidden tokens, [M, D], at the places [M] of the B (S - 1) tokens after
    each row's first, for rows [B, S] of token ids."""
    if not len(places):
        return checkpoint.states(rows[:1].to(checkpoint.device)).flatten(0, 1)[:0]
    mask_id, width = checkpoint.tokenizer.mask_token_id, rows.shape[1] - 1
    row, column = places // width, places % width + 1
    found: Tensor | None = None
    for chosen in _turns(column, every):
        at = row[chosen], column[chosen]
        hidden = rows.clone()
        hidden[at] = mask_id
        states = checkpoint.states(hidden.to(checkpoint.device))
        picked = states[tuple(part.to(states.device) for part in at)]
        if found is None:
            found = picked.new_empty(len(places), picked.shape[-1])
        found[chosen.to(found.device)] = picked
    assert found is not None
    return found


def can_be_hidden(checkpoint: Checkpoint, tokens: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which tokens are of the text: all but the tokenizer's special ones. The same shape."""
    return ~np.isin(tokens, checkpoint.tokenizer.all_special_ids)


def filled(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Of logits [N, V], whether the hidden token [N] is the most likely one, and whether it is one of five: [N]."""
    best = logits.topk(min(_TOP, logits.shape[-1]), dim=-1).indices == labels[:, None]
    return {"filled1": best[:, 0], "filled5": best.any(dim=-1)}


def _turns(column: Tensor, every: int) -> Iterator[Tensor]:
    """Which of the places [M] are hidden at once, in turn."""
    turns = column if every == 0 else column % every
    for turn in sorted(set(turns.tolist())):
        yield torch.nonzero(turns == turn).squeeze(1)
