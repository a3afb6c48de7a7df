"""Healing vision-language models on text and on rows with images: held against plain transformers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from distill_world import World
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor
from vision_world import PROCESSORS, draw, save_vlm, write_prose, write_rows

from compress.base.disk import sha256_tree
from compress.base.errors import InputError, UsageError
from compress.data import DataConfig, TokenStore, prepare
from compress.data.store.pictures import Picture, PictureReader
from compress.distill import DistillConfig
from compress.distill.rows.source import StoreRows
from compress.evaluate import EvalConfig, evaluate_model
from compress.model.vision import collated, load_processor
from compress.prune import prune

Options = Callable[..., DistillConfig]
SEQ_LEN, HELD = 192, 6
VISION = ("vis", "project", "connector", "image_newline")
"""What names of tower and projector have in them."""
QUICK = EvalConfig(speed=False, samples=0, responses=0)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows"))


def made(root: Path, model_type: str, data: Path, form: Any = "images", **options: Any) -> World:
    """A teacher, a cut of it, and a token store."""
    teacher = save_vlm(root / "teacher", model_type)
    prune(str(teacher), root / "student", "0,2,3")
    config = DataConfig(dataset=str(data), form=form, **{"seq_len": SEQ_LEN, "heldout_sequences": HELD, **options})
    prepare(config, tokenizer=str(teacher), out=root / "data", visible=False)
    return World(root, teacher, root / "student", root / "data")


@pytest.fixture(scope="module", params=PROCESSORS)
def world(request: pytest.FixtureRequest, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    return made(tmp_path_factory.mktemp(request.param), request.param, rows)


def by_hand(folder: Path, picture: Picture) -> tuple[Any, Any]:
    """Inputs of a row as transformers' own processor has them, and labels of its answer alone."""
    processor = AutoProcessor.from_pretrained(folder)
    _, answer = picture.text.split("<|im_start|>assistant\n")
    images = [draw(next(n for n in range(40) if _as_png(n) == picture.images[0]))]
    inputs = processor(text=[picture.text], images=[images], return_tensors="pt", add_special_tokens=False)
    learned = len(processor.tokenizer(answer.removesuffix("\n"), add_special_tokens=False).input_ids)
    labels = torch.full_like(inputs["input_ids"], -100)
    end = -1  # the line's end after the turn's is not learned
    labels[:, end - learned : end] = inputs["input_ids"][:, end - learned : end]
    return inputs, labels


def _as_png(number: int) -> bytes:
    import io

    content = io.BytesIO()
    draw(number).save(content, "png")
    return content.getvalue()


def mean_loss(model: Any, folder: Path, pictures: list[Picture]) -> float:
    """transformers' own loss of each row alone, as a mean over the tokens of all answers."""
    total = count = 0.0
    for picture in pictures:
        inputs, labels = by_hand(folder, picture)
        with torch.no_grad():
            tokens = int((labels != -100).sum())
            total += float(model(**inputs, labels=labels).loss) * tokens
            count += tokens
    return total / count


def test_a_row_is_what_the_processor_makes_of_its_conversation(world: World) -> None:
    store = TokenStore.open(world.data)
    store.verify()
    assert store.pictured
    numbers = np.arange(store.num_rows)
    marks = store.marks(numbers)
    assert marks is not None
    for row, answers, record in zip(store.rows(numbers), marks.answers, store.records(numbers), strict=True):
        inputs, labels = by_hand(world.teacher, Picture.read(record))
        ids, place = inputs["input_ids"][0].numpy(), labels[0].numpy()
        assert np.array_equal(row[: len(ids)], ids)
        assert np.array_equal(np.where(answers, row, -100)[: len(ids)], place)
        assert set(row[len(ids) :]) <= {store.eos_id}
        assert not answers[len(ids) :].any()


def test_scores_are_those_of_plain_transformers_with_the_images(world: World) -> None:
    store = TokenStore.open(world.data)
    pictures = [Picture.read(record) for record in store.heldout_records()]
    found = evaluate_model(world.student, QUICK, teacher=world.teacher, text=world.data)
    student = AutoModelForImageTextToText.from_pretrained(world.student).eval()
    teacher = AutoModelForImageTextToText.from_pretrained(world.teacher).eval()
    assert found["heldout"]["loss_nats"] == pytest.approx(mean_loss(student, world.teacher, pictures), rel=1e-5)
    assert found["heldout"]["rows_with_images"] == HELD
    total = count = 0.0
    for picture in pictures:
        inputs, labels = by_hand(world.teacher, picture)
        with torch.no_grad():
            p, q = (model(**inputs).logits[0, :-1].log_softmax(-1) for model in (teacher, student))
        learned = labels[0, 1:] != -100
        total += float((p.exp() * (p - q)).sum(-1)[learned].sum())
        count += int(learned.sum())
    assert found["fidelity"]["kl_nats"] == pytest.approx(total / count, rel=1e-4)


def test_rows_of_a_batch_go_through_a_model_as_each_does_alone(world: World) -> None:
    store = TokenStore.open(world.data)
    reader = PictureReader.of(store, world.teacher)
    batch = StoreRows(store, 0, 1, 0, False, None, reader=reader).read(np.arange(5))
    assert batch.inputs is not None
    model = AutoModelForImageTextToText.from_pretrained(world.teacher).eval()
    with torch.no_grad():
        together = model(input_ids=torch.from_numpy(batch.ids), **collated(batch.inputs)).logits
        for number, record in enumerate(store.records(np.arange(5))):
            inputs, _ = by_hand(world.teacher, Picture.read(record))
            alone = model(**inputs).logits[0]
            torch.testing.assert_close(together[number, : len(alone)], alone, rtol=1e-4, atol=1e-4)


def test_healing_learns_from_rows_with_images_and_leaves_tower_and_projector_as_they_are(
    world: World, options: Options
) -> None:
    config = options(
        alpha=0.95, epochs=3, tokens=None, batch_tokens=4 * SEQ_LEN, micro_batch_rows=3, lr=1e-3,
        heldout_sequences=HELD, checkpoint_every=0, log_every=1,
    )  # fmt: skip
    world.run("healed", config)
    # the first step's hard term is transformers' loss of its rows, before anything was learned
    store, first = TokenStore.open(world.data), world.metrics("healed")
    learned = next(row for row in first if row.get("step") == 1 and "hard" in row)
    ids = store.row_ids(0, 4, seed=config.seed, epochs=3)
    student = AutoModelForImageTextToText.from_pretrained(world.student).eval()
    pictures = [Picture.read(record) for record in store.records(ids)]
    assert learned["hard"] == pytest.approx(mean_loss(student, world.teacher, pictures), rel=1e-4)

    healed = world.root / "healed" / "student"
    before, after = (load_file(folder / "model.safetensors") for folder in (world.student, healed))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert not [name for name in changed if any(part in name for part in VISION)]
    scores = [
        evaluate_model(folder, QUICK, teacher=world.teacher, text=world.data) for folder in (world.student, healed)
    ]
    assert scores[1]["fidelity"]["kl_nats"] < scores[0]["fidelity"]["kl_nats"]
    model = AutoModelForImageTextToText.from_pretrained(healed)
    inputs, _ = by_hand(healed, pictures[0])
    assert model.generate(**inputs, max_new_tokens=3, do_sample=False).shape[1] > inputs["input_ids"].shape[1]


def test_a_run_on_rows_with_images_that_was_stopped_ends_bitwise_equal(
    rows: Path, options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = made(tmp_path, "idefics3", rows)
    config = options(epochs=2, tokens=None, batch_tokens=6 * SEQ_LEN, checkpoint_every=0, heldout_sequences=2)
    world.run("whole", config)
    world.run_stopped("cut", config, 4, monkeypatch)
    world.run("cut", config)
    cut, whole = (sha256_tree(tmp_path / name / "student", "*.safetensors") for name in ("cut", "whole"))
    assert cut == whole


@pytest.mark.parametrize("model_type", ["llava", "paligemma", "qwen2_vl"])
def test_text_heals_and_scores_a_vision_language_model(model_type: str, options: Options, tmp_path: Path) -> None:
    world = made(tmp_path, model_type, write_prose(tmp_path / "text.txt"), "auto", seq_len=64)
    config = options(alpha=1.0, epochs=3, tokens=None, batch_tokens=512, lr=1e-3, checkpoint_every=0)
    world.run("healed", config)
    scores = [
        evaluate_model(folder, QUICK, teacher=world.teacher, text=world.data)["fidelity"]["kl_nats"]
        for folder in (world.student, tmp_path / "healed" / "student")
    ]
    assert scores[1] < scores[0]
    before, after = (load_file(folder / "model.safetensors") for folder in (world.student, tmp_path / "healed/student"))
    for name in before:
        if any(part in name for part in VISION):
            assert torch.equal(before[name], after[name]), name


def test_what_cannot_be_had_with_images_is_refused_by_name(rows: Path, options: Options, tmp_path: Path) -> None:
    world = made(tmp_path, "llava", rows)
    for changes, what in (
        ({"document_mask": True}, "distill.document_mask cannot be had with rows with images"),
        ({"compile": True}, "distill.compile: true"),
        ({"teacher_precision": "int8"}, "distill.teacher_precision"),
    ):
        with pytest.raises(UsageError, match=what):
            world.run("refused", options(**changes))
    config = DataConfig(dataset=str(rows), form="images", seq_len=SEQ_LEN, heldout_sequences=2)
    other = str(save_vlm(tmp_path / "paligemma", "paligemma"))
    with pytest.raises(UsageError, match=r"data\.form: images cannot be had with .*paligemma"):
        prepare(config, tokenizer=other, out=tmp_path / "no")
    text = DataConfig(dataset=str(rows), form="images", seq_len=64, heldout_sequences=2)
    with pytest.raises(InputError, match="too long"):
        prepare(text, tokenizer=str(world.teacher), out=tmp_path / "short")
    with pytest.raises(UsageError, match="has rows with images, and what is measured"):
        prune(str(world.teacher), tmp_path / "out", **_by_measure(world.data))


def _by_measure(data: Path) -> dict[str, Any]:
    from compress.prune import PruneConfig

    config = PruneConfig(layers=2, by="kl-greedy", calibration=str(data))
    return {"keep": config.choice, **config.how}


def test_bad_rows_are_counted_and_images_may_lie_in_the_rows(rows: Path, tmp_path: Path) -> None:
    import base64

    import pyarrow as pa
    import pyarrow.parquet as pq

    teacher = save_vlm(tmp_path / "teacher", "llava")
    lines = [json.loads(line) for line in rows.read_text().splitlines()]
    for number, line in enumerate(lines):
        line["images"] = [{"bytes": (rows.parent / f"{number}.png").read_bytes(), "path": None}]
    options: dict[str, Any] = {"form": "images", "seq_len": SEQ_LEN, "heldout_sequences": 2}

    def stored(source: Path, name: str) -> TokenStore:
        config = DataConfig(dataset=str(source), **options)
        return prepare(config, tokenizer=str(teacher), out=tmp_path / name, visible=False)

    plain = stored(rows, "plain")
    pq.write_table(pa.Table.from_pylist(lines), tmp_path / "rows.parquet")
    assert stored(tmp_path / "rows.parquet", "table").fingerprint == plain.fingerprint
    for line in lines:
        line["images"] = [{"bytes": base64.b64encode(line["images"][0]["bytes"]).decode()}]
        for message in line["messages"]:
            message["content"] = message["content"][-1]["text"]  # the image goes first
    bad = [{**lines[0], "images": ["nowhere.png"]}, {**lines[1], "images": [{"bytes": "AAAA"}]}, {"images": ["0.png"]}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*bad, *lines]))
    found = stored(tmp_path / "rows.jsonl", "lines")
    assert found.fingerprint == plain.fingerprint
    assert found.index["skipped"]["bad_rows"] == 3
    options["on_bad_row"] = "error"
    with pytest.raises(InputError, match=r"rows\.jsonl, line 1 has an image that cannot be read"):
        stored(tmp_path / "rows.jsonl", "strict")


def test_another_processor_ends_a_run_with_a_message(rows: Path, options: Options, tmp_path: Path) -> None:
    world = made(tmp_path, "idefics3", rows)
    for folder in (world.teacher, world.student):
        path = folder / "processor_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "image_seq_len": 5}))
    with pytest.raises(InputError, match=r"another processor than .* was prepared with"):
        world.run("run", options(tokens=None, batch_tokens=6 * SEQ_LEN, heldout_sequences=2))
    store = TokenStore.open(world.data)
    reader = PictureReader(load_processor(world.teacher), store.path)  # as of another version, with the same files
    with pytest.raises(InputError, match="The processor makes other tokens of a row"):
        reader(store.rows([0]), store.records([0]))
