"""The rows and tokens of a store that a training learns from, and the order in which it reads them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.data import TokenStore
from compress.data.store.permutation import permute_epochs
from compress.data.store.scores import Scores, open_scores, scores_folder
from compress.data.store.selection import bounds, describe, distribution, easy_to_hard
from compress.distill.config import DistillConfig
from compress.distill.objective.loss import IGNORE_INDEX
from compress.distill.rows.batch import Ids
from compress.distill.select import SelectConfig, rows_left


@dataclasses.dataclass(frozen=True)
class Selection:
    """What is taken of a store by its scores."""

    rows: Ids
    """[K] numbers of the rows that are read."""
    shuffled: bool
    """Whether they are read in a new random order in each epoch, or each time as they stand here, from easy to hard."""
    tokens: NDArray[np.float16] | None
    """[rows of the store, S - 1] scores of the tokens that are predicted, NaN of those that are not to be learned; None
    where all count."""
    low: float
    high: float
    """The least and the highest score of those taken: of tokens, or else of rows."""
    facts: Mapping[str, Any]
    """Field `selection` of distill.json: what was taken by which scores, and how these are distributed."""

    def row_ids(self, position: int, count: int, *, seed: int) -> Ids:
        """Numbers [count] of the rows that are read after the first `position` of all epochs."""
        places = np.arange(position, position + count, dtype=np.int64)
        number = len(self.rows)
        return self.rows[permute_epochs(places, number, seed=seed) if self.shuffled else places % number]

    def labels(self, labels: Ids, row_ids: Ids) -> Ids:
        """Labels [N, S - 1] of these rows, ignored where their token is not taken."""
        if self.tokens is None:
            return labels
        scores = self.tokens[row_ids]
        return np.where((scores >= self.low) & (scores <= self.high), labels, IGNORE_INDEX)


def made_of(select: SelectConfig, store: TokenStore, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What scores are made of: `inputs` are the hashes of a training's models."""
    student = inputs["student"] if select.by == "student_disagreement" else None
    return {
        "format": "compress-scores-1",
        "by": select.by,
        "of": select.of,
        "data": store.fingerprint,
        "teacher": inputs["teacher"],
        "student": student,
    }


def find_selection(config: DistillConfig, store: TokenStore, inputs: Mapping[str, Any]) -> Selection | None:
    """What a training takes of a store whose scores are there; None where it takes all, in random order.

    Raises:
        InputError: the scores are not there, or damaged.
    """
    select = config.scored
    if select is None:
        return None
    return select_from(config, select, open_scores(scores_folder(store, made_of(select, store, inputs)), store))


def select_from(config: DistillConfig, select: SelectConfig, scores: Scores) -> Selection:
    """What is taken by these scores."""
    left = rows_left(select, len(scores.rows))
    rows = easy_to_hard(scores.rows)[left.start : left.stop]
    found = distribution(scores.rows if scores.tokens is None else scores.tokens)
    if scores.tokens is None:
        low, high, taken = float(scores.rows[rows[0]]), float(scores.rows[rows[-1]]), len(rows)
    else:
        low, high = bounds(found, select.from_, select.to)
        taken = int(found.counts[(found.values >= low) & (found.values <= high)].sum())
    facts = {
        "by": select.by,
        "of": select.of,
        "order": config.order,
        "taken": taken,
        "low": low,
        "high": high,
        "scores": scores.path.name,
        **describe(found),
    }
    shuffled = config.order == "random"
    return Selection(np.sort(rows) if shuffled else rows, shuffled, scores.tokens, low, high, facts)
