"""A teacher of another tokenizer: it reads the text of each row in its own tokens, and is compared where both models
have read the same characters."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from compress.base.errors import Faults, UsageError
from compress.data import TokenStore
from compress.data.alignment import Retelling, Retold, document_starts
from compress.distill.config import DistillConfig, divergence_of
from compress.distill.objective.signals import Signals, read_signals
from compress.distill.rows.batch import Guide, Ids, MicroBatch, document_boundaries
from compress.distill.rows.documents import document_positions
from compress.model.lengths import context_tokens
from compress.model.load import load_config, load_tokenizer
from compress.model.vocabulary import same_tokens

_MEASURED_ROWS = 64


def retelling_of(config: DistillConfig, student: Path, teacher: Path | None) -> Retelling | None:
    """What gives the teacher its rows where its tokenizer is another and the divergence is `uld`, which needs no names
    of tokens; None where the two are compared token by token.

    Raises:
        InputError: as `Retelling`.
    """
    if teacher is None or divergence_of(config.divergence).name != "uld" or same_tokens(student, teacher):
        return None
    limit = context_tokens(load_config(teacher))
    return Retelling(load_tokenizer(student), load_tokenizer(teacher), limit)


def check_other_tokenizer(config: DistillConfig, *, cached: bool, marked: bool, finetuned: bool) -> None:
    """Refuse what needs the student's tokens from a teacher of another tokenizer; `cached` signals, `marked` rows of
    conversations, `finetuned` on the text before.

    Raises:
        UsageError: all of it.
    """
    faults = Faults()
    asked = {
        "a cache of the teacher keeps its signals by the student's tokens: train without it": cached,
        "conversations are laid out by the student's chat template: take plain text (data.form: text)": marked,
        "teacher.finetune trains it on the student's tokens: leave it out": finetuned,
        "distill.select and distill.order go by the teacher's loss of the student's tokens: leave them out": (
            config.scored is not None
        ),
        "distill.mixture mixes distributions over one vocabulary: name one teacher": config.mixture is not None,
        "distill.on_policy has it score the student's own tokens: leave it out": config.on_policy is not None,
        "distill.self_correct names the label to the teacher: leave it out": config.self_correct is not None,
        "distill.teacher_precision is tried on the student's tokens: leave it at auto": (
            config.teacher_precision != "auto"
        ),
    }
    for term in ("hidden", "similarity"):
        why = f"distill.weights.{term} compares states token by token: leave it out"
        asked[why] = config.weights is not None and getattr(config.weights, term) is not None
    for reason, here in asked.items():
        if here:
            faults.found.append(UsageError(f"With a teacher of another tokenizer, {reason}."))
    faults.refuse()


class Aligned(NamedTuple):
    """How two tokenizers have the same text."""

    share: float
    """Of the student's tokens that are predicted: how many are compared with the teacher's."""
    teacher_tokens: float
    """The teacher's tokens for each of the student's."""
    rows: int
    """That this was measured on."""

    def describe(self) -> str:
        """For people."""
        return (
            f"The teacher has another tokenizer: {self.share:.1%} of the student's tokens are aligned with its own, of "
            f"which there are {self.teacher_tokens:.2f} for each (over {self.rows} rows)."
        )


def measure_alignment(retelling: Retelling, store: TokenStore) -> Aligned:
    """On the store's first held-out rows, or training rows where none is held out."""
    if store.num_heldout:
        rows = store.heldout(min(_MEASURED_ROWS, store.num_heldout))
    else:
        rows = store.rows(np.arange(min(_MEASURED_ROWS, store.num_rows)))
    found = retelling.rows(rows)
    pairs = np.concatenate([row.pairs[:, 0] for row in found])
    predicted = int((pairs < store.seq_len - 1).sum())
    return Aligned(
        share=predicted / (len(rows) * (store.seq_len - 1)),
        teacher_tokens=sum(len(row.ids) for row in found) / rows.size,
        rows=len(rows),
    )


class RetoldTeacher(nn.Module):
    """A model that is run on the text of the rows in its own tokens; a `TeacherSource`."""

    def __init__(self, model: Any, retelling: Retelling) -> None:
        super().__init__()
        self.model = model
        self._retelling, self._vocabulary = retelling, model.get_input_embeddings().num_embeddings

    def ahead(self, batch: MicroBatch) -> MicroBatch:
        """The same with the teacher's rows."""
        return dataclasses.replace(batch, guide=guide_of(self._retelling, batch))

    def forward(self, batch: MicroBatch) -> Signals:
        """One forward pass over them: signals of the aligned places, with the whole vocabulary."""
        assert batch.guide is not None, "`ahead` made it"
        return read_signals(self.model, batch.guide.rows, (), self._vocabulary)


def guide_of(retelling: Retelling, batch: MicroBatch) -> Guide:
    """The teacher's rows of a micro-batch on the host, filled up to one length, and the labels that are aligned."""
    found = retelling.rows(batch.ids.numpy())
    size, length = batch.ids.shape[1], max(len(row.ids) for row in found)
    labelled = np.full(batch.ids.shape, -1)
    if batch.predicting is None:
        labelled[:, :-1] = np.arange(batch.labels.numel()).reshape(len(found), size - 1)
    else:
        labelled.ravel()[batch.predicting.numpy()] = np.arange(batch.labels.numel())
    ours = np.concatenate([row.pairs[:, 0] + number * size for number, row in enumerate(found)])
    theirs = np.concatenate([row.pairs[:, 1] + number * length for number, row in enumerate(found)])
    labels = labelled.ravel()[ours]
    places, predicting = labels[labels >= 0], theirs[labels >= 0]
    others = np.setdiff1d(np.arange(batch.labels.numel()), places)
    rows = _teacher_rows(batch, found, length, retelling.eos_id, predicting)
    return Guide(
        rows=rows, places=torch.from_numpy(places), others=torch.from_numpy(others), divisor=float(len(places))
    )


def _teacher_rows(batch: MicroBatch, found: list[Retold], length: int, eos_id: int, predicting: Ids) -> MicroBatch:
    """Rows of `length` tokens, of which those in the flattened places `predicting` are looked at."""
    ids, starts = np.full((len(found), length), eos_id), np.zeros((len(found), length), np.bool_)
    for number, row in enumerate(found):
        ids[number, : len(row.ids)], starts[number, : len(row.ids)] = row.ids, document_starts(row.documents)
        starts[number, len(row.ids) : len(row.ids) + 1] = True
    positions = None if batch.positions is None else document_positions(starts)
    return MicroBatch(
        ids=torch.from_numpy(ids),
        positions=None if positions is None else torch.from_numpy(positions),
        boundaries=None if positions is None else torch.from_numpy(document_boundaries(positions)),
        predicting=torch.from_numpy(predicting),
        labels=torch.zeros(len(predicting), dtype=torch.int64),
        weights=None,
        row_lengths=tuple(np.bincount(predicting // length, minlength=len(found)).tolist()),
        row_ids=batch.row_ids,
        sources=batch.sources,
    )
