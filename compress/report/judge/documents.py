"""Models beside each other on one held-out text: differences paired over its documents, and which has the least."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np

from compress.report.judge.significance import holm, sign_flip_test
from compress.report.judge.verdicts import SIGNIFICANT
from compress.report.run_files import Record, number

_Z95 = 1.959963984540054
Key = TypeVar("Key", int, str)


class Measure(NamedTuple):
    """A number of an evaluation, in nats a token: the part of it, its name there, and for people."""

    part: str
    name: str
    title: str

    def of(self, record: Record) -> Record:
        """The part of an evaluation that has it."""
        found: Record = record.get(self.part) or {}
        return found

    def value(self, record: Record) -> float | None:
        """The measure of a model."""
        return number(self.of(record).get(self.name))

    def stderr(self, record: Record) -> float | None:
        """Its standard error over documents."""
        return number(self.of(record).get(f"{self.name}_stderr"))

    def documents(self, record: Record) -> tuple[Any, Any] | None:
        """Tokens and mean of each document [n], float64."""
        by = self.of(record).get("by_document") or {}
        if "tokens" not in by or self.name not in by:
            return None
        return np.array(by["tokens"], dtype=np.float64), np.array(by[self.name], dtype=np.float64)


MEASURES = (Measure("fidelity", "kl_nats", "KL from the teacher"), Measure("heldout", "loss_nats", "held-out loss"))
"""What models are ranked by: the first that all have."""


def beside(evals: Mapping[Key, Record], reference: Key, measure: Measure) -> dict[Key, Record]:
    """How much more of a measure each model has than the reference: `difference`, `ci95`, `p`, and `p_holm`, adjusted
    for their number. Of those alone that have it of the same two or more documents.

    Paired: the mean over tokens, its standard error over documents, and a sign-flip test over those.
    """
    base = measure.documents(evals[reference])
    found: dict[Key, Record] = {}
    for key, record in evals.items():
        own = measure.documents(record)
        if key == reference or base is None or own is None or not np.array_equal(own[0], base[0]) or len(base[0]) < 2:
            continue
        tokens = own[0]
        sums = tokens * (own[1] - base[1])
        difference = float(sums.sum() / tokens.sum())
        left, count = sums - tokens * difference, len(tokens)
        error = math.sqrt(count / (count - 1) * float(np.square(left).sum())) / float(tokens.sum())
        ci95 = [difference - _Z95 * error, difference + _Z95 * error]
        found[key] = {"difference": difference, "ci95": ci95, "p": sign_flip_test(sums)}
    for entry, adjusted in zip(found.values(), holm([entry["p"] for entry in found.values()]), strict=True):
        entry["p_holm"] = adjusted
    return found


def least(evals: Mapping[Key, Record], measure: Measure) -> Key | None:
    """The model that has the least of a measure, if any has it."""
    values = {key: value for key, record in evals.items() if (value := measure.value(record)) is not None}
    return min(values, key=lambda key: values[key], default=None)


def winner_words(names: Mapping[Key, str], evals: Mapping[Key, Record], measure: Measure) -> str | None:
    """Which model has the least, and whether its lead on the next is more than noise; None where none was measured."""
    winner = least(evals, measure)
    if winner is None:
        return None
    value, documents = measure.value(evals[winner]), measure.of(evals[winner]).get("documents")
    over = f" over {documents} documents" if documents else ""
    won = f"{names[winner]} has the least {measure.title}, {value:.4f} nats a token{over}."
    second = least({key: record for key, record in evals.items() if key != winner}, measure)
    if second is None:
        return won
    compared = beside(evals, winner, measure)
    more = measure.value(evals[second]) or 0.0
    ahead = f"Its lead on {names[second]}, {more - (value or 0.0):.4f},"
    if second not in compared:
        return f"{won} {ahead} was not tested: the two have no documents in common."
    p_value = compared[second]["p_holm"]
    tested = f"(p = {p_value:.2g}, paired over the same documents)"
    if p_value < SIGNIFICANT:
        return f"{won} {ahead} is more than noise {tested}."
    ties = sum(entry["p_holm"] >= SIGNIFICANT for entry in compared.values())
    also = f"; {ties} of the others cannot be told from it" if ties > 1 else ""
    return f"{won} {ahead} may be noise {tested}{also}."
