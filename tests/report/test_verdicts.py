"""The report says in words what a student is worth: one that always answers A, one that guesses, one that is healed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_world import ITEMS, LETTERS, letter_items, letters_run

from compress.evaluate.scores.answers import answer_summary, calibration
from compress.report import write_report
from compress.report.judge.verdicts import certainty_words, difference_words, one_answer_words


def verdicts(run: Path) -> dict[str, dict[str, Any]]:
    write_report(run)
    found = json.loads((run / "report.json").read_text())["verdicts"]
    return {verdict["model"]: verdict for verdict in found}


def test_always_a_at_chance_and_healed_are_told_apart_in_words(tmp_path: Path) -> None:
    teacher, healed = letter_items(0.7, seed=2), letter_items(0.62, seed=3)
    said = verdicts(letters_run(tmp_path / "a", teacher, letter_items(None, seed=4, always=0), healed))
    assert said["student_init"]["level"] == "alarm"
    assert "Always answers A (100% of items; A is right in" in said["student_init"]["text"]
    assert "measures that habit" in said["student_init"]["text"]
    assert said["student"]["level"] == said["teacher"]["level"] == "fine"
    assert said["student"]["text"].startswith("Above chance (")
    assert "worse than the teacher by −" in said["student"]["text"]
    assert "p < 0.0001" in said["student"]["text"]
    for page in ("report.md", "report.html"):
        text = (tmp_path / "a" / page).read_text()
        assert text.index("lways answers A (100%") < text.index("Above chance (")
    guess = verdicts(letters_run(tmp_path / "b", teacher, letter_items(None, seed=4), healed))["student_init"]
    assert guess["level"] == "caution"
    assert guess["text"].startswith("At chance: cannot be told from guessing (")
    assert "answers A" not in guess["text"]
    bad = verdicts(letters_run(tmp_path / "c", teacher, letter_items(0.1, seed=5), healed))["student_init"]
    assert bad["level"] == "alarm"
    assert bad["text"].startswith("Below chance, worse than guessing (")


def test_the_table_of_answers_has_the_favourite_and_its_calibration(tmp_path: Path) -> None:
    run = letters_run(
        tmp_path, letter_items(0.7, seed=2), letter_items(None, seed=4, always=0), letter_items(0.62, seed=3)
    )
    write_report(run)
    answers = json.loads((run / "report.json").read_text())["student_init"]["tasks"]["letters"]["answers"]
    share = 100 * answers["gold"][0] / ITEMS
    ece = 100 * answers["calibration_error"]
    row = f"| letters | cut | A | 100.0 | {share:.1f} | 60.0 | {share:.1f} | {ece:.1f} |"
    assert row in (run / "report.md").read_text()
    assert ece == pytest.approx(abs(60 - share))  # one bin holds all items


def test_a_difference_of_noise_is_called_noise(tmp_path: Path) -> None:
    teacher = letter_items(0.7, seed=2)
    other = [dict(item) for item in teacher]
    for index, change in ((3, 0.0), (5, 0.0), (8, 1.0), (13, 0.0)):
        other[index]["metrics"] = {"acc": change}
    said = verdicts(letters_run(tmp_path, teacher, letter_items(None, seed=4), other))["student"]["text"]
    assert "its difference from the teacher, " in said
    assert "is noise (p = " in said
    assert "worse" not in said
    same = verdicts(letters_run(tmp_path / "same", teacher, letter_items(None, seed=4), teacher))["student"]["text"]
    assert "right on the same items as the teacher" in same


def test_flips_are_counted_listed_and_shown_with_their_text(tmp_path: Path) -> None:
    teacher, healed = letter_items(0.7, seed=2), letter_items(0.62, seed=3)
    run = letters_run(tmp_path, teacher, letter_items(None, seed=4), healed)
    write_report(run)
    flips = [json.loads(line) for line in (run / "flips.jsonl").read_text().splitlines()]
    pairs = list(zip(teacher, healed, strict=True))
    lost = {a["doc_id"] for a, b in pairs if a["metrics"]["acc"] > b["metrics"]["acc"]}
    gained = {a["doc_id"] for a, b in pairs if a["metrics"]["acc"] < b["metrics"]["acc"]}
    assert {flip["doc_id"] for flip in flips if flip["change"] == "lost"} == lost
    assert {flip["doc_id"] for flip in flips if flip["change"] == "gained"} == gained
    first = flips[0]
    item = healed[first["doc_id"]]
    assert first["second"] == LETTERS[item["choice"]]
    assert (first["question"], first["gold"]) == (item["question"], LETTERS[item["gold"][0]])
    report = json.loads((run / "report.json").read_text())
    entry = report["retention"]["letters"]
    assert (entry["lost"], entry["gained"], entry["test"]) == (len(lost), len(gained), "McNemar exact")
    assert (report["flips"]["lost"], report["flips"]["gained"]) == (len(lost), len(gained))
    assert "all" not in report["flips"]
    shown = report["flips"]["examples"][0]["question"]
    assert shown in (run / "report.html").read_text()
    assert shown in (run / "report.md").read_text()


def test_calibration_error_by_hand_and_its_noise() -> None:
    # Bins of 1/15: 0.5 (two of four right) and 0.9 (one of two right).
    error, _ = calibration(np.array([0.5] * 4 + [0.9] * 2), np.array([1.0, 1, 0, 0, 1, 0]))
    assert error == pytest.approx((4 * 0.0 + 2 * 0.4) / 6)
    rng = np.random.default_rng(0)
    beyond = 0
    for _ in range(60):
        sure = rng.uniform(0.25, 1.0, size=400)
        found, noise = calibration(sure, (rng.random(400) < sure).astype(float))
        assert found > 0
        beyond += found > noise
    assert beyond <= 9  # 3 are expected of 60; more than 9 in one of 1,000 such tests


def test_false_certainty_is_called_out_and_chance_miscalibration_is_not() -> None:
    sure = answer_summary(letter_items(0.5, seed=6, sure=0.95))
    assert sure is not None
    words = certainty_words(sure)
    assert words is not None
    assert words.startswith("overconfident: 95% sure and right in ")
    honest = answer_summary(letter_items(0.6, seed=6, sure=0.6))
    assert certainty_words(honest) is None or "overconfident" not in str(certainty_words(honest))
    assert certainty_words(None) is None
    words_for_options = [
        {**item, "options": ["one", "two", "three", "four"]} for item in letter_items(0.5, seed=6, sure=0.95)
    ]
    long = answer_summary(words_for_options)
    assert long is not None
    assert long["calibration_error"] == sure["calibration_error"]
    assert certainty_words(long) is None


def test_one_answer_is_only_called_so_against_the_gold() -> None:
    assert one_answer_words({"chosen": [96, 2, 1, 1], "gold": [95, 2, 2, 1]}) is None
    assert "nearly always answers B (93%" in str(one_answer_words({"chosen": [5, 93, 2], "gold": None}))
    assert one_answer_words({"chosen": [60, 20, 20], "gold": [33, 33, 34]}) is None
    assert one_answer_words({"chosen": [5, 0], "gold": [2, 3]}) is None  # too few to say
    assert answer_summary([{"metrics": {}}]) is None


def written(*answers: tuple[int, str, float | None]) -> list[dict[str, Any]]:
    """Items of generated answers: how often, the answer, how right it is."""
    return [
        {"answer": answer, "metrics": {} if right is None else {"exact_match": right}}
        for times, answer, right in answers
        for _ in range(times)
    ]


@pytest.mark.parametrize(
    ("items", "said"),
    [
        (written((8, "the", 0), (2, "Rome", 1)), "“the”, to 80% of items; that is right in 0%,"),
        (written((6, " ", 0), (2, "", 1), (2, "x", 1)), "nothing at all to 80% of items; that is right in 20%,"),
        (written((10, "the", None)), "gives the same answer, “the”, to 100% of items, so"),
        (written((10, "the", 17.5)), "gives the same answer, “the”, to 100% of items, so"),  # a BLEU, not a share
        (written((6, "yes", 1), (4, "yes", 0)), "“yes”, to 100% of items; that is right in 60%,"),
        (written((7, "yes", 1), (1, "yes", 0), (2, "no", 1)), None),
        (written((9, "the", 0)), None),  # too few to say
        (written(*((1, str(i), 0) for i in range(10))), None),
    ],
)  # fmt: skip
def test_one_text_for_many_items_is_called_so_unless_it_is_right_in_as_many(
    items: list[dict[str, Any]], said: str | None
) -> None:
    words = one_answer_words(answer_summary(items))
    assert words is None if said is None else said in str(words)


def test_the_headline_does_not_call_noise_a_share(tmp_path: Path) -> None:
    teacher = letter_items(0.7, seed=2)
    said = {}
    for name, student in (("healed", letter_items(0.62, seed=3)), ("guessing", letter_items(0.26, seed=9))):
        run = letters_run(tmp_path / name, teacher, letter_items(None, seed=4), student)
        write_report(run)
        said[name] = json.loads((run / "report.json").read_text())
    kept = said["healed"]["overall"]["student"]["chance_corrected"]
    assert f"keeps {kept:.0%} of the teacher's score above chance" in said["healed"]["headline"]
    interval = said["guessing"]["overall"]["student"]["ci95"]
    assert interval[0] <= 0
    assert "keeps no" in said["guessing"]["headline"]


def test_a_difference_is_judged_by_the_adjusted_p() -> None:
    row = {
        "p_value": 0.03,
        "p_holm": 0.12,
        "difference": -0.02,
        "difference_ci95": (-0.04, 0.0),
        "lost": 30,
        "gained": 15,
        "paired_items": 900,
    }
    assert "is noise (p = 0.12" in str(difference_words(row, "teacher"))
    assert "worse than the teacher by −2.0 [−4.0, +0.0] points (p = 0.03" in str(
        difference_words({**row, "p_holm": None}, "teacher")
    )
    assert difference_words(None, "teacher") is None
