"""The demo's world: short passages about a person, whose facts must be read from the passage to be told again.

    Nora lives in Old Field. Nora sings in White Hill. Nora rests in Green Port. Nora sings in White Hill. ...

What Nora does where is drawn anew for each passage, so nothing about it can be learnt by heart; all the names of a
passage stand in it equally often, so counting does not help; and tests ask about names (pairs of words) that no
training document contains.
"""

import dataclasses
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from compress.base.disk import write_rows
from compress.demo.config import WorldConfig
from compress.demo.lexicon import RELATIONS, all_words, draw_names

NUM_OPTIONS = 4
EOS = "<|endoftext|>"
_DATASET_CARD = """---
configs:
- config_name: choice
  data_files: [{split: test, path: choice/test.jsonl}]
- config_name: completion
  data_files: [{split: test, path: completion/test.jsonl}]
---
A generated world of text: `compress/demo/world.py`.
"""


@dataclasses.dataclass(frozen=True)
class Fact:
    """One thing said of the person a passage is about: `{person} {relation} {name}.`"""

    person: str
    relation: str
    name: str

    @property
    def prompt(self) -> str:
        """The sentence up to the name."""
        return f"{self.person} {self.relation}"

    @property
    def sentence(self) -> str:
        """The whole sentence."""
        return f"{self.prompt} {self.name}."


@dataclasses.dataclass(frozen=True)
class Question:
    """A passage, the start of one of its sentences, and the names that might end it."""

    passage: str
    prompt: str
    options: tuple[str, ...]
    answer: int
    kind: str


def make_passage(rng: random.Random, num_facts: int, *, held_out: bool) -> tuple[str, list[Fact]]:
    """The kind (person, place, thing) and the facts of one passage: other relations, names without a common word."""
    kind = rng.choice(sorted(RELATIONS))
    person = draw_names(rng, "person", 1, held_out=held_out)[0].split()[0]
    names = draw_names(rng, kind, num_facts, held_out=held_out)
    while any(person in name for name in names):
        names = draw_names(rng, kind, num_facts, held_out=held_out)
    relations = rng.sample(RELATIONS[kind], num_facts)
    return kind, [Fact(person, relation, name) for relation, name in zip(relations, names, strict=True)]


def make_documents(seed: int, count: int, *, tellings: int = 2) -> Iterator[str]:
    """Training documents: a passage of one to four facts, told again in other orders. No held-out name."""
    rng = random.Random(f"documents {seed}")
    for _ in range(count):
        _, facts = make_passage(rng, rng.choice((1, 2, 2, 3, 3, 4, 4)), held_out=False)
        told = [facts, *(rng.sample(facts, len(facts)) for _ in range(tellings))]
        yield " ".join(fact.sentence for telling in told for fact in telling)


def make_questions(seed: int, count: int) -> list[Question]:
    """Test questions over passages of four facts whose names are all held out; the options are the passage's names."""
    rng = random.Random(f"questions {seed}")
    questions = []
    for _ in range(count):
        kind, facts = make_passage(rng, NUM_OPTIONS, held_out=True)
        asked = rng.choice(facts)
        options = rng.sample([fact.name for fact in facts], len(facts))
        passage = " ".join(fact.sentence for fact in facts)
        questions.append(Question(passage, asked.prompt, tuple(options), options.index(asked.name), kind))
    return questions


def write_world(out: Path, config: WorldConfig) -> None:
    """Write the world: corpus/train.jsonl, hub/compress/world (both tests) and tokenizer/.

    The same config gives the same bytes.
    """
    documents = make_documents(config.seed, config.documents, tellings=config.tellings)
    write_rows(out / "corpus" / "train.jsonl", ({"id": i, "text": text} for i, text in enumerate(documents)))
    hub = out / "hub" / "compress" / "world"
    write_rows(hub / "choice" / "test.jsonl", map(_choice_row, make_questions(config.seed, config.items)))
    write_rows(hub / "completion" / "test.jsonl", map(_completion_row, make_questions(config.seed + 1, config.items)))
    (hub / "README.md").write_text(_DATASET_CARD, encoding="utf-8")
    save_tokenizer(out / "tokenizer")


def save_tokenizer(out: Path) -> None:
    """Save a byte-level BPE in which each word of the world, with and without a space before it, is one token.

    It encodes any text and decodes it exactly. Merges come from the lexicon alone, so they do not depend on the
    number of documents.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        special_tokens=[EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text for word in all_words() for text in (word, f" {word}", ".")], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=EOS, eos_token=EOS, pad_token=EOS)
    fast.save_pretrained(out)


def score_completion(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """lm-eval's `process_results` of world_completion: whether the generated span is the gold name verbatim."""
    return {"completion": float(results[0].strip() == doc["answer"])}


def _choice_row(question: Question) -> dict[str, Any]:
    return {
        "passage": question.passage,
        "prompt": question.prompt,
        "options": list(question.options),
        "answer": question.answer,
    }


def _completion_row(question: Question) -> dict[str, Any]:
    return {"passage": question.passage, "prompt": question.prompt, "answer": question.options[question.answer]}
