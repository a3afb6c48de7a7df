"""The pass over a store's rows that says how hard each token is for the teacher, or for the student."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress.base.processes import on_main
from compress.base.progress import say
from compress.data import INDEX, TokenStore
from compress.data.store.scores import make_scores, scores_folder
from compress.distill.config import DistillConfig
from compress.distill.objective.loss import IGNORE_INDEX
from compress.distill.rows.batch import Batch, Ids, MicroBatch, micro_batch
from compress.distill.rows.documents import check_isolation
from compress.distill.rows.selection import Selection, find_selection, made_of
from compress.distill.rows.source import StoreRows
from compress.inference.readout import Readout, load_checkpoint, require_numbers

_BLOCK_TOKENS, _DEVICE_BLOCK_TOKENS = 1024, 8192  # a CPU is busy with few, a device needs more


def selection_for(
    config: DistillConfig, store: TokenStore, *, student: Path, teacher: Path | None, inputs: Mapping[str, Any]
) -> Selection | None:
    """What a training takes of a store, after scoring its rows if nobody did; None where it takes all as it comes.

    Raises:
        UsageError, InputError: as `make_scores`, as loading the models, and as `check_isolation`.
    """
    select = config.scored
    if select is None:
        return None
    assert teacher is not None, "check_distill asks for one"

    def score() -> None:
        key = made_of(select, store, inputs)
        if (scores_folder(store, key) / INDEX).is_file():
            return
        guide = load_checkpoint(teacher)
        learner = load_checkpoint(student) if select.by == "student_disagreement" else None
        if store.apart:
            for readout in filter(None, (guide, learner)):
                check_isolation(readout.model, readout.name)
        block = _BLOCK_TOKENS if guide.device.type == "cpu" else _DEVICE_BLOCK_TOKENS
        rows = StoreRows(store, seed=0, epochs=1, num_heldout=0, apart=store.apart, selection=None)

        def of_rows(numbers: Ids) -> NDArray[np.float32]:
            return row_scores(select.by, rows.read(numbers), guide, learner)

        make_scores(store, key, of_rows, keep_tokens=select.of == "tokens", block_tokens=block)

    on_main(score)
    found = find_selection(config, store, inputs)
    assert found is not None
    say(
        f"{found.facts['taken']:,} of {found.facts['count']:,} {select.of} are learned from ({select.by} "
        f"{found.low:.3g} to {found.high:.3g}){', from easy to hard' if not found.shuffled else ''}."
    )
    return found


def row_scores(by: str, batch: Batch, teacher: Readout, student: Readout | None = None) -> NDArray[np.float32]:
    """Scores [B, S - 1] of the tokens of a batch's rows but the first of each, NaN where a token is no label; raises
    as `token_scores`."""
    found = np.full(batch.labels.shape, np.nan, np.float32)
    scores = token_scores(by, micro_batch(batch).to(teacher.device), teacher, student)
    found[batch.labels != IGNORE_INDEX] = scores.numpy()
    return found


@torch.inference_mode()
def token_scores(by: str, batch: MicroBatch, teacher: Readout, student: Readout | None = None) -> Tensor:
    """How hard each of the M labels of a micro-batch is, float32 [M] on the CPU; see `SelectConfig`.

    With p the teacher's and q the student's distribution, at temperature 1, over the ids that both have.

    Raises:
        InputError: a score is NaN.
    """
    labels, states = batch.labels, _states(teacher, batch)
    others = None if student is None else _states(student, batch)
    step = min(readout.chunk_tokens for readout in (teacher, student) if readout is not None)
    found = []
    for start in range(0, len(states), step):
        chunk = slice(start, start + step)
        logits, label = teacher.logits(states[chunk]), labels[chunk]
        if by == "teacher_wrong":
            require_numbers(logits.logsumexp(dim=-1), teacher)
            found.append((logits.argmax(dim=-1) != label).float().cpu())
            continue
        if student is not None and others is not None:
            shared = min(teacher.vocab_size, student.vocab_size)
            log_p = logits[:, :shared].log_softmax(dim=-1)
            log_q = student.logits(others[chunk])[:, :shared].log_softmax(dim=-1)
            values = torch.nn.functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=-1)
        else:
            values = torch.nn.functional.cross_entropy(logits, label, reduction="none")
            values = -torch.expm1(-values) if by == "disagreement" else values
        found.append(values.clamp(min=0).cpu())
    scores = torch.cat(found)
    require_numbers(scores, teacher)
    return scores


def _states(readout: Readout, batch: MicroBatch) -> Tensor:
    apart = {} if batch.positions is None else {"position_ids": batch.positions}
    return batch.with_label(readout.states(batch.ids, **apart))
