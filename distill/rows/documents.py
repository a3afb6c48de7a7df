"""Documents packed into one row, kept apart: positions that start anew, no loss across a boundary, and a check.

Rows of text are cut from one stream of documents that each end with EOS; rows of conversations have a mark where each
begins. transformers recognises packed documents by position ids that start anew, and then builds block-diagonal causal
(and sliding-window) masks for eager, SDPA and flex attention, and variable-length calls for flash attention.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from compress.base.errors import UsageError, reason_of
from compress.distill.objective.loss import IGNORE_INDEX
from compress.distill.resources.attention import documents_of, parts_documents
from compress.distill.rows.batch import Ids, document_boundaries
from compress.model.parts import hidden_states

Mask = npt.NDArray[np.bool_]

_CHECK_DOCUMENTS = ((5, 8, 3), (9, 1, 6))


def document_positions(starts: Mask) -> Ids:
    """Position of each token of rows in its document, [B, S]; one starts where `starts` [B, S] says, and with a row."""
    index = np.arange(starts.shape[1])
    positions: Ids = index - np.maximum.accumulate(np.where(starts, index, 0), axis=1)
    return positions


def next_tokens(rows: Ids, starts: Mask | None = None, answers: Mask | None = None) -> Ids:
    """Labels [B, S - 1] of rows [B, S]: the next token of all but the last; with `answers` [B, S] only what is of one.

    With `starts` [B, S] the last token of a document predicts nothing: what follows it is the start of a document that
    has no part in this one, as when each document is run alone.
    """
    labels = rows[:, 1:]
    if starts is not None:
        labels = np.where(starts[:, 1:], IGNORE_INDEX, labels)
    return labels if answers is None else np.where(answers[:, 1:], labels, IGNORE_INDEX)


def starts_after_eos(rows: Ids, eos_id: int) -> Mask:
    """Where documents of text start in rows [B, S]: after EOS."""
    starts = np.zeros(rows.shape, dtype=np.bool_)
    starts[:, 1:] = rows[:, :-1] == eos_id
    return starts


def packed_hidden_states(
    model: Any, rows: Tensor, positions: Tensor | None, boundaries: Tensor | None = None
) -> Tensor:
    """Last hidden states [B, S, D] of `rows` [B, S]; with `positions` [B, S], of each document by itself.

    The package flash-attn takes packed documents in a single row only, so rows are joined for it: a row's first
    position is 0 and starts a document. Attention of our own wants the `boundaries` (see `document_boundaries`).
    """
    if positions is None:
        return hidden_states(model, rows)
    if parts_documents(model):
        assert boundaries is not None, "its attention knows documents by nothing else"
        return hidden_states(model, rows, position_ids=positions, **documents_of(boundaries, rows.shape[1]))
    if not _takes_one_row(model):
        return hidden_states(model, rows, position_ids=positions)
    joined = hidden_states(model, rows.reshape(1, -1), position_ids=positions.reshape(1, -1))
    return joined.view(*rows.shape, -1)


@torch.no_grad()
def check_isolation(model: Any, name: str) -> None:
    """Compare the hidden states of a few packed documents with those of each document run alone.

    Raises:
        UsageError: they differ, so this architecture lets a document see the ones before it (recurrent and
            convolutional layers, positions counted from the attention mask).
    """
    device = next(model.parameters()).device
    vocabulary = model.get_input_embeddings().num_embeddings
    generator = np.random.default_rng(0)
    rows = torch.from_numpy(generator.integers(0, vocabulary, (len(_CHECK_DOCUMENTS), sum(_CHECK_DOCUMENTS[0]))))
    positions = torch.stack([torch.cat([torch.arange(length) for length in row]) for row in _CHECK_DOCUMENTS])
    boundaries = torch.from_numpy(document_boundaries(positions.numpy())).to(device)
    rows, positions = rows.to(device), positions.to(device)
    try:
        packed = packed_hidden_states(model, rows, positions, boundaries).float()
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"document_mask: true cannot be had with {name} ({type(model).__name__}), which fails with positions: "
            f"{reason_of(error)}. Set it to false (for conversations, data.apart)."
        ) from error
    alone = torch.stack(
        [
            torch.cat([hidden_states(model, document[None])[0].float() for document in row.split(lengths)])
            for row, lengths in zip(rows, _CHECK_DOCUMENTS, strict=True)
        ]
    )
    apart = ((packed - alone).norm() / alone.norm()).item()
    exact = model.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled(device.type)
    if not apart <= (1e-3 if exact else 0.05):
        raise UsageError(
            f"document_mask: true cannot be had with {name} ({type(model).__name__}): the hidden states of documents "
            f"packed into a row differ from those of each document alone by {apart:.1%}. Set it to false (for "
            "conversations, data.apart)."
        )


def _takes_one_row(model: Any) -> bool:
    return "flash" in str(model.config._attn_implementation)
