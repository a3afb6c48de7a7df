"""The seams of a training: a new term, another teacher, and measures that no option touches."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from distill_world import SEQ_LEN, World, losses_of
from helpers import save_tiny_model, tiny_config
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from compress.base.errors import UsageError
from compress.data import TokenStore
from compress.distill import DistillConfig, plan_distill
from compress.distill.config import HiddenConfig, Schedule, SimilarityConfig, Weights
from compress.distill.loop.guard import StepGuard
from compress.distill.loop.progress import Progress
from compress.distill.objective import objective
from compress.distill.objective.pairs import block_pairs
from compress.distill.objective.part import Pair
from compress.distill.objective.signals import Needs, Signals
from compress.distill.resources.loading import recompute_activations
from compress.distill.rows.batch import Batch, MicroBatch
from compress.distill.rows.source import StoreRows
from compress.distill.teachers.source import LiveTeacher
from compress.model.load import load_config, load_model

Options = Callable[..., DistillConfig]
MEAN_SQUARES = HiddenConfig(pairs=((0, 0),), distance="mse", layer_norm=False)


def dense_terms(
    world: World, config: DistillConfig, batch: Batch, projections: Any = None
) -> tuple[dict[str, torch.Tensor], list[torch.nn.Parameter]]:
    """Each term by its definition in float64, from whole logits and stored outputs of all blocks; the student's
    parameters, for gradients."""
    student, teacher = (load_model(path, dtype=torch.float64) for path in (world.student, world.teacher))
    ids = torch.from_numpy(batch.ids)
    states: list[list[torch.Tensor]] = [[], []]
    for model, seen in zip((student, teacher), states, strict=True):
        for block in model.transformer.h:
            block.register_forward_hook(lambda m, a, out, seen=seen: seen.append(_first(out)[:, :-1]))
    log_q, log_p = (
        model(ids, use_cache=False).logits[:, :-1].flatten(0, 1).log_softmax(-1) for model in (student, teacher)
    )
    found = {
        "soft": torch.nn.functional.kl_div(log_q, log_p.detach(), log_target=True, reduction="batchmean"),
        "hard": torch.nn.functional.nll_loss(log_q, ids[:, 1:].flatten()),
    }
    if config.hidden is not None:
        assert not isinstance(config.hidden.pairs, str)
        values = []
        for number, (own, theirs) in enumerate(config.hidden.pairs):
            h, t = states[0][own], states[1][theirs].detach()
            if projections is not None:
                h = h @ projections[number].weight.double().T
            if config.hidden.layer_norm:
                h, t = (
                    (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
                    for x in (h, t)
                )
            if config.hidden.distance == "mse":
                values.append(((h - t) ** 2).mean())
            else:
                values.append((1 - (h * t).sum(-1) / (h.norm(dim=-1) * t.norm(dim=-1))).mean())
        found["hidden"] = torch.stack(values).mean()
    if config.similarity is not None:
        assert not isinstance(config.similarity.pairs, str)
        grams = [
            [
                x / x.norm(dim=-1, keepdim=True) @ (x / x.norm(dim=-1, keepdim=True)).mT
                for x in (states[0][own], states[1][theirs].detach())
            ]
            for own, theirs in config.similarity.pairs
        ]
        found["similarity"] = torch.stack([((a - b) ** 2).mean() for a, b in grams]).mean()
    return found, list(student.parameters())


TERMS: dict[str, dict[str, Any]] = {
    "mean squares": {"weights": Weights(hidden=0.25), "hidden": MEAN_SQUARES},
    "cosine after a norm": {"weights": Weights(hidden=0.5), "hidden": HiddenConfig(pairs=((0, 1),))},
    "mean squares after a norm": {
        "weights": Weights(hidden=0.5, soft=0.3, hard=0.4), "hidden": HiddenConfig(pairs=((0, 1),), distance="mse"),
    },
    "a learned projection": {
        "weights": Weights(hidden=2.0), "hidden": HiddenConfig(pairs=((0, 0),), projection="linear"),
    },
    "similarity": {"weights": Weights(similarity=3.0), "similarity": SimilarityConfig(pairs=((0, 1),))},
    "all, at half the depth of the run": {
        "weights": Weights(hidden=Schedule(from_=1, to=0), similarity=1.0),
        "hidden": HiddenConfig(pairs=((0, 0),)), "similarity": SimilarityConfig(pairs=((0, 0),)),
        "alpha": Schedule(from_=0.9, to=0.5, shape="cosine"),
    },
}  # fmt: skip


@pytest.mark.parametrize("recompute", [False, True], ids=["", "recomputed"])
@pytest.mark.parametrize("name", TERMS)
def test_terms_and_their_gradients_equal_their_definitions(
    world: World, options: Options, name: str, recompute: bool
) -> None:
    """In float64, from whole logits and the stored outputs of blocks; in micro-batches of one row."""
    config = options(micro_batch_rows=1, **TERMS[name])
    student, teacher = (load_model(path, dtype=torch.float32) for path in (world.student, world.teacher))
    if recompute:
        recompute_activations(student)
    losses = losses_of(config, student, teacher, world.root)
    made = losses._objective
    rows = _rows(world)
    batch = rows.read(rows.row_ids(0, 3))
    setting = made.at(0.5)
    terms = losses.backward(losses.share(batch), setting)

    projections = dict(made.learned.items()).get("hidden")
    expected, parameters = dense_terms(world, config, batch, projections)
    assert list(terms) == list(expected)
    weights = {"soft": 0.8, "hard": 0.2}
    if name.startswith("all"):
        weights = {"soft": 0.7, "hard": 0.3, "hidden": 0.5, "similarity": 1.0}
    assert config.weights is not None
    fixed = {term: value for term, value in vars(config.weights).items() if isinstance(value, float)}
    weights |= fixed
    assert setting.weights == pytest.approx(weights)
    loss = sum(weights[term] * value for term, value in expected.items())
    assert isinstance(loss, torch.Tensor)
    gradients = torch.autograd.grad(loss, parameters)
    for term, value in expected.items():
        assert float(terms[term].raw) == pytest.approx(value.item(), rel=1e-5)
    assert float(objective.loss_of(terms)) == pytest.approx(loss.item(), rel=1e-5)
    for parameter, gradient in zip(student.parameters(), gradients, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad.double(), gradient, rtol=2e-4, atol=1e-6)


def test_projections_between_widths_learn_and_are_no_part_of_the_student(
    world: World, options: Options, tmp_path: Path
) -> None:
    """Their gradient is checked by finite differences; a run that is stopped goes on with them, bit for bit."""
    narrow = save_tiny_model(
        tmp_path / "narrow", "gpt2", seed=5, scale=0.1, num_hidden_layers=1, hidden_size=16, num_attention_heads=2
    )
    config = options(weights=Weights(hidden=1.0), hidden=HiddenConfig(pairs="last"), micro_batch_rows=2)
    student, teacher = (load_model(path, dtype=torch.float64) for path in (narrow, world.teacher))
    losses = losses_of(config, student, teacher, world.root)
    (projection,) = losses._objective.learned["hidden"]
    projection.double()
    rows = _rows(world)
    share = losses.share(rows.read(rows.row_ids(0, 4)))
    losses.backward(share, losses._objective.at(0))
    place = (3, 5)
    slopes = []
    for step in (1e-3, -1e-3):
        with torch.no_grad():
            projection.weight[place] += step
            slopes.append(losses.measure(share, losses._objective.at(0))["hidden"])
            projection.weight[place] -= step
    assert float(projection.weight.grad[place]) == pytest.approx((slopes[0] - slopes[1]) / 2e-3, rel=1e-2)

    world.run("whole", config, student=narrow)
    kept = load_file(tmp_path / "whole/train/checkpoints/step-8/model.safetensors")
    assert kept["objective.hidden.0.weight"].shape == (teacher.config.hidden_size, 16)
    finished = load_file(tmp_path / "whole/student/model.safetensors")
    assert set(finished) == set(load_file(narrow / "model.safetensors"))


class Kept:
    """A tensor that a forward pass keeps, for as long as its graph is alive."""

    def __init__(self, tensor: torch.Tensor, alive: dict[int, int]) -> None:
        self.tensor, self._alive = tensor, alive
        alive[id(self)] = tensor.untyped_storage().nbytes()

    def __del__(self) -> None:
        del self._alive[id(self)]


@pytest.mark.parametrize("name", ["cosine after a norm", "similarity"])
def test_a_pair_keeps_for_the_backward_pass_no_more_than_its_blocks_output(
    world: World, options: Options, name: str
) -> None:
    kept = []
    for changes in ({}, TERMS[name]):
        student, teacher = (load_model(path, dtype=torch.float32) for path in (world.student, world.teacher))
        losses = losses_of(options(micro_batch_rows=4, **changes), student, teacher, world.root)
        rows, alive = _rows(world), dict[int, int]()
        (piece,) = losses.share(rows.read(rows.row_ids(0, 4))).pieces
        with torch.autograd.graph.saved_tensors_hooks(lambda t, alive=alive: Kept(t, alive), lambda kept: kept.tensor):  # type: ignore[misc]
            out = losses._forward(piece, 1.0, losses._objective.at(0.0))
            kept.append(sum(alive.values()))
        out.loss.backward()
    assert 0 < kept[1] - kept[0] <= 4 * SEQ_LEN * student.config.hidden_size * 4


def test_terms_are_logged_measured_watched_and_planned(world: World, options: Options) -> None:
    config = options(spike_sigma=6.0, weights=Weights(hidden=0.25), hidden=MEAN_SQUARES)
    world.run("run", config)
    weights = {"soft": 0.8, "hard": 0.2, "hidden": 0.25}
    steps = [row for row in world.metrics("run") if "loss" in row]
    for row in steps:
        for term, weight in weights.items():
            assert row[f"{term}_scaled"] == pytest.approx(weight * row[term], rel=1e-12)
        assert row["loss"] == pytest.approx(sum(row[f"{term}_scaled"] for term in weights), rel=1e-12)
    held = [row for row in world.metrics("run") if "heldout_loss" in row]
    assert held[-1]["heldout_hidden"] < held[0]["heldout_hidden"]
    parts = [weight * held[0][f"heldout_{term}"] for term, weight in weights.items()]
    assert held[0]["heldout_loss"] == pytest.approx(sum(parts), rel=1e-12)
    state = json.loads((world.root / "run/train/checkpoints/step-8/state.json").read_text())
    assert state["recent_losses"] == pytest.approx([row["loss"] for row in steps], rel=1e-12)

    guard = StepGuard(config, torch.device("cpu"), total=0, in_a_row=0, recent=[])
    for value, bad in ((1.0, 0.0), (math.nan, 1.0)):
        terms = {name: objective.Term(torch.tensor(1.0, dtype=torch.float64), 0.5) for name in ("soft", "hard")}
        terms["hidden"] = objective.Term(torch.tensor(value, dtype=torch.float64), 0.25)
        assert float(guard.note(0, terms, torch.tensor(1.0))) == bad

    models = {name: load_config(getattr(world, name)) for name in ("student", "teacher")}
    plan = plan_distill(config, **models, num_rows=100, seq_len=SEQ_LEN, device=torch.device("cpu"))
    assert plan.memory_bytes["signals"] == 4 * SEQ_LEN * 2 * models["student"].hidden_size * 4


def test_without_them_there_are_two_terms_and_no_signals(world: World, options: Options) -> None:
    pair = Pair(load_config(world.student), load_config(world.teacher))
    made = objective.make_objective(options(alpha=0.3), pair)
    assert made.at(0.0).weights == {"soft": 0.3, "hard": 0.7}
    assert made.needs == Needs()
    alone = objective.make_objective(options(alpha=0.0), pair._replace(teacher=None))
    assert alone.at(0.0).weights == {"hard": 1.0}
    plan = plan_distill(options(), student=pair.student, teacher=pair.teacher, num_rows=100, seq_len=SEQ_LEN)
    assert "signals" not in plan.memory_bytes


PAIRS = {
    "kept": ((0, 0), (1, 3), (2, 5)), "next": ((0, 2), (1, 4), (2, 5)), "uniform": ((0, 1), (1, 3), (2, 5)),
    "last": ((2, 5),), ((2, 4), (0, 1)): ((0, 1), (2, 4)),
}  # fmt: skip


@pytest.mark.parametrize("asked", PAIRS, ids=str)
def test_pairs_of_blocks(asked: Any) -> None:
    """Of a student of three blocks, which were layers 0, 3 and 5 of six."""
    pair = Pair(tiny_config(num_hidden_layers=3), tiny_config(num_hidden_layers=6), (0, 3, 5))
    assert block_pairs("hidden", HiddenConfig(pairs=asked), pair) == PAIRS[asked]


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "outside": ({"weights": Weights(hidden=1.0), "hidden": HiddenConfig(pairs=((0, 9),))}, r"has \[0, 9\].*0 to 1"),
    "twice": ({"weights": Weights(hidden=1.0), "hidden": HiddenConfig(pairs=((0, 0), (0, 1)))}, "twice"),
    "no cut": ({"weights": Weights(similarity=1.0), "similarity": SimilarityConfig(pairs="kept")}, "prune.json"),
    "all left out": (
        {"weights": Weights(hidden=1.0), "hidden": HiddenConfig(pairs="last", leave_out_last=1)},
        "no pair",
    ),
    "all 0": ({"weights": Weights(soft=0.0, hard=0.0)}, "All weights are 0"),
}


@pytest.mark.parametrize("name", WRONG)
def test_terms_that_cannot_be_are_refused_before_the_models_are_read(world: World, options: Options, name: str) -> None:
    changes, message = WRONG[name]
    with pytest.raises(UsageError, match=message):
        world.run("run", options(**changes))
    assert not (world.root / "run").exists()


def test_widths_that_differ_need_a_projection_and_hidden_states_a_teacher() -> None:
    pair = Pair(tiny_config(hidden_size=32), tiny_config(hidden_size=64))
    config = DistillConfig(weights=Weights(hidden=1.0), hidden=HiddenConfig(pairs="last", projection="identity"))
    with pytest.raises(UsageError, match="student's is 32, the teacher's 64: use linear"):
        objective.make_objective(config, pair)
    with pytest.raises(UsageError, match="there is none: name one"):
        objective.make_objective(dataclasses.replace(config, alpha=0.0), pair._replace(teacher=None))


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
        run.note_heldout({"loss": loss, "kl": kl, "hard": hard}, {})
    assert (run.best_heldout_kl, run.best_heldout_loss, run.best_heldout_hard) == (0.4, 2.5, 3.5)
    assert (run.heldout_kl, run.heldout_loss) == (None, 1.0)


class KnownTeacher:
    """A source that runs no model: it has each row's hidden states by the row's number."""

    def __init__(self, hidden: dict[int, torch.Tensor], head: Any) -> None:
        self._hidden, self._head = hidden, head

    def ahead(self, batch: MicroBatch) -> MicroBatch:
        assert len(batch.row_ids)
        return batch

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
        terms = losses.backward(losses.share(batch), losses._objective.at(0.0))
        found.append(([float(t.raw) for t in terms.values()], [p.grad for p in student.parameters()]))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-4, atol=1e-7)


def _rows(world: World) -> StoreRows:
    return StoreRows(store=TokenStore.open(world.data), seed=0, epochs=1, num_heldout=6, selection=None, apart=False)


def _first(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output
