"""A teacher of another tokenizer: its loss against numpy, a training from end to end, and what is refused."""

import dataclasses
import itertools
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import warm
from distill_world import SEQ_LEN, World, losses_of
from fault_injection import Signal
from safetensors.torch import load_file
from torch import Tensor
from two_tokenizers import TEXTS, byte_level, llama_like, save_model_of

from compress.base.disk import read_json, sha256_tree
from compress.base.errors import CompressError, UsageError
from compress.data import DataConfig, TokenStore, prepare
from compress.data.alignment import Retelling, document_starts
from compress.distill import DistillConfig, distillation_loss
from compress.distill.config import SelectConfig, Weights
from compress.distill.objective.objective import make_objective
from compress.distill.objective.part import Pair
from compress.distill.objective.schedules import setting_at
from compress.distill.rows.documents import starts_after_eos
from compress.distill.rows.source import packed
from compress.distill.teachers.other_tokenizer import RetoldTeacher, measure_alignment
from compress.model.load import load_model, load_tokenizer


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A byte-level student, a sentencepiece-like teacher, and text of many scripts in the student's tokens."""
    root = tmp_path_factory.mktemp("pair")
    student = save_model_of(root / "student", byte_level(), seed=1, scale=0.1, num_hidden_layers=2)
    teacher = save_model_of(root / "teacher", llama_like(), "gpt2", seed=2, scale=0.3, num_hidden_layers=2)
    lines = [json.dumps({"text": f"{number} {text}"}) for number, text in zip(range(180), itertools.cycle(TEXTS))]
    (root / "text.jsonl").write_text("\n".join(lines))
    options = DataConfig(dataset=str(root / "text.jsonl"), seq_len=SEQ_LEN, heldout_sequences=6)
    prepare(options, tokenizer=student, out=root / "data")
    return World(root, teacher, student, root / "data")


@pytest.fixture
def uld(options: Callable[..., DistillConfig]) -> Callable[..., DistillConfig]:
    return lambda **changes: options(divergence="uld", micro_batch_rows=2, **changes)


def ranked_distance(p: Any, q: Any) -> Any:
    """sum |sorted p - sorted q| of each row in float64, the smaller vocabulary with tokens of probability 0."""
    width = max(p.shape[1], q.shape[1])
    wide = [np.pad(each, ((0, 0), (0, width - each.shape[1]))) for each in (p, q)]
    first, second = (-np.sort(-each, axis=1) for each in wide)
    return np.abs(first - second).sum(axis=1)


@pytest.mark.parametrize(("student_size", "teacher_size"), [(50, 81), (81, 50), (64, 64)])
def test_two_sizes_of_vocabulary(student_size: int, teacher_size: int) -> None:
    torch.manual_seed(0)
    hidden, head, states, other = (
        torch.randn(*shape, dtype=torch.float64) for shape in ((7, 12), (student_size, 12), (7, 9), (teacher_size, 9))
    )
    labels = torch.randint(0, student_size, (7,))
    leaves = hidden.requires_grad_(), head.requires_grad_()
    out = distillation_loss(
        hidden, head, states, other, labels, alpha=0.6, temperature=1.7, divergence="uld", chunk_tokens=3
    )
    found = torch.autograd.grad(out.loss, leaves)
    q, p = ((h @ w.T / 1.7).softmax(-1) for h, w in ((hidden, head), (states, other)))
    direct = ranked_distance(p.detach().numpy(), q.detach().numpy()).mean() * 1.7**2
    assert out.soft.item() == pytest.approx(direct, rel=1e-12)
    width = max(student_size, teacher_size)
    ours, theirs = (
        torch.nn.functional.pad(each, (0, width - each.shape[1])).sort(-1, descending=True).values for each in (q, p)
    )
    plain = 0.6 * 1.7**2 * (ours - theirs).abs().sum(-1).mean()
    plain = plain + 0.4 * torch.nn.functional.cross_entropy(hidden @ head.T, labels)
    for gradient, expected in zip(found, torch.autograd.grad(plain, leaves), strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-14)


def test_other_divergences_take_one_vocabulary() -> None:
    with pytest.raises(UsageError, match="divergence uld"):
        distillation_loss(torch.ones(2, 3), torch.ones(5, 3), torch.ones(2, 3), torch.ones(6, 3), torch.tensor([0, 1]))


def logits_of(model: Any, ids: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(ids[None]).logits[0].double()
    return found


@pytest.mark.parametrize("apart", [False, True])
def test_the_terms_of_a_batch_are_those_of_whole_logits(
    pair: World, uld: Callable[..., DistillConfig], tmp_path: Path, apart: bool
) -> None:
    """soft: over the aligned labels of transformers' own logits; hard: over all labels; in any micro-batches."""
    student, teacher = (
        load_model(folder, dtype=torch.float64, device=torch.device("cpu")) for folder in (pair.student, pair.teacher)
    )
    store = TokenStore.open(pair.data)
    retelling = Retelling(load_tokenizer(pair.student), load_tokenizer(pair.teacher))
    rows = store.rows(range(5))
    starts = starts_after_eos(rows, store.eos_id) if apart else None
    batch = packed(rows, np.arange(5), starts)
    soft: list[float] = []
    hard: list[float] = []
    for number, (row, told) in enumerate(zip(rows, retelling.rows(rows), strict=True)):
        sides = []
        for model, ids, begun in (
            (student, row, np.zeros(SEQ_LEN, bool) if starts is None else starts[number]),
            (teacher, told.ids, document_starts(told.documents) if apart else np.zeros(len(told.ids), bool)),
        ):
            parts = np.split(ids, np.flatnonzero(begun[1:]) + 1)
            sides.append(torch.cat([logits_of(model, torch.from_numpy(part)) for part in parts]))
        labelled = batch.labels[number] != -100
        log_q = sides[0][:-1].log_softmax(-1)
        hard += [-log_q[place, batch.labels[number, place]].item() for place in np.flatnonzero(labelled)]
        pairs = [(ours, theirs) for ours, theirs in told.pairs.tolist() if ours < SEQ_LEN - 1 and labelled[ours]]
        q, p = (
            side[list(places)].softmax(-1).numpy() for side, places in zip(sides, zip(*pairs, strict=True), strict=True)
        )
        soft += ranked_distance(p, q).tolist()
    config = uld(alpha=0.5, document_mask=apart)
    for size in (1, 2, 5):
        objective = make_objective(config, Pair(student.config, teacher.config, retold=True))
        losses = losses_of(dataclasses.replace(config, micro_batch_rows=size), student, teacher, tmp_path)
        losses._teacher, losses._model.objective = RetoldTeacher(teacher, retelling), objective  # type: ignore[assignment]
        losses._objective = objective
        found = losses.measure(losses.share(batch), setting_at(config, ("soft", "hard"), 0.0))
        assert found["soft"] == pytest.approx(np.mean(soft), rel=1e-6)
        assert found["uld"] == pytest.approx(np.mean(soft), rel=1e-6)
        assert found["hard"] == pytest.approx(np.mean(hard), rel=1e-6)
        assert found["loss"] == pytest.approx(0.5 * np.mean(soft) + 0.5 * np.mean(hard), rel=1e-6)


def test_a_training(pair: World, uld: Callable[..., DistillConfig], tmp_path: Path) -> None:
    world = dataclasses.replace(pair, root=tmp_path)
    result = world.run("run", uld(alpha=0.5, lr=1e-2))
    rows = world.metrics("run")
    held = [row for row in rows if "heldout_loss" in row]
    assert held[-1]["heldout_uld"] < held[0]["heldout_uld"]
    assert held[-1]["heldout_hard"] < held[0]["heldout_hard"]
    assert all(row["heldout_kl"] is None for row in held)
    assert result.best_by == "heldout_hard"
    assert result.heldout_kl is None
    retelling = Retelling(load_tokenizer(pair.student), load_tokenizer(pair.teacher))
    assert result.aligned == measure_alignment(retelling, TokenStore.open(pair.data))._asdict()
    assert 0.2 < result.aligned["share"] < 1
    assert "aligned with the teacher's own tokenizer" in result.describe()
    assert read_json(tmp_path / "run" / "student" / "distill.json")["aligned"] == result.aligned


UNLIKE = ("tokens_per_s", "peak_gib", "mfu")


def timeless(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name not in UNLIKE} for row in rows]


@pytest.mark.faults(1, 3)
def test_a_training_killed_in_a_step_and_in_a_save_ends_bitwise_equal(
    pair: World, uld: Callable[..., DistillConfig], tmp_path: Path
) -> None:
    world, config = dataclasses.replace(pair, root=tmp_path), uld(alpha=0.5, checkpoint_every=2, heldout_every=3)
    world.run("whole", config)
    for at, call in (("loop.train:learning_rate", 4), ("loop.checkpoint:save_file", 3)):
        trap, threads = Signal(at=(f"compress.distill.{at}",), call=call), str(torch.get_num_threads())
        done = warm().run([trap], *world.command("cut", config), OMP_NUM_THREADS=threads)
        assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    world.run("cut", config)
    whole, cut = (sha256_tree(tmp_path / name / "student", "*.safetensors") for name in ("whole", "cut"))
    assert cut == whole
    assert timeless(world.metrics("cut")) == timeless(world.metrics("whole"))


def test_two_processes_learn_as_one(pair: World, uld: Callable[..., DistillConfig], tmp_path: Path) -> None:
    """Their halves of a batch have unlike numbers of aligned tokens; the mean is over those of both."""
    world, config = dataclasses.replace(pair, root=tmp_path), uld(alpha=0.5, batch_tokens=5 * SEQ_LEN)
    world.run("one", config)
    done = warm().launch(2, *world.command("two", config))
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (load_file(tmp_path / name / "student" / "model.safetensors") for name in ("one", "two"))
    for key in one:
        torch.testing.assert_close(two[key], one[key], rtol=1e-4, atol=2e-5)
    for single, double in zip(*(timeless(world.metrics(name)) for name in ("one", "two")), strict=True):
        near = {k: pytest.approx(v, rel=1e-4) if isinstance(v, float) else v for k, v in single.items()}
        assert double == near


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"divergence": "forward_kl"}, "set distill.divergence to uld"),
        ({"self_correct": 0.2}, "self_correct names the label"),
        ({"select": SelectConfig(to=0.9)}, "go by the teacher's loss"),
        ({"weights": Weights(similarity=1.0)}, "compares states token by token"),
        ({"weights": Weights(hidden=1.0)}, "compares states token by token"),
    ],
)
def test_what_needs_one_vocabulary_is_refused(
    pair: World, uld: Callable[..., DistillConfig], tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    world = dataclasses.replace(pair, root=tmp_path)
    with pytest.raises(CompressError, match=said):
        world.run("run", dataclasses.replace(uld(), **changes))
    assert not (tmp_path / "run" / "student").exists()
