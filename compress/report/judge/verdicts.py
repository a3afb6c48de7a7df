"""What a score means, in words: guessing, one answer for everything, false certainty, a difference that is noise.

Rules, in the order in which they speak:

- one answer: of at least 10 items, 90% of the picked options stand in one place, or half of the generated answers are
  one text; and in 20 points more of the items than it is right in. Such a score says nothing, whatever it is.
- chance: where the 95% interval of the score lies. Below chance is no knowledge but a habit that guessing lacks.
- the teacher: a difference counts when its paired p, adjusted for the number of tasks (Holm), is under 0.05.
- certainty: over lettered options, a calibration error of 5 points or more that sampling alone does not explain.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from compress.report.cells import percent, points
from compress.report.run_files import Record, number

Level = Literal["alarm", "caution", "fine"]

_FEWEST_ITEMS = 10
_ALWAYS, _NEARLY, _BEYOND_GOLD, _ONE_TEXT = 0.99, 0.9, 0.2, 0.5
SIGNIFICANT = 0.05
_CALIBRATION_POINTS = 0.05


@dataclass(frozen=True, slots=True)
class Verdict:
    """`alarm`: the score must not be read as ability. `caution`: it says little. `fine`: it can be read as it is.

    `text` is all there is to say, `short` the weightiest of it.
    """

    level: Level
    text: str
    short: str


def judge_all(
    evals: Mapping[str, Record],
    scores: Mapping[str, Record],
    compared: Mapping[str, Mapping[str, Record]],
    labels: Mapping[str, str],
) -> list[Record]:
    """`verdicts` of a report: task, model (key), level, text and short, of each model on each task that stands alone.

    The arguments are those of the report: evaluations, `build_scores`, comparisons with the first model, names.
    """
    reference = next(iter(labels.values()), "")
    found = []
    for name, entry in scores.items():
        for key in labels:
            if key in entry and entry["part_of"] is None:
                task = evals[key]["tasks"][name]
                verdict = judge(task, entry[key], entry["chance"], compared.get(key, {}).get(name), reference)
                found.append({"task": name, "model": key, **asdict(verdict)})
    return found


def alarm_lines(report: Record) -> list[str]:
    """What a reader must know before the scores: what was not measured alike, abilities that fell, and what misleads,
    last model first."""
    names = report["labels"]
    alarms = [verdict for verdict in report["verdicts"] if verdict["level"] == "alarm"]
    alarms.sort(key=lambda verdict: -list(names).index(verdict["model"]))
    return [
        *report["mismatches"],
        *report.get("falls", []),
        *(f"{v['task']}, {names[v['model']]}: {v['short']}" for v in alarms),
    ]


def judge(task: Record, score: Record, chance: float | None, compared: Record | None, other: str) -> Verdict:
    """The verdict on one model's score of one task.

    `task` is the task in the eval JSON, `score` the model's entry of `build_scores`, `compared` its row of a
    `Comparison` with the model called `other`, or None.
    """
    one_answer = one_answer_words(task.get("answers"))
    said = [words for words in (one_answer, chance_words(score, chance), difference_words(compared, other)) if words]
    said += [words] if (words := certainty_words(task.get("answers"))) else []
    place = score["versus_chance"]
    level: Level = "alarm" if one_answer or place == "below" else "fine" if place == "above" else "caution"
    said = said or ["no statement: neither its chance level nor its answers are known"]
    text, short = (f"{words[0].upper()}{words[1:]}." for words in ("; ".join(said), said[0]))
    return Verdict(level, text, short)


def one_answer_words(answers: Mapping[str, Any] | None) -> str | None:
    """`always answers A (100% of items; A is right in 23%), so its score measures that habit`, or None."""
    if not answers:
        return None
    if chosen := answers.get("chosen"):
        return _one_option(chosen, answers.get("gold"))
    return _one_text(answers)


def _one_text(answers: Mapping[str, Any]) -> str | None:
    names = ("n", "most_common_share", "most_common_right_share")
    total, share, right = (number(answers.get(name)) for name in names)
    if total is None or share is None or not _one_for_all(total, share, right, _ONE_TEXT):
        return None
    text = answers.get("most_common")
    said = f"gives the same answer, “{text}”," if text else "answers nothing at all"
    known = f"; that is right in {right:.0%}" if right is not None else ""
    return f"{said} to {share:.0%} of items{known}, so its score measures that habit"


def _one_for_all(total: float, share: float, right: float | None, least: float) -> bool:
    """Whether an answer that a `share` of `total` items got, and that is right in `right` of them, is given blindly."""
    return total >= _FEWEST_ITEMS and share >= least and (right is None or share - right >= _BEYOND_GOLD)


def _one_option(chosen: list[int], gold: list[int] | None) -> str | None:
    total = sum(chosen)
    if not total or len(chosen) < 2:
        return None
    place = max(range(len(chosen)), key=lambda i: chosen[i])
    share = chosen[place] / total
    right = gold[place] / total if gold and place < len(gold) else None
    if not _one_for_all(total, share, right, _NEARLY):
        return None
    letter, often = option_letter(place), "always" if share >= _ALWAYS else "nearly always"
    known = f"; {letter} is right in {right:.0%}" if right is not None else ""
    return f"{often} answers {letter} ({share:.0%} of items{known}), so its score measures that habit"


def option_letter(place: int) -> str:
    """0 -> A; numbers from 1 after Z."""
    return chr(ord("A") + place) if 0 <= place < 26 else str(place + 1)


def chance_words(score: Record, chance: float | None) -> str | None:
    """Where a score lies among those of guessing."""
    place = score["versus_chance"]
    if place is None or chance is None:
        return None
    low, high = score["ci95"]
    seen = f"{percent(score['value'])}% [{percent(low)}, {percent(high)}], guessing scores {percent(chance)}%"
    if place == "above":
        return f"above chance ({seen})"
    if place == "below":
        return f"below chance, worse than guessing ({seen}): look at its answers before its score"
    return f"at chance: cannot be told from guessing ({seen}, {score['n']:,} items)"


def difference_words(compared: Record | None, other: str) -> str | None:
    """Whether a model scores otherwise than `other`, or that what they differ by is noise."""
    if compared is None or compared.get("p_value") is None:
        return None
    p_value = compared["p_holm"] if compared["p_holm"] is not None else compared["p_value"]
    size = points(compared["difference"], compared["difference_ci95"])
    if compared["lost"] == compared["gained"] == 0:
        return f"right on the same items as the {other}"
    flips = f"{compared['lost']:,} lost and {compared['gained']:,} gained of {compared['paired_items']:,} items"
    if p_value >= SIGNIFICANT:
        return f"its difference from the {other}, {size} points, is noise ({p_words(p_value)}; {flips})"
    way = "worse" if compared["difference"] < 0 else "better"
    return f"{way} than the {other} by {size} points ({p_words(p_value)}; {flips})"


def p_words(p_value: float | None) -> str:
    """`p = 0.03`, `p < 0.0001`."""
    return "" if p_value is None else "p < 0.0001" if p_value < 0.0001 else f"p = {p_value:.2g}"


def certainty_words(answers: Mapping[str, Any] | None) -> str | None:
    """`overconfident: 71% sure, right in 45% (calibration error 26 points)`.

    Said of lettered options alone: over long ones the softmax of summed log-likelihoods is sharper than the model is.
    """
    if not (answers or {}).get("lettered"):
        return None
    names = ("calibration_error", "calibration_noise95", "confidence", "accuracy")
    error, noise, sure, right = (number((answers or {}).get(name)) for name in names)
    if error is None or noise is None or sure is None or right is None or error < max(_CALIBRATION_POINTS, noise):
        return None
    way = "overconfident" if sure > right else "underconfident"
    return f"{way}: {sure:.0%} sure and right in {right:.0%} (calibration error {100 * error:.0f} points)"
