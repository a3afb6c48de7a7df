"""The SQuAD scores against worked examples and a second reading of the official rules (evaluate-v1.1.py)."""

import re
import string
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.evaluate.scores.squad import first_answer, normalize, prompt, squad_scores


def official_normalize(text: str) -> str:
    lowered = "".join(ch for ch in text.lower() if ch not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", lowered).split())


def official_f1(prediction: str, truth: str) -> float:
    p, t = official_normalize(prediction).split(), official_normalize(truth).split()
    same = sum((Counter(p) & Counter(t)).values())
    return 0.0 if same == 0 else 2 * (same / len(p)) * (same / len(t)) / (same / len(p) + same / len(t))


@pytest.mark.parametrize(
    ("answer", "golds", "completion", "em", "f1", "contains"),
    [
        (" France", ["France", "in France"], 1, 1, 1, 1),
        (" france.", ["France"], 0, 1, 1, 1),
        (" the Duchy of Normandy", ["Duchy of Normandy"], 0, 1, 1, 1),
        (" Normandy, a region", ["region of France", "Normandy"], 0, 0, 2 / 3, 1),
        (" 10th", ["10th and 11th centuries"], 0, 0, 2 / 5, 0),
        ("", ["Rollo"], 0, 0, 0, 0),
        (" Denmark", ["Iceland"], 0, 0, 0, 0),
    ],
)
def test_worked_examples(
    answer: str, golds: list[str], completion: float, em: float, f1: float, contains: float
) -> None:
    expected = {"completion": completion, "em": em, "f1": f1, "contains": contains}
    assert squad_scores(answer, golds) == pytest.approx(expected)


words = st.lists(st.sampled_from(["the", "a", "An", "Cat", "cat,", "sat!", "-", "12%", "é", "theme"]), max_size=6)


@given(words, words)
def test_normalisation_and_f1_follow_the_official_rules(answer: list[str], gold: list[str]) -> None:
    a, g = " ".join(answer), "  ".join(gold)
    assert normalize(a) == official_normalize(a)
    scores = squad_scores(a, [g])
    assert scores["f1"] == pytest.approx(official_f1(a, g))
    assert scores["em"] == float(official_normalize(a) == official_normalize(g))


def test_the_prompt_ends_where_the_answer_begins() -> None:
    doc = {"context": "It rains. ", "question": " What falls?", "answers": {"text": ["rain", "Rain"]}}
    assert prompt(doc) == "It rains.\n\nQuestion: What falls?\nAnswer:"
    assert first_answer(doc) == "rain"
