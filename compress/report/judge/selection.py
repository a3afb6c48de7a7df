"""What of the text was learned from, in words."""

import itertools

from compress.report.run_files import Record

_MEASURES = {
    "teacher_loss": "the teacher's loss, nats a token",
    "teacher_wrong": "the share of tokens that the teacher gets wrong",
    "disagreement": "1 - the teacher's probability of the token",
    "student_disagreement": "KL(teacher || student) at the start, nats a token",
}


def selection_of(report: Record) -> Record | None:
    """What distill.json says of the selection; None where all of the text was read as it comes."""
    found: Record | None = (report.get("train") or {}).get("selection")
    return found


def measured_in(selection: Record) -> str:
    """What the scores are."""
    return _MEASURES.get(selection["by"], str(selection["by"]))


def selection_words(selection: Record) -> str:
    """`400 of 1,000 rows, whose ... is 1.2 to 3.4, from easy to hard`."""
    order = ", read from easy to hard" if selection["order"] == "easy_to_hard" else ""
    return (
        f"{selection['taken']:,} of {selection['count']:,} {selection['of']}, of which {measured_in(selection)}, is "
        f"{selection['low']:.3g} to {selection['high']:.3g}{order}"
    )


def taken_bins(selection: Record) -> list[bool]:
    """Of each bin of the histogram, whether scores in it may have been taken; the last has all beyond it."""
    edges = selection["histogram"]["edges"]
    low, high = selection["low"], selection["high"]
    last = len(edges) - 2
    return [
        low <= (upper if i < last else max(upper, low)) and high >= lower
        for i, (lower, upper) in enumerate(itertools.pairwise(edges))
    ]
