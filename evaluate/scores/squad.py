"""SQuAD completion: the model reads a passage and a question, and completes the answer span greedily.

The prompt is the passage, a blank line, `Question: ...` and `Answer:`; decoding stops at a newline or after 32 tokens.
The task is `squad_completion_verbatim` (lm-eval's `squad_completion`, on another data set, keeps its name).
"""

import collections
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def prompt(doc: Mapping[str, Any]) -> str:
    """The text a model completes."""
    return f"{doc['context'].strip()}\n\nQuestion: {doc['question'].strip()}\nAnswer:"


def first_answer(doc: Mapping[str, Any]) -> str:
    """The gold answer shown in few-shot examples."""
    return str(doc["answers"]["text"][0])


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """lm-eval's hook: the four scores of one generated answer."""
    return squad_scores(results[0], doc["answers"]["text"])


def squad_scores(answer: str, golds: Sequence[str]) -> dict[str, float]:
    """Scores of a generated span, each the best over the gold answers, in [0, 1].

    `completion`: equal to a gold answer verbatim, outer white space aside. `em` and `f1`: SQuAD v1.1's exact match and
    token F1 after its normalisation (Rajpurkar et al., arXiv:1606.05250, section 6.1, and its evaluate-v1.1.py).
    `contains`: a gold answer occurs in it, letter case aside (as in lm-eval's `squad_completion`).
    """
    span = answer.strip()
    return {
        "completion": float(span in {gold.strip() for gold in golds}),
        "em": max(float(normalize(span) == normalize(gold)) for gold in golds),
        "f1": max(token_f1(span, gold) for gold in golds),
        "contains": max(float(gold.strip().lower() in span.lower()) for gold in golds),
    }


def normalize(text: str) -> str:
    """SQuAD's normalisation: lower case, no ASCII punctuation, no articles, single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def token_f1(answer: str, gold: str) -> float:
    """Harmonic mean of token precision and recall after normalisation; 0 when no token is shared."""
    found, wanted = normalize(answer).split(), normalize(gold).split()
    shared = sum((collections.Counter(found) & collections.Counter(wanted)).values())
    if shared == 0:
        return 0.0
    precision, recall = shared / len(found), shared / len(wanted)
    return 2 * precision * recall / (precision + recall)
