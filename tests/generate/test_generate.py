"""What a model writes is what transformers lets it write, drawn from its own distribution, the same after any stop."""

import dataclasses
import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from chat_world import CHATML, chat_tokenizer
from commands import warm
from fault_injection import Signal
from helpers import run_cli, save_tiny_model
from scipy.stats import chisquare
from transformers import AutoModelForCausalLM, AutoTokenizer

from compress.base.disk import read_rows, sha256_file
from compress.base.errors import InputError, UsageError
from compress.data import DataConfig, prepare
from compress.generate import GenerateConfig, generate
from compress.generate.rewriting import agrees
from compress.inference.sampling import Sampler

EOS = 256
GREEDY = GenerateConfig(temperature=0, new_tokens=24, prompt_tokens=9, dtype="float32")


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Fourteen texts, some with a common beginning, two the same."""
    words = ["the river", "the river bend", "the river bend is", "a stone", "été à la mer", "b", "the riv", "a stone"]
    rows = [{"text": f"{word} and {'more of it ' * (n % 4)}"} for n, word in enumerate(words * 2)][:14]
    return write(tmp_path_factory.mktemp("texts") / "texts.jsonl", rows)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "llama")


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that ends about one token in ten: with <|im_end|>, as its generation config says."""
    folder = save_tiny_model(
        tmp_path_factory.mktemp("model") / "chat", scale=0.02, vocab_size=261, max_position_embeddings=1024
    )
    chat_tokenizer(CHATML).save_pretrained(folder)
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        loaded.lm_head.weight[258] = 0.0
    loaded.generation_config.eos_token_id = [EOS, 258, *range(97, 109)]  # and letters a to l, so that answers end
    loaded.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
def test_greedy_answers_are_those_of_transformers_one_by_one(kind: str, texts: str, tmp_path: Path) -> None:
    """Of a model whose prompts are shared, and of one with windows, which transformers writes for."""
    folder = save_tiny_model(tmp_path / "model", kind)
    generate(folder, texts, tmp_path / "out", dataclasses.replace(GREEDY, unfinished="keep", batch_tokens=200))
    loaded, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    expected = []
    for row in read_rows(Path(texts)):
        ids = torch.tensor([tokenizer(row["text"])["input_ids"][:9]])
        out = loaded.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False)[0]
        expected.append({"text": tokenizer.decode(out, skip_special_tokens=True)})
    assert read_rows(tmp_path / "out" / "rows.jsonl") == expected


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (1.3, 0.6)])
def test_tokens_are_drawn_from_the_distribution(temperature: float, top_p: float) -> None:
    logits = torch.tensor([2.0, -1.0, 0.5, 3.0, 0.0, -40.0, 1.5])
    p = (logits.double() / temperature).softmax(0).numpy()
    order = np.argsort(-p)
    kept = order[: int(np.searchsorted(np.cumsum(p[order]), top_p) + 1)]
    nucleus = np.zeros_like(p)
    nucleus[kept] = p[kept] / p[kept].sum()
    draws = 20_000
    sampler = Sampler(temperature, top_p, seed=3, names=[str(number) for number in range(100)])
    found = torch.cat([sampler(logits.expand(100, -1), range(100)) for _ in range(draws // 100)])
    counts = np.bincount(found.numpy(), minlength=len(p))
    likely = nucleus > 1e-4
    assert counts[~likely].sum() <= 2
    assert chisquare(counts[likely], nucleus[likely] / nucleus[likely].sum() * counts[likely].sum()).pvalue > 1e-3


def test_an_answer_has_its_own_draws() -> None:
    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(0))
    together = Sampler(1.0, 1.0, 5, ["a", "b", "c"])
    first = [together(logits.expand(3, -1), [0, 1, 2]).tolist() for _ in range(6)]
    alone, other = Sampler(1.0, 1.0, 5, ["b"]), Sampler(1.0, 1.0, 6, ["b"])
    assert [row[1] for row in first] == [int(alone(logits, [0])) for _ in range(6)]
    assert [row[1] for row in first] != [int(other(logits, [0])) for _ in range(6)]
    assert Sampler(0.0, 1.0, 5, ["a"])(logits, [0]).tolist() == logits.argmax(1).tolist()


def test_samples_do_not_depend_on_the_batch_and_are_different(model: Path, texts: str, tmp_path: Path) -> None:
    config = GenerateConfig(new_tokens=12, prompt_tokens=9, samples=3, dtype="float32")
    for name, batch_tokens in (("large", 8192), ("small", 30)):
        generate(model, texts, tmp_path / name, dataclasses.replace(config, batch_tokens=batch_tokens))
    rows = [read_rows(tmp_path / name / "rows.jsonl") for name in ("large", "small")]
    assert rows[0] == rows[1]
    assert 3 * 14 - 3 < len(rows[0]) <= 3 * 14  # one in 257 ends at once
    assert len({row["text"] for row in rows[0]}) == len(rows[0])  # also of the two texts that are the same


QUESTIONS: dict[str, list[dict[str, Any]]] = {
    "alpaca": [{"instruction": "add", "input": "1 2", "output": "3"}],
    "alpaca without answers": [{"instruction": "add", "input": "1 2"}],
    "chat": [{"messages": [{"role": "user", "content": "add\n\n1 2"}, {"role": "assistant", "content": "3"}]}],
    "chat without an answer": [{"messages": [{"role": "user", "content": "add\n\n1 2"}]}],
    "completion": [{"prompt": "add\n\n1 2", "completion": "3"}],
    "prompts alone": [{"prompt": "add\n\n1 2"}],
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_conversations_are_answered_in_the_models_own_template(name: str, chat_model: Path, tmp_path: Path) -> None:
    prompts = write(tmp_path / "a.jsonl", QUESTIONS[name] * 40)
    result = generate(chat_model, prompts, tmp_path / "out", GenerateConfig(new_tokens=40, dtype="float32"))
    rows = read_rows(tmp_path / "out" / "rows.jsonl")
    assert result.rows == len(rows)
    assert len(rows) + result.empty + result.left_out == 40
    assert {json.dumps(row["messages"][0]) for row in rows} == {json.dumps({"role": "user", "content": "add\n\n1 2"})}
    assert {row["messages"][1]["role"] for row in rows} == {"assistant"}
    tokenizer = AutoTokenizer.from_pretrained(chat_model)
    prompt = "<|im_start|>user\nadd\n\n1 2<|im_end|>\n<|im_start|>assistant\n"
    assert result.prompt_tokens == 40 * len(tokenizer(prompt)["input_ids"])
    store = prepare(
        DataConfig(dataset=str(tmp_path / "out"), seq_len=128, heldout_sequences=0), chat_model, tmp_path / "store"
    )
    assert store.marked
    assert store.index["documents"] == len(rows)


def test_the_draws_are_the_models_own(chat_model: Path, tmp_path: Path) -> None:
    """First tokens of many answers to one prompt, against the model's own distribution in float64."""
    prompts = write(tmp_path / "a.jsonl", QUESTIONS["prompts alone"])
    config = GenerateConfig(new_tokens=1, samples=3000, unfinished="keep", dtype="float32")
    generate(chat_model, prompts, tmp_path / "out", config)
    rows = read_rows(tmp_path / "out" / "rows.jsonl")
    tokenizer = AutoTokenizer.from_pretrained(chat_model)
    ids = torch.tensor([tokenizer("<|im_start|>user\nadd\n\n1 2<|im_end|>\n<|im_start|>assistant\n")["input_ids"]])
    with torch.no_grad():
        p = AutoModelForCausalLM.from_pretrained(chat_model).double()(ids).logits[0, -1].softmax(0)
    letters = [token for token in range(256) if (text := tokenizer.decode([token])).isascii() and text.isalpha()]
    letters = [token for token in letters if token not in range(97, 109)]
    written = [row["messages"][1]["content"] for row in rows]
    counts = np.array([written.count(tokenizer.decode([token])) for token in letters])
    expected = 3000 * p[letters].numpy()
    assert abs(counts.sum() - expected.sum()) < 4 * np.sqrt(expected.sum())
    assert chisquare(counts, expected / expected.sum() * counts.sum()).pvalue > 1e-3


def test_killed_anywhere_it_goes_on_to_the_same_bytes(model: Path, texts: str, tmp_path: Path) -> None:
    options = ["--new-tokens=12", "--samples=2", "--set=generate.batch_tokens=60", "--set=generate.dtype=float32"]
    command = ["generate", str(model), texts]
    uncut = run_cli(*command, str(tmp_path / "uncut"), *options)
    assert uncut.returncode == 0, uncut.stderr
    cut = [*command, str(tmp_path / "cut"), *options]
    for moment in (
        Signal(at=("compress.generate.answers:Writer._write",), call=5),
        Signal(at=("os:replace",), path="*cut"),
    ):
        struck = warm().run((moment,), *cut)
        assert struck.struck
        assert struck.returncode == -9
        assert not (tmp_path / "cut").exists()
    done = run_cli(*cut)
    assert "batches are done" in done.stderr
    assert sha256_file(tmp_path / "cut" / "rows.jsonl") == sha256_file(tmp_path / "uncut" / "rows.jsonl")
    assert {path.name for path in tmp_path.iterdir()} == {"cut", "uncut"}
    again = run_cli(*cut)
    assert "is written already" in again.stderr
    other = run_cli(*cut, "--seed=1")
    assert other.returncode == 2
    assert "was written otherwise: seed was 0 and is 1" in other.stderr


def test_what_is_unfinished_or_empty_is_counted(chat_model: Path, tmp_path: Path) -> None:
    prompts = write(tmp_path / "a.jsonl", QUESTIONS["prompts alone"] * 30)
    short = GenerateConfig(new_tokens=4, dtype="float32")
    left = generate(chat_model, prompts, tmp_path / "left", short)
    kept = generate(chat_model, prompts, tmp_path / "kept", dataclasses.replace(short, unfinished="keep"))
    assert left.left_out == left.unfinished > 0
    assert left.rows == 30 - left.empty - left.left_out
    assert (kept.left_out, kept.rows) == (0, 30 - kept.empty)
    assert "left out" in left.describe()
    with pytest.raises(InputError, match=r"No answer came to its end within 1 tokens: raise generate\.new_tokens"):
        generate(chat_model, prompts, tmp_path / "none", dataclasses.replace(short, new_tokens=1))
    assert not (tmp_path / "none").exists()


def test_what_cannot_be_written_is_refused(model: Path, texts: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no chat template"):
        generate(model, texts, tmp_path / "out", GenerateConfig(new_tokens=8, chat=True))
    with pytest.raises(UsageError, match=r"new_tokens = 4096 leaves no room for a prompt"):
        generate(model, texts, tmp_path / "out", GenerateConfig(new_tokens=4096))
    unasked = write(tmp_path / "e.jsonl", [{"messages": [{"role": "system", "content": "x"}]}])
    with pytest.raises(InputError, match="has no row that makes a prompt"):
        generate(model, unasked, tmp_path / "out", GenerateConfig(new_tokens=8))
    with pytest.raises(UsageError, match=r"limit .* is required for the hub dataset org/name"):
        generate(model, "org/name", tmp_path / "out")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="nothing is written over it"):
        generate(model, texts, tmp_path / "taken")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e.jsonl", "taken"]


@pytest.mark.parametrize(
    ("answer", "reference", "same"),
    [
        ("So it is 1,234 in all.", "12 * 100 = 1200, 1200 + 34 = 1234\n#### 1234", True),
        ("So it is 1235.", "12 * 100 = 1200\n#### 1234", False),
        ("It must be -3.5 then", r"Therefore \boxed{-3.5}.", True),
        ("paris, of course", "Paris", True),
        ("Lyon", "Paris", False),
        ("The new york times is it.", "New York", True),
        ("Newer York", "New York", False),
        ("whatever", "a longer text of which nobody can tell", True),
    ],
)
def test_answers_that_come_to_the_same_agree(answer: str, reference: str, same: bool) -> None:
    assert agrees(answer, reference) == same


def test_answers_written_anew_stand_in_the_rows_they_were_of(chat_model: Path, tmp_path: Path) -> None:
    """With its own answer as a hint; a short answer is never met by a model that writes at random, and stays."""
    long = "an answer of more words than can be told apart"
    asked = [{"instruction": f"do {n}", "input": "it", "output": "yes" if n % 2 else long} for n in range(30)]
    config = GenerateConfig(new_tokens=30, rewrite=True, dtype="float32")
    result = generate(chat_model, write(tmp_path / "a.jsonl", asked), tmp_path / "out", config)
    rows = read_rows(tmp_path / "out" / "rows.jsonl")
    assert [row["messages"][0]["content"] for row in rows] == [f"do {n}\n\nit" for n in range(30)]
    answers = [row["messages"][1]["content"] for row in rows]
    assert set(answers[1::2]) == {"yes"}
    anew = [answer for answer in answers[::2] if answer != long]
    assert len(anew) == 30 - result.unchanged > 0
    hint = "a reference answer. Using the reference answer as a guide, write your own response.\n\n### Instruction:\n"
    tokenizer = AutoTokenizer.from_pretrained(chat_model)
    prompts = [
        f"<|im_start|>user\nBelow are an instruction that describes a task along with {hint}do {n}\n\nit\n\n"
        f"### Reference Answer:\n{row['output']}\n\n### Response:<|im_end|>\n<|im_start|>assistant\n"
        for n, row in enumerate(asked)
    ]
    assert result.prompt_tokens == sum(len(tokenizer(prompt)["input_ids"]) for prompt in prompts)
    with pytest.raises(UsageError, match="rewrite is of conversations"):
        generate(chat_model, write(tmp_path / "t.jsonl", [{"text": "x"}]), tmp_path / "none", config)


class Recorded:
    """What vLLM's `LLM` and `SamplingParams` are given; the answers end each with the token of its prompt's length."""

    calls: ClassVar[list[Any]] = []

    def __init__(self, **options: Any) -> None:
        self.options = options

    def generate(self, prompts: list[Any], settings: list["Recorded"], *, use_tqdm: bool) -> list[Any]:
        Recorded.calls.append((self.options, prompts, [each.options for each in settings]))
        answers = [[97, len(prompt["prompt_token_ids"]), EOS] for prompt in prompts]
        return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=answer)]) for answer in answers]


def test_vllm_is_asked_for_the_same(model: Path, texts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its interface alone: vLLM itself needs a GPU."""
    config = GenerateConfig(new_tokens=12, prompt_tokens=9, samples=2, temperature=0.8, top_p=0.9, engine="vllm")
    with pytest.raises(UsageError, match="vllm, which is not installed"):
        generate(model, texts, tmp_path / "out", config)
    module = ModuleType("vllm")
    module.LLM = module.SamplingParams = Recorded  # type: ignore[attr-defined]
    module.__spec__ = ModuleSpec("vllm", None)
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setattr("compress.generate.vllm.metadata.version", lambda _: "0")
    result = generate(model, texts, tmp_path / "out", config)
    ((engine, prompts, settings),) = Recorded.calls
    assert engine["model"] == str(model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    expected = [tokenizer(row["text"])["input_ids"][:9] for row in read_rows(Path(texts)) for _ in range(2)]
    assert [prompt["prompt_token_ids"] for prompt in prompts] == expected
    assert len({each.pop("seed") for each in settings}) == len(settings) == 28
    stops = {"stop_token_ids": [EOS], "detokenize": False}
    assert settings == 28 * [{"temperature": 0.8, "top_p": 0.9, "max_tokens": 12, **stops}]
    assert result.rows == 28
    first = tokenizer.decode([*expected[0], 97, len(expected[0])])
    assert read_rows(tmp_path / "out" / "rows.jsonl")[0] == {"text": first}
