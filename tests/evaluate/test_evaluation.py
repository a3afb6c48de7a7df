"""The whole measurement: text from a store and raw, the JSON, and its errors."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from helpers import save_tiny_model

from compress.base.currency import inputs_now
from compress.base.errors import InputError, UsageError
from compress.data import DataConfig, prepare
from compress.evaluate import EvalConfig, evaluate_model, evaluation_inputs
from compress.evaluate.text.heldout import load_heldout
from compress.inference.readout import load_checkpoint
from compress.model.framing import Framing

DOCUMENTS = [f"Document {i} says that été follows spring, and that {i} times {i} is {i * i}." for i in range(60)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("evaluation")
    text = folder / "text.jsonl"
    text.write_text("".join(json.dumps({"text": t}) + "\n" for t in DOCUMENTS))
    model = save_tiny_model(folder / "model", seed=1)
    prepare(DataConfig(dataset=str(text), seq_len=32, heldout_sequences=6), model, folder / "store", visible=False)
    return {"folder": folder, "text": text, "store": folder / "store", "model": model}


def config(**options: Any) -> EvalConfig:
    return EvalConfig(**{"speed": False, "device": "cpu", "samples": 2, "sample_tokens": 3, **options})


def test_raw_rows_are_the_documents_joined_by_eos(place: dict[str, Path]) -> None:
    checkpoint = load_checkpoint(place["model"], device="cpu")
    found = load_heldout(place["text"], checkpoint, config(heldout_sequences=5, heldout_seq_len=90), Framing())
    eos, encode = checkpoint.tokenizer.eos_token_id, checkpoint.tokenizer
    stream = [i for text in DOCUMENTS for i in [*encode(text)["input_ids"], eos]]
    assert found.rows.flatten().tolist() == stream[: 5 * 90]
    # Byte tokens: a predicted token is a byte unless it is EOS or the inside of a character (counted with its first).
    flat = b"".join(text.encode() + b"\0" for text in DOCUMENTS)[:450]
    sizes = [0 if b == 0 or 0x80 <= b < 0xC0 else 2 if b >= 0xC0 else 1 for b in flat]
    assert found.text_bytes == sum(sum(sizes[r * 90 + 1 : (r + 1) * 90]) for r in range(5))


def test_a_short_text_gives_one_short_row_and_a_short_context_shorter_rows(place: dict[str, Path]) -> None:
    checkpoint = load_checkpoint(place["model"], device="cpu")
    (place["folder"] / "short.txt").write_text("Only this.\n")
    assert load_heldout(place["folder"] / "short.txt", checkpoint, config(), Framing()).rows.shape == (1, 11)
    assert load_heldout(place["text"], checkpoint, config(heldout_sequences=2), Framing()).rows.shape == (2, 256)


def test_the_whole_measurement_on_a_token_store(place: dict[str, Path]) -> None:
    out = place["folder"] / "eval" / "student.json"
    teacher = save_tiny_model(place["folder"] / "teacher", seed=2)
    result = evaluate_model(
        place["model"], config(heldout_sequences=4, speed=True), teacher=teacher, text=place["store"], out=out
    )
    assert json.loads(out.read_text()) == json.loads(json.dumps(result))
    heldout, fidelity = result["heldout"], result["fidelity"]
    assert heldout["tokens"] == fidelity["tokens"] == 4 * 31
    assert heldout["perplexity"] == pytest.approx(math.exp(heldout["loss_nats"]))
    assert fidelity["kl_nats"] > 0 < fidelity["js_nats"] < math.log(2)
    assert result["bytes"] == (place["model"] / "model.safetensors").stat().st_size
    assert result["params"] == 257 * 32 + 4 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64 + 2 * 32) + 32
    assert len(result["samples"]) == 2
    speed = result["speed"]
    assert speed["prefill_tokens_per_s"] > 0
    assert [shape["batch"] for shape in speed["shapes"]] == [shape["batch"] for shape in speed["teacher"]["shapes"]]
    assert fidelity["responses"]["prompts"] == 4
    assert fidelity["draft"]["cost_ratio"] == speed["latency_ms_p50"] / speed["teacher"]["latency_ms_p50"]
    assert fidelity["draft"]["greedy"]["acceptance_rate"] == fidelity["top1_agreement"]
    assert result["tasks"] == {}
    assert result["manifest"]["config"]["heldout_sequences"] == 4
    inputs = evaluation_inputs(
        lambda: place["model"], config(), teacher=lambda: teacher, text=lambda: place["store"], earlier=out
    )
    assert result["manifest"]["inputs"] == inputs_now(inputs)
    assert not list(out.parent.glob("*partial"))
    assert not list(out.parent.glob(".*"))


def test_inputs_change_with_the_content_of_the_text_and_the_model(place: dict[str, Path]) -> None:
    note, out = place["folder"] / "note.txt", place["folder"] / "none.json"

    def found(text: Path) -> dict[str, Any]:
        return inputs_now(evaluation_inputs(lambda: place["model"], config(), text=lambda: text, earlier=out))

    inputs = []
    for content in ("a b\n", "a b\n", "a c\n"):
        note.write_text(content)
        inputs.append(found(note))
    assert inputs[0] == inputs[1] != inputs[2]
    assert inputs[0] != found(place["text"])


@pytest.fixture(scope="module")
def other(place: dict[str, Path]) -> dict[str, Path]:
    """Text of another kind: raw, and as a token store."""
    raw = place["folder"] / "other.jsonl"
    raw.write_text(
        "".join(json.dumps({"text": f"{i} {i * i} {i**3}; {i % 7}! " * (2 + i % 5)}) + "\n" for i in range(40))
    )
    prepare(DataConfig(dataset=str(raw), seq_len=48, heldout_sequences=9), place["model"], place["folder"] / "others")
    return {"raw": raw, "store": place["folder"] / "others"}


def scored(fidelity: dict[str, Any] | None) -> dict[str, Any] | None:
    """What is measured on the text itself, and not on what is written after its beginnings."""
    return fidelity and {name: value for name, value in fidelity.items() if name != "responses"}


@pytest.mark.parametrize("kind", ["raw", "store"])
def test_other_text_is_scored_as_the_text_is(kind: str, place: dict[str, Path], other: dict[str, Path]) -> None:
    teacher = save_tiny_model(place["folder"] / "guide", seed=3)
    options: dict[str, Any] = {"heldout_sequences": 7, "heldout_seq_len": 40, "batch_tokens": 100}
    alone = evaluate_model(place["model"], config(**options), teacher=teacher, text=other[kind])
    without = evaluate_model(place["model"], config(**options), teacher=teacher, text=place["store"])
    both = config(**options, other_text=str(other[kind]))
    beside = evaluate_model(place["model"], both, teacher=teacher, text=place["store"])
    fidelity = scored(alone["fidelity"])
    assert beside["other_text"] == {"source": str(other[kind]), "heldout": alone["heldout"], "fidelity": fidelity}
    assert alone["heldout"]["loss_nats_stderr"] > 0 < alone["fidelity"]["kl_nats_stderr"]
    assert without["other_text"] is None
    parts = ("heldout", "fidelity", "samples")
    assert {part: beside[part] for part in parts} == {part: without[part] for part in parts}
    only = evaluate_model(place["model"], both)
    assert only["heldout"] is only["fidelity"] is None
    assert only["other_text"] == {"source": str(other[kind]), "heldout": alone["heldout"], "fidelity": None}


def test_other_text_is_an_input_where_there_is_one(place: dict[str, Path], other: dict[str, Path]) -> None:
    def found(source: Path | None) -> dict[str, Any]:
        asked = config(other_text=None if source is None else str(source))
        return inputs_now(evaluation_inputs(lambda: place["model"], asked, earlier=place["folder"] / "none.json"))

    assert "other_text" not in found(None)
    note = place["folder"] / "other.txt"
    note.write_text("a b\n")
    first = found(note)
    (place["folder"] / "moved").mkdir()
    moved = note.rename(place["folder"] / "moved" / "other.txt")
    assert found(moved) == first
    moved.write_text("a c\n")
    assert found(moved) != first
    assert "other_text" not in found(note)  # it is not there, which is no evidence of a change
    out = place["folder"] / "with-other.json"
    result = evaluate_model(place["model"], config(other_text=str(other["store"])), out=out)
    assert result["manifest"]["inputs"] == found(other["store"])


def test_other_text_that_cannot_be_used_is_refused(place: dict[str, Path], other: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="nothing-here"):
        evaluate_model(place["model"], config(other_text="nothing-here"), text=place["text"])
    with pytest.raises(UsageError, match="--text"):
        evaluate_model(place["model"], config(other_text=str(other["raw"])), teacher=place["model"])
    asked = config(other_text=str(place["folder"]))
    with pytest.raises(UsageError, match="all of which is read as text"):
        evaluate_model(place["model"], asked, text=place["text"], out=place["folder"] / "inside.json")
    bare = DataConfig(dataset=str(other["raw"]), seq_len=32, heldout_sequences=0)
    prepare(bare, place["model"], place["folder"] / "bare", visible=False)
    with pytest.raises(InputError, match="no held-out rows"):
        evaluate_model(place["model"], config(other_text=str(place["folder"] / "bare")))


def test_given_prompts_are_continued(place: dict[str, Path]) -> None:
    result = evaluate_model(place["model"], config(), prompts=["One", "Two", "Three"])
    assert [sample["prompt"] for sample in result["samples"]] == ["One", "Two"]


def test_a_teacher_needs_text_and_the_output_must_be_a_file(place: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="--text"):
        evaluate_model(place["model"], config(), teacher=place["model"])
    with pytest.raises(UsageError, match="is a folder"):
        evaluate_model(place["model"], config(), out=place["folder"])
    with pytest.raises(UsageError, match=r"text.jsonl is a file"):
        evaluate_model(place["model"], config(), out=place["text"] / "o.json")
    with pytest.raises(UsageError, match="device = 'cuda:77'"):
        evaluate_model(place["model"], config(device="cuda:77"))


def test_text_that_cannot_be_used_is_named(place: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="nothing-here"):
        evaluate_model(place["model"], config(), text="nothing-here")
    with pytest.raises(InputError, match="'body'"):
        evaluate_model(place["model"], config(text_column="body"), text=place["text"])
    (place["folder"] / "empty.txt").write_text("\n")
    with pytest.raises(InputError, match="no text"):
        evaluate_model(place["model"], config(), text=place["folder"] / "empty.txt")


def test_a_store_of_another_tokenizer_or_of_too_long_rows_is_refused(place: dict[str, Path]) -> None:
    short = save_tiny_model(place["folder"] / "short", max_position_embeddings=16)
    with pytest.raises(InputError, match=r"32 tokens.*at most 16"):
        evaluate_model(short, config(), text=place["store"])
    other = save_tiny_model(place["folder"] / "other")
    definition = json.loads((other / "tokenizer.json").read_text())
    definition["model"]["vocab"] = {t: 255 - i if i < 256 else i for t, i in definition["model"]["vocab"].items()}
    (other / "tokenizer.json").write_text(json.dumps(definition))
    with pytest.raises(InputError, match="another tokenizer"):
        evaluate_model(other, config(), text=place["store"])
