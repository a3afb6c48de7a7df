"""Text selected by how hard it is: scores from the models' own logits, and what a run then reads."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from distill_world import SEQ_LEN, World
from transformers import AutoModelForCausalLM

from compress.base.config import from_flags
from compress.base.errors import InterruptedRun, UsageError
from compress.data import TokenStore
from compress.data.store.order import START, extend
from compress.distill import DistillConfig
from compress.distill.loop import train
from compress.distill.loop.step import Losses
from compress.distill.rows.scoring import row_scores
from compress.distill.rows.selection import find_selection
from compress.distill.rows.source import packed
from compress.distill.select import SelectConfig, rows_left
from compress.inference.readout import load_checkpoint
from compress.run.options import DistillOptions
from compress.verify import verify_run


@pytest.fixture
def world(base_world: World, tmp_path: Path) -> World:
    """The shared models, and a store of its own to keep scores in."""
    shutil.copytree(base_world.data, tmp_path / "data")
    return dataclasses.replace(base_world, root=tmp_path, data=tmp_path / "data")


MEASURES = ("teacher_loss", "teacher_wrong", "disagreement", "student_disagreement")


def plain_scores(by: str, ids: Any, teacher: Path, student: Path) -> Any:
    """[B, S - 1] from transformers' logits in float64."""
    with torch.no_grad():
        log_p, log_q = (
            AutoModelForCausalLM.from_pretrained(folder)(torch.as_tensor(ids)).logits[:, :-1].double().log_softmax(-1)
            for folder in (teacher, student)
        )
    labels = torch.as_tensor(ids)[:, 1:, None]
    p = log_p.exp().gather(-1, labels)[..., 0]
    found = {
        "teacher_loss": -p.log(),
        "teacher_wrong": (log_p.argmax(-1) != labels[..., 0]).double(),
        "disagreement": 1 - p,
        "student_disagreement": (log_p.exp() * (log_p - log_q)).sum(-1),
    }
    return found[by].numpy()


@pytest.mark.parametrize("by", MEASURES)
def test_scores_are_those_of_the_plain_logits(world: World, by: str) -> None:
    rows = TokenStore.open(world.data).rows(range(5))
    teacher, student = (load_checkpoint(folder, device="cpu") for folder in (world.teacher, world.student))
    batch = packed(rows, np.arange(5))
    found = row_scores(by, batch, teacher, student if by == "student_disagreement" else None)
    expected = plain_scores(by, rows, world.teacher, world.student)
    assert found == pytest.approx(expected, abs=2e-5)
    assert expected.std() > 1e-3


def rows_hash(ids: list[int], step: int) -> list[str]:
    """The hash of the data's order after each step of so many rows."""
    digest, found = START, []
    for start in range(0, len(ids), step):
        digest = extend(digest, np.array(ids[start : start + step]))
        found.append(digest)
    return found


@pytest.mark.parametrize("order", ["easy_to_hard", "random"])
@pytest.mark.parametrize("by", ["teacher_loss", "student_disagreement"])
def test_a_run_reads_the_selected_rows_in_the_order_asked_for(
    world: World, options: Callable[..., DistillConfig], by: Any, order: Any
) -> None:
    store = TokenStore.open(world.data)
    means = plain_scores(by, store.rows(range(store.num_rows)), world.teacher, world.student).mean(axis=1)
    select = SelectConfig(by=by, from_=0.2, to=0.7)
    config = options(select=select, order=order, tokens=None, epochs=2, batch_tokens=5 * SEQ_LEN)
    done = world.run("run", config)
    selection = find_selection(config, store, done.manifest["inputs"])
    assert selection is not None
    rows = selection.rows.tolist()
    assert len(set(rows)) == len(rows) == round(0.7 * len(means)) - round(0.2 * len(means))
    taken = np.sort(means)[round(0.2 * len(means)) : round(0.7 * len(means))]
    assert (means[rows] if order == "easy_to_hard" else np.sort(means[rows])) == pytest.approx(taken, abs=1e-5)

    read = selection.row_ids(0, 2 * len(rows), seed=config.seed).tolist()
    assert [row["rows_sha256"] for row in world.metrics("run") if "rows_sha256" in row] == rows_hash(read, 5)
    assert [sorted(epoch) for epoch in (read[: len(rows)], read[len(rows) :])] == [sorted(rows)] * 2
    if order == "easy_to_hard":
        assert read == rows * 2
    else:
        assert read[: len(rows)] != read[len(rows) :]
    assert done.selection is not None
    assert (done.selection["taken"], done.selection["count"]) == (len(rows), store.num_rows)
    checks = {check.name: check for check in verify_run(world.root / "run", data=world.data)}
    for name in ("train: data order", "train: rows used once"):
        assert checks[name].status == "ok", checks[name]
    with pytest.raises(UsageError, match=rf"distill.select leaves {len(rows)}, {2 * len(rows)} in epochs = 2"):
        world.run("more", dataclasses.replace(config, tokens=(2 * len(rows) + 1) * SEQ_LEN))


def test_tokens_that_are_not_taken_predict_nothing(
    world: World, options: Callable[..., DistillConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the teacher's right and wrong: the two halves of all labels, whose losses add up to that of all."""
    seen: dict[str, Any] = {}
    share = Losses.share
    store = TokenStore.open(world.data)
    rows = store.rows(range(store.num_rows))
    wrong = plain_scores("teacher_wrong", rows, world.teacher, world.student) > 0
    assert 0 < wrong.mean() < 1
    for name, part in {"right": {"to": 0.0}, "wrong": {"from_": 1.0}}.items():
        batches = []

        def noted(self: Losses, batch: Any, batches: list[Any] = batches) -> Any:
            batches.append(batch)
            return share(self, batch)

        monkeypatch.setattr(Losses, "share", noted)
        done = world.run(name, options(select=SelectConfig(by="teacher_wrong", of="tokens", **part)))
        seen[name] = [batch for batch in batches if not np.array_equal(batch.ids, store.heldout()[: len(batch.ids)])]
        assert done.selection is not None
        assert done.selection["taken"] == (wrong if name == "wrong" else ~wrong).sum()
    for right, other in zip(seen["right"], seen["wrong"], strict=True):
        assert np.array_equal(right.row_ids, other.row_ids)
        labels = rows[right.row_ids][:, 1:]
        assert np.array_equal(right.labels, np.where(wrong[right.row_ids], -100, labels))
        assert np.array_equal(other.labels, np.where(wrong[right.row_ids], labels, -100))


def test_a_stopped_run_goes_on_with_the_same_scores(
    world: World, options: Callable[..., DistillConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = options(select=SelectConfig(of="tokens", from_=0.1, to=0.6), order="easy_to_hard")
    world.run("whole", config)
    scored = [path for path in world.data.iterdir() if path.name.startswith("scores-")]
    rate = train.learning_rate

    def stopping(config: DistillConfig, step: int, steps: int) -> float:
        if step == 4:
            raise InterruptedRun("stopped")
        return rate(config, step, steps)

    with monkeypatch.context() as patch:
        patch.setattr(train, "learning_rate", stopping)
        with pytest.raises(InterruptedRun):
            world.run("cut", config)
    world.run("cut", config)
    weights = [(world.root / name / "student" / "model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert weights[0] == weights[1]
    assert [path for path in world.data.iterdir() if path.name.startswith("scores-")] == scored


def test_shares_side_by_side_are_all_rows_and_each_once() -> None:
    for count in range(40):
        parts = [rows_left(SelectConfig(from_=a, to=b), count) for a, b in ((0.0, 0.3), (0.3, 0.5), (0.5, 1.0))]
        assert [row for part in parts for row in part] == list(range(count))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"select": {"from": 0.5, "to": 0.5}}, "nothing is left"),
        ({"select": {"from": 0.9, "to": 0.1, "of": "tokens"}}, "nothing is left"),
        ({"select": {"by": "luck"}}, "teacher_loss"),
    ],
)
def test_shares_that_are_none_are_refused_when_read(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        from_flags(DistillOptions, {"data": {"dataset": "x"}, "distill": change}, ())


def test_without_a_teacher_nothing_is_hard(world: World, options: Callable[..., DistillConfig]) -> None:
    with pytest.raises(UsageError, match="go by what a teacher says of the text: name one"):
        world.run("run", options(alpha=0.0, order="easy_to_hard"), teacher=None)
