"""The seams of a training: a new term, another teacher, and measures that no option touches."""

import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from distill_world import SEQ_LEN, World, losses_of
from transformers import AutoModelForCausalLM

from compress.data import TokenStore
from compress.distill import DistillConfig, plan_distill
from compress.distill.loop.guard import StepGuard
from compress.distill.loop.progress import Progress
from compress.distill.objective import objective
from compress.distill.objective.part import Outcome, Pair
from compress.distill.objective.signals import Needs, Signals
from compress.distill.rows.batch import MicroBatch
from compress.distill.rows.source import StoreRows
from compress.distill.teachers.source import LiveTeacher
from compress.model.load import load_config, load_model

Options = Callable[..., DistillConfig]
WEIGHT = 0.25


@dataclasses.dataclass(frozen=True)
class Nearness:
    """A third term: how far the student's first block is from the teacher's, a mean of squares."""

    weights = {"near": WEIGHT}  # noqa: RUF012
    needs = Needs(student_blocks=(0,), teacher_blocks=(0,), autograd=True)

    def __call__(self, student: Signals, teacher: Signals | None, batch: MicroBatch, num_tokens: float) -> Outcome:
        assert teacher is not None
        raw = (student.blocks[0] - teacher.blocks[0]).square().mean(-1).sum(dtype=torch.float64) / num_tokens
        return Outcome(WEIGHT * raw, raw.detach()[None])


@pytest.fixture
def near(monkeypatch: pytest.MonkeyPatch) -> None:
    """All it takes: its name, and what makes it."""
    monkeypatch.setitem(objective.PARTS, "near", lambda config, pair: Nearness())


@pytest.mark.usefixtures("near")
def test_a_new_term_is_in_the_loss_and_its_gradient(world: World, options: Options) -> None:
    """Against the sum of three dense losses by autograd, in micro-batches of one row."""
    student, teacher = (load_model(path, dtype=torch.float32) for path in (world.student, world.teacher))
    losses = losses_of(options(micro_batch_rows=1), student, teacher, world.root)
    rows = _rows(world)
    batch = rows.read(rows.row_ids(0, 3))
    terms = losses.backward(losses.share(batch))
    gradients = [p.grad.clone() for p in student.parameters() if p.grad is not None]
    assert list(terms) == ["soft", "hard", "near"]

    student.eval().zero_grad()
    ids = torch.from_numpy(batch.ids)
    outs = [model(ids, output_hidden_states=True, use_cache=False) for model in (student, teacher)]
    log_q, log_p = (out.logits[:, :-1].flatten(0, 1).log_softmax(-1) for out in outs)
    soft = torch.nn.functional.kl_div(log_q, log_p, log_target=True, reduction="batchmean")
    hard = torch.nn.functional.nll_loss(log_q, ids[:, 1:].flatten())
    # a student of one block: transformers' last hidden state is after the norm, so the block is asked by a hook
    seen: list[torch.Tensor] = []
    handle = student.transformer.h[0].register_forward_hook(lambda m, a, out: seen.append(_first(out)))
    student(ids, use_cache=False)
    handle.remove()
    distance = (seen[0] - outs[1].hidden_states[1])[:, :-1].square().mean()
    loss = 0.8 * soft + 0.2 * hard + WEIGHT * distance
    loss.backward()
    for name, expected in (("soft", soft), ("hard", hard), ("near", distance)):
        assert float(terms[name].raw) == pytest.approx(expected.item(), rel=1e-5)
    assert objective.loss_of(terms).item() == pytest.approx(loss.item(), rel=1e-5)
    expected_gradients = [p.grad for p in student.parameters() if p.grad is not None]
    torch.testing.assert_close(gradients, expected_gradients, rtol=2e-4, atol=1e-6)


@pytest.mark.usefixtures("near")
def test_a_new_term_is_logged_measured_watched_and_planned(world: World, options: Options) -> None:
    config = options(gradient_checkpointing=True, spike_sigma=6.0)
    world.run("run", config)
    steps = [row for row in world.metrics("run") if "loss" in row]
    for row in steps:
        assert row["loss"] == pytest.approx(0.8 * row["soft"] + 0.2 * row["hard"] + WEIGHT * row["near"], rel=1e-12)
    held = [row for row in world.metrics("run") if "heldout_loss" in row]
    assert held[-1]["heldout_near"] < held[0]["heldout_near"]
    parts = (0.8 * held[0]["heldout_soft"], 0.2 * held[0]["heldout_hard"], WEIGHT * held[0]["heldout_near"])
    assert held[0]["heldout_loss"] == pytest.approx(sum(parts), rel=1e-12)
    state = json.loads((world.root / "run/train/checkpoints/step-8/state.json").read_text())
    assert state["recent_losses"] == pytest.approx([row["loss"] for row in steps], rel=1e-12)

    guard = StepGuard(config, torch.device("cpu"), total=0, in_a_row=0, recent=[])
    for value, bad in ((1.0, 0.0), (math.nan, 1.0)):
        terms = {name: objective.Term(torch.tensor(1.0, dtype=torch.float64), 0.5) for name in ("soft", "hard")}
        terms["near"] = objective.Term(torch.tensor(value, dtype=torch.float64), WEIGHT)
        assert float(guard.note(0, terms, torch.tensor(1.0))) == bad

    models = {name: load_config(getattr(world, name)) for name in ("student", "teacher")}
    plan = plan_distill(config, **models, num_rows=100, seq_len=SEQ_LEN, device=torch.device("cpu"))
    assert plan.memory_bytes["signals"] == 4 * SEQ_LEN * 2 * models["student"].hidden_size * 4


def test_without_it_there_are_two_terms_and_no_signals(world: World, options: Options) -> None:
    pair = Pair(load_config(world.student), load_config(world.teacher))
    made = objective.make_objective(options(alpha=0.3), pair)
    assert made.weights == {"soft": 0.3, "hard": 0.7}
    assert made.needs == Needs()
    alone = objective.make_objective(options(alpha=0.0), pair._replace(teacher=None))
    assert alone.weights == {"hard": 1.0}
    plan = plan_distill(options(), student=pair.student, teacher=pair.teacher, num_rows=100, seq_len=SEQ_LEN)
    assert "signals" not in plan.memory_bytes


OBJECTIVES: list[dict[str, Any]] = [
    {},
    {"alpha": 0.0},
    {"alpha": 1.0, "temperature": 3.0},
    {"divergence": "jensen_shannon", "temperature": 0.5},
    {"divergence": "cross_entropy"},
]


@pytest.mark.parametrize("changes", OBJECTIVES)
def test_what_runs_are_compared_by_is_the_same_whatever_they_minimise(
    world: World, options: Options, changes: dict[str, Any]
) -> None:
    """Of the student as it was before the first step, against whole logits in float64."""
    rows = torch.from_numpy(TokenStore.open(world.data).heldout(6))
    models = [AutoModelForCausalLM.from_pretrained(path).double().eval() for path in (world.student, world.teacher)]
    with torch.no_grad():
        log_q, log_p = (model(rows).logits[:, :-1].flatten(0, 1).log_softmax(-1) for model in models)
    kl = float((log_p.exp() * (log_p - log_q)).sum(-1).mean())
    hard = float(torch.nn.functional.nll_loss(log_q, rows[:, 1:].flatten()))
    result = world.run("run", options(tokens=4 * SEQ_LEN, **changes))
    first = world.metrics("run")[0]
    assert first["heldout_kl"] == pytest.approx(kl, rel=1e-5)
    assert first["heldout_hard"] == pytest.approx(hard, rel=1e-6)
    last = world.metrics("run")[-1]
    assert (result.heldout_kl, result.heldout_hard) == (last["heldout_kl"], last["heldout_hard"])
    assert result.best_by == "heldout_kl"
    assert f"held-out KL from the teacher {result.heldout_kl:.4f}" in result.describe()


def test_without_a_teacher_runs_are_compared_by_cross_entropy(world: World, options: Options) -> None:
    result = world.run("run", options(alpha=0.0), teacher=None)
    held = [row for row in world.metrics("run") if "heldout_loss" in row]
    assert {row["heldout_kl"] for row in held} == {None}
    assert (result.best_by, result.best_heldout_hard) == ("heldout_hard", min(row["heldout_hard"] for row in held))
    assert result.heldout_kl is None
    assert f"held-out loss {result.heldout_hard:.4f} (best" in result.describe()


def test_the_best_step_is_that_of_least_kl_and_the_others_are_of_that_step() -> None:
    run = Progress(best_by="heldout_kl")
    for loss, kl, hard in ((3.0, 0.5, 4.0), (2.0, 0.9, 3.0), (2.5, 0.4, 3.5), (1.0, math.nan, 1.0)):
        run.note_heldout({"loss": loss, "kl": kl, "hard": hard})
    assert (run.best_heldout_kl, run.best_heldout_loss, run.best_heldout_hard) == (0.4, 2.5, 3.5)
    assert (run.heldout_kl, run.heldout_loss) == (None, 1.0)


class KnownTeacher:
    """A source that runs no model: it has each row's hidden states by the row's number."""

    def __init__(self, hidden: dict[int, torch.Tensor], head: Any) -> None:
        self._hidden, self._head = hidden, head

    def __call__(self, batch: MicroBatch) -> Signals:
        states = torch.stack([self._hidden[int(row)] for row in batch.row_ids])
        return Signals(batch.with_label(states), self._head, {})


def test_a_teacher_that_is_known_by_row_trains_as_one_that_is_run(world: World, options: Options) -> None:
    """So a cache is one new source: a micro-batch says of which rows it is."""
    rows = _rows(world)
    batch = rows.read(rows.row_ids(3, 5))
    found = []
    for known in (False, True):
        student, teacher = (load_model(path, dtype=torch.float32) for path in (world.student, world.teacher))
        losses = losses_of(options(micro_batch_rows=2, temperature=2.0), student, teacher, world.root)
        if known:
            live = LiveTeacher(teacher, Needs(), 257)
            hidden = {}
            with torch.no_grad():
                for row in batch.row_ids:
                    states = live(losses.share(rows.read(np.array([row]))).pieces[0]).hidden
                    hidden[int(row)] = torch.cat([states, states[:1]])  # the last place has no label
                losses._teacher = KnownTeacher(hidden, live(losses.share(batch).pieces[0]).head)
        terms = losses.backward(losses.share(batch))
        found.append(([float(t.raw) for t in terms.values()], [p.grad for p in student.parameters()]))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-4, atol=1e-7)


def _rows(world: World) -> StoreRows:
    return StoreRows(store=TokenStore.open(world.data), seed=0, epochs=1, num_heldout=6, eos_id=None)


def _first(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output
