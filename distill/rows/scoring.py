"""The pass over a store's rows that says how hard each token is for the teacher, or for the student."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress.base.errors import UsageError
from compress.base.processes import on_main
from compress.base.progress import say
from compress.data import INDEX, TokenStore
from compress.data.store.scores import make_scores, scores_folder
from compress.distill.config import DistillConfig
from compress.distill.rows.selection import Selection, find_selection, made_of
from compress.inference.readout import Readout, load_checkpoint, require_numbers

_BLOCK_TOKENS, _DEVICE_BLOCK_TOKENS = 1024, 8192  # a CPU is busy with few, a device needs more


def selection_for(
    config: DistillConfig, store: TokenStore, *, student: Path, teacher: Path | None, inputs: Mapping[str, Any]
) -> Selection | None:
    """What a training takes of a store, after scoring its rows if nobody did; None where it takes all as it comes.

    Raises:
        UsageError: the rows are conversations, whose prompts would be scored like answers.
        UsageError, InputError: as `make_scores`, and as loading the models.
    """
    select = config.scored
    if select is None:
        return None
    if store.marked:
        raise UsageError(
            "distill.select and distill.order score rows of text, and these are conversations: leave them out, or "
            "prepare the data with form: text."
        )
    assert teacher is not None, "check_distill asks for one"

    def score() -> None:
        key = made_of(select, store, inputs)
        if (scores_folder(store, key) / INDEX).is_file():
            return
        guide = load_checkpoint(teacher)
        learner = load_checkpoint(student) if select.by == "student_disagreement" else None
        block = _BLOCK_TOKENS if guide.device.type == "cpu" else _DEVICE_BLOCK_TOKENS

        def of_rows(ids: NDArray[np.int64]) -> NDArray[np.float32]:
            found = token_scores(select.by, torch.from_numpy(ids).to(guide.device), guide, learner)
            return found.view(len(ids), -1).numpy()

        make_scores(store, key, of_rows, keep_tokens=select.of == "tokens", block_tokens=block)

    on_main(score)
    found = find_selection(config, store, inputs)
    assert found is not None
    say(
        f"{found.facts['taken']:,} of {found.facts['count']:,} {select.of} are learned from ({select.by} "
        f"{found.low:.3g} to {found.high:.3g}){', from easy to hard' if not found.shuffled else ''}."
    )
    return found


@torch.inference_mode()
def token_scores(by: str, ids: Tensor, teacher: Readout, student: Readout | None = None) -> Tensor:
    """How hard each token of `ids` [B, S] but the first of a row is, float32 [B (S-1)] on the CPU; see `SelectConfig`.

    With p the teacher's and q the student's distribution, at temperature 1, over the ids that both have.

    Raises:
        InputError: a score is NaN.
    """
    labels = ids[:, 1:].flatten()
    states = teacher.states(ids)[:, :-1].flatten(0, 1)
    others = None if student is None else student.states(ids)[:, :-1].flatten(0, 1)
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
