"""The demo's world: the same bytes from a seed, unseen names in its tests, and no way round reading the passage."""

import json
import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from datasets import load_dataset
from transformers import AutoTokenizer

from compress.base.disk import sha256_tree
from compress.demo import DEMO, WorldConfig, write_world
from compress.demo.lexicon import RELATIONS, VOCABULARIES, is_held_out
from compress.demo.world import Question, make_documents, make_questions
from compress.evaluate import EvalConfig, evaluate_model
from compress.prune import prune

QUESTIONS = make_questions(0, 1200)


def held_out_names() -> set[str]:
    return {
        f"{first} {second}"
        for firsts, seconds in VOCABULARIES.values()
        for i, first in enumerate(firsts)
        for j, second in enumerate(seconds)
        if is_held_out(i, j)
    }


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        (tmp_path / name).mkdir()
        write_world(tmp_path / name, WorldConfig(seed=seed, documents=50, items=20))
    assert sha256_tree(tmp_path / "a") == sha256_tree(tmp_path / "b")
    corpora = [sha256_tree(tmp_path / name / "corpus") for name in ("a", "c")]
    assert corpora[0] != corpora[1]


def test_tests_ask_only_about_names_that_training_never_shows() -> None:
    held_out = held_out_names()
    assert all(set(question.options) <= held_out for question in QUESTIONS)
    for document in make_documents(0, 3000):
        words = document.replace(".", "").split()
        pairs = {f"{first} {second}" for first, second in pairwise(words)}
        assert not pairs & held_out


def test_every_word_of_a_held_out_name_occurs_in_training() -> None:
    """So that an unseen name is a new pair of known words, not an unknown word."""
    for firsts, seconds in VOCABULARIES.values():
        seen = {(i, j) for i in range(len(firsts)) for j in range(len(seconds)) if not is_held_out(i, j)}
        assert {i for i, _ in seen} == set(range(len(firsts)))
        assert {j for _, j in seen} == set(range(len(seconds)))


@pytest.mark.parametrize("question", QUESTIONS[:100])
def test_a_question_has_one_answer_and_it_stands_in_the_passage(question: Question) -> None:
    assert f"{question.prompt} {question.options[question.answer]}." in question.passage
    assert question.passage.count(question.prompt) == 1
    assert len(set(question.options)) == 4
    assert all(question.passage.count(option) == 1 for option in question.options)


HEURISTICS: dict[str, Callable[[Question, random.Random], str]] = {
    "random": lambda q, rng: rng.choice(q.options),
    "first named": lambda q, rng: min(q.options, key=q.passage.index),
    "last named": lambda q, rng: max(q.options, key=q.passage.index),
    "most frequent, then at random": lambda q, rng: max(q.options, key=lambda o: (q.passage.count(o), rng.random())),
    "longest": lambda q, rng: max(q.options, key=len),
    "first option": lambda q, rng: q.options[0],
}


@pytest.mark.parametrize("name", HEURISTICS)
def test_what_does_not_read_the_passage_stays_near_chance(name: str) -> None:
    """Chance is 1/4; with 1,200 questions its standard error is 0.0125, and 0.30 lies four of them above."""
    rng = random.Random(0)
    right = [HEURISTICS[name](question, rng) == question.options[question.answer] for question in QUESTIONS]
    assert sum(right) / len(right) < 0.30


def test_a_relation_says_nothing_about_the_answer() -> None:
    """Guessing the first word that most often follows a relation in training is no better than chance."""
    follows: dict[str, dict[str, int]] = {}
    for document in make_documents(0, 3000):
        for sentence in document.rstrip(".").split(". "):
            person, _, rest = sentence.partition(" ")
            assert person in VOCABULARIES["person"][0]
            relation = next(r for relations in RELATIONS.values() for r in relations if rest.startswith(f"{r} "))
            counts = follows.setdefault(relation, {})
            word = rest.removeprefix(relation).split()[0]
            counts[word] = counts.get(word, 0) + 1
    right = 0
    for question in QUESTIONS:
        counts = follows[question.prompt.partition(" ")[2]]
        guess = max(question.options, key=lambda option: counts.get(option.split()[0], 0))
        right += guess == question.options[question.answer]
    assert right / len(QUESTIONS) < 0.30


def test_the_files_are_what_datasets_and_transformers_read(tmp_path: Path) -> None:
    write_world(tmp_path, WorldConfig(documents=20, items=8))
    folder = str(tmp_path / "hub" / "compress" / "world")
    choice = load_dataset(folder, "choice", split="test", cache_dir=str(tmp_path / "cache"))
    completion = load_dataset(folder, "completion", split="test", cache_dir=str(tmp_path / "cache"))
    assert (len(choice), len(completion)) == (8, 8)
    assert choice[0]["options"][choice[0]["answer"]] in choice[0]["passage"]
    assert completion[0]["answer"] in completion[0]["passage"]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    text = "Größe 42\n\t<tag> 漢字 Nora lives in Old Field."
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    words = tokenizer.tokenize("Nora lives in Old Field.")
    assert words == ["Nora", "Ġlives", "Ġin", "ĠOld", "ĠField", "."]


def test_the_carried_teacher_reads_and_the_cut_one_does_not(tmp_path: Path) -> None:
    """The demo's own tests, on 60 items: far above chance with the passage, at chance without it."""
    write_world(tmp_path / "world", WorldConfig(documents=1, items=60))
    prune(DEMO / "teacher", tmp_path / "cut")
    config = EvalConfig(
        tasks=["world_choice", "world_completion"],
        task_folder=str(DEMO / "tasks"),
        datasets_root=str(tmp_path / "world" / "hub"),
        speed=False,
    )
    teacher = evaluate_model(DEMO / "teacher", config)["tasks"]
    cut = evaluate_model(tmp_path / "cut", config)["tasks"]
    assert teacher["world_choice"]["acc"] >= 0.75
    assert teacher["world_choice"]["chance"] == 0.25
    assert teacher["world_completion"]["completion"] >= 0.7
    assert cut["world_choice"]["acc"] <= teacher["world_choice"]["acc"] - 0.25
    assert cut["world_completion"]["completion"] <= teacher["world_completion"]["completion"] - 0.25
    for row in (tmp_path / "world" / "hub" / "compress" / "world").rglob("test.jsonl"):
        blind = [{**json.loads(line), "passage": ""} for line in row.read_text().splitlines()]
        row.write_text("".join(json.dumps(item) + "\n" for item in blind))
    without_passage = evaluate_model(DEMO / "teacher", config)["tasks"]
    assert without_passage["world_choice"]["acc"] < 0.5
    assert without_passage["world_completion"]["completion"] < 0.1
