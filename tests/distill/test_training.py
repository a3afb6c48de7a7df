"""The training loop against independent computations."""

import dataclasses
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from distill_world import SEQ_LEN, World, losses_of, setting_of
from helpers import save_tiny_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from compress.base.disk import sha256_tree
from compress.data import TokenStore
from compress.distill import DistillConfig
from compress.distill.loop.accelerator import tracker_places
from compress.distill.loop.optimizer import make_optimizer
from compress.distill.loop.step import Losses
from compress.distill.objective.loss import IGNORE_INDEX
from compress.distill.rows.batch import Batch, split
from compress.model.load import load_model

Options = Callable[..., DistillConfig]


def test_plain_language_modelling_equals_transformers_loss_and_torch_adamw(world: World, options: Options) -> None:
    student = save_tiny_model(world.root / "llama", seed=3, scale=0.1, num_hidden_layers=2)
    config = options(alpha=0.0, weight_decay=0.1, clip_norm=0.5, min_lr_fraction=0.1, warmup_fraction=0.25)
    world.run("run", config, student=student, teacher=None)

    model = AutoModelForCausalLM.from_pretrained(student, dtype=torch.float32)
    store = TokenStore.open(world.data)
    matrices = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim != 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.95))
    for step in range(8):
        rows = torch.from_numpy(store.batch(step * 4, 4, config.seed, 1))
        model(input_ids=rows, labels=rows).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        rate = 3e-3 * ((step + 1) / 2 if step < 2 else 0.1 + 0.45 * (1 + math.cos(math.pi * (step - 2) / 5)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()

    trained = AutoModelForCausalLM.from_pretrained(world.root / "run" / "student", dtype=torch.float32)
    start = load_file(student / "model.safetensors")
    for name, parameter in trained.named_parameters():
        expected = dict(model.named_parameters())[name]
        assert (parameter - start[name]).norm() > 1e-3
        torch.testing.assert_close(parameter, expected, rtol=1e-4, atol=2e-5)


def test_a_distilled_student_is_a_plain_checkpoint_with_its_record(world: World, options: Options) -> None:
    result = world.run("run", options(epochs=2, tokens=12 * 4 * SEQ_LEN))
    out = world.root / "run" / "student"
    model, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.dtype == torch.float32
    assert AutoTokenizer.from_pretrained(out).get_vocab() == AutoTokenizer.from_pretrained(world.student).get_vocab()
    record = json.loads((out / "distill.json").read_text())
    assert record["manifest"]["outputs"] == {k: v for k, v in sha256_tree(out).items() if k != "distill.json"}
    assert (record["steps"], record["tokens"], record["skipped_steps"]) == (12, 12 * 4 * SEQ_LEN, 0)
    assert (record["processes"], record["micro_batch_rows"]) == (1, 4096 // SEQ_LEN)
    assert result == dataclasses.replace(result, **record)

    heldout = [row for row in world.metrics("run") if "heldout_loss" in row]
    assert [row["step"] for row in heldout] == [0, 2, 4, 6, 8, 10, 12]
    assert heldout[-1]["heldout_loss"] == record["heldout_loss"] < 0.8 * heldout[0]["heldout_loss"]
    steps = [row for row in world.metrics("run") if "loss" in row]
    keys = ["step", "tokens", "loss", "soft", "hard", "soft_scaled", "hard_scaled", "lr", "grad_norm", "tokens_per_s",
            "mfu", "peak_gib", "skipped", "rows_sha256"]  # fmt: skip
    assert [list(row) for row in steps] == [keys] * 12
    for row in steps:
        assert row["loss"] == pytest.approx(0.8 * row["soft"] + 0.2 * row["hard"], rel=1e-12)


def test_heldout_losses_are_those_of_whole_logits(world: World, options: Options) -> None:
    world.run("run", options(alpha=0.3, temperature=2.0))
    rows = torch.from_numpy(TokenStore.open(world.data).heldout(6))
    models = [AutoModelForCausalLM.from_pretrained(path).double().eval() for path in (world.student, world.teacher)]
    with torch.no_grad():
        student, teacher = (model(rows).logits[:, :-1].flatten(0, 1) for model in models)
    log_p, log_q = torch.log_softmax(teacher / 2, -1), torch.log_softmax(student / 2, -1)
    soft = 4 * torch.nn.functional.kl_div(log_q, log_p, log_target=True, reduction="batchmean")
    hard = torch.nn.functional.cross_entropy(student, rows[:, 1:].flatten())
    first = world.metrics("run")[0]
    assert first["heldout_soft"] == pytest.approx(float(soft), rel=1e-5)
    assert first["heldout_hard"] == pytest.approx(float(hard), rel=1e-6)


def gradients(world: World, config: DistillConfig, rows: Any, labels: Any) -> tuple[list[torch.Tensor], torch.Tensor]:
    student, teacher = (load_model(path, dtype=torch.float32) for path in (world.student, world.teacher))
    losses = losses_of(config, student, teacher, world.root)
    terms = losses.backward(
        losses.share(Batch(ids=rows, labels=labels, row_ids=np.arange(len(rows)))), setting_of(config)
    )
    values = torch.stack([terms["soft"].raw, terms["hard"].raw])
    return [p.grad for p in student.parameters() if p.grad is not None], values


@pytest.mark.faults(11)
@pytest.mark.parametrize(("alpha", "count"), [(0.8, 8), (1.0, 8), (0.0, 8), (0.8, 5)])
def test_accumulation_is_exact_with_uneven_ignored_labels(
    world: World, options: Options, alpha: float, count: int
) -> None:
    """Soft and hard terms together and alone; the last micro-batch is a partial one, and so may be the batch."""
    rows = TokenStore.open(world.data).batch(0, count, 0, 1)
    labels = rows[:, 1:].copy()
    for row in range(count):
        labels[row, : 4 * row] = IGNORE_INDEX
    labels[2] = IGNORE_INDEX
    whole, loss = gradients(world, options(micro_batch_rows=8, temperature=2.0, alpha=alpha), rows, labels)
    for size in (1, 3):
        pieces, same = gradients(world, options(micro_batch_rows=size, temperature=2.0, alpha=alpha), rows, labels)
        torch.testing.assert_close(same, loss, rtol=1e-6, atol=0)
        for a, b in zip(pieces, whole, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("n", "processes", "size"), [(8, 1, 3), (7, 2, 2), (1, 4, 8), (9, 3, 1)])
def test_processes_share_a_batch_without_loss_or_repetition(n: int, processes: int, size: int) -> None:
    rows = np.arange(n * 3).reshape(n, 3)
    weights = np.ones((n, 2), np.float32)
    batch = Batch(ids=rows, labels=rows[:, 1:], row_ids=np.arange(n), weights=weights, sources=tuple("abcdefghi"[:n]))
    shares = [split(batch, size=size, processes=processes, rank=r) for r in range(processes)]
    assert len({tuple(len(piece) for piece in share) for share in shares}) == 1
    pieces = [piece for share in shares for piece in share]
    assert max(len(piece) for piece in pieces) <= size
    counted = [piece.take(np.flatnonzero((piece.labels != IGNORE_INDEX).any(1))) for piece in pieces]
    assert np.concatenate([piece.ids for piece in counted]).tolist() == rows.tolist()
    assert [int(row) for piece in counted for row in piece.row_ids] == list(range(n))
    assert "".join(tag for piece in counted for tag in piece.sources or ()) == "abcdefghi"[:n]


def test_bf16_trains_fp32_weights_and_saves_what_is_asked(world: World, options: Options) -> None:
    world.run("run", options(precision="bf16", save_dtype="bf16"))
    checkpoint = load_file(world.root / "run/train/checkpoints/step-8/model.safetensors")
    saved = load_file(world.root / "run/student/model.safetensors")
    assert {t.dtype for t in checkpoint.values()} == {torch.float32}
    assert {t.dtype for t in saved.values()} == {torch.bfloat16}
    world.run("exact", options(precision="fp32"))
    records = [json.loads((world.root / name / "student/distill.json").read_text()) for name in ("run", "exact")]
    assert [record["precision"] for record in records] == ["bf16", "fp32"]
    ends = [world.metrics(name)[-1]["heldout_loss"] for name in ("run", "exact")]
    assert ends[0] != ends[1]
    assert ends[0] == pytest.approx(ends[1], rel=0.02)


def test_gradient_checkpointing_changes_memory_only(world: World, options: Options) -> None:
    student = save_tiny_model(world.root / "llama", seed=3, scale=0.1, num_hidden_layers=2)
    for name, on in (("plain", False), ("recomputed", True)):
        world.run(name, options(gradient_checkpointing=on, tokens=2 * 4 * SEQ_LEN), student=student)
    first, second = (load_file(world.root / n / "student/model.safetensors") for n in ("plain", "recomputed"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def poison(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    """Make the gradients of some 0-based steps NaN."""
    backward, done = Losses.backward, iter(range(10**6))

    def poisoned(self: Losses, batch: Any, *told: object) -> Any:
        out = backward(self, batch, *told)
        if next(done) in steps:
            next(iter(self._model.parameters())).grad[0] = math.nan
        return out

    monkeypatch.setattr(Losses, "backward", poisoned)


@pytest.mark.faults(9)
def test_a_step_that_is_not_finite_is_skipped_and_counted(
    world: World, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, {4, 5})
    config = options(checkpoint_every=1, keep_checkpoints=8)
    result = world.run("run", config)
    assert result.skipped_steps == 2
    tensors = [
        {file: load_file(world.root / f"run/train/checkpoints/step-{n}/{file}.safetensors") for file in names}
        for n in (4, 6, 7)
        for names in [("model", "optimizer")]
    ]
    same = [torch.equal(tensors[0][f][k], tensors[1][f][k]) for f in tensors[0] for k in tensors[0][f]]
    assert all(same)
    assert not torch.equal(tensors[1]["model"]["transformer.wte.weight"], tensors[2]["model"]["transformer.wte.weight"])
    assert [row["grad_norm"] is None for row in world.metrics("run") if "loss" in row] == [
        False, False, False, False, True, True, False, False,
    ]  # fmt: skip


def test_weight_decay_is_on_matrices_only(world: World, options: Options) -> None:
    model = load_model(world.student, dtype=torch.float32)
    decayed, plain = make_optimizer(model, options(weight_decay=0.1)).param_groups
    assert {p.ndim for p in decayed["params"]} == {2}
    assert {p.ndim for p in plain["params"]} == {1}
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)


def test_trackers_get_the_numbers(world: World, options: Options) -> None:
    pytest.importorskip("tensorboard")
    world.run("run", options(trackers=("tensorboard",)))
    assert list(Path(world.root / "run" / "train").rglob("events.out.tfevents*"))


def test_trackers_write_into_the_trainings_folder(
    tmp_path: Path, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As wandb 0.31 and mlflow 3.18 take it, which are not among the packages that tests have."""
    told: list[str] = []
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(set_tracking_uri=told.append))
    for name in ("WANDB_DIR", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    config = options(trackers=("wandb", "mlflow"))
    places = tracker_places(config, tmp_path)
    assert places == {"wandb": {"dir": str(tmp_path)}, "mlflow": {"logging_dir": f"{tmp_path}/mlruns"}}
    assert told == [f"sqlite:///{tmp_path}/mlflow.db"]
    for name in ("WANDB_DIR", "MLFLOW_TRACKING_URI"):
        monkeypatch.setenv(name, "elsewhere")
    assert tracker_places(config, tmp_path) == {}
    assert len(told) == 1, "what the user says stays"


def test_how_often_held_out_text_is_measured_does_not_touch_the_student(world: World, options: Options) -> None:
    written = {}
    for every in ("auto", 1, 0):
        world.run(str(every), options(heldout_every=every, checkpoint_every=2))
        measured = [row["step"] for row in world.metrics(str(every)) if "heldout_loss" in row]
        steps = world.metrics(str(every))[-1]["step"]
        expected = {"auto": [0, steps], 1: list(range(steps + 1)), 0: [0, *range(2, steps, 2), steps]}[every]
        assert measured == expected
        written[every] = (world.root / str(every) / "student" / "model.safetensors").read_bytes()
    assert written["auto"] == written[1] == written[0]
