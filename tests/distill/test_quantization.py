"""A quantised teacher: what it is measured against, and when it is refused. Most need the optional torchao."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from distill_world import World
from helpers import save_tiny_model, tiny_config
from torch.nn.functional import kl_div

from compress.base.errors import UsageError
from compress.data import TokenStore
from compress.distill import DistillConfig
from compress.distill.teachers.quantization import quantize_teacher, teacher_bytes
from compress.model.load import load_model
from compress.model.parts import empty_model

Options = Callable[..., DistillConfig]


@pytest.fixture
def teacher(world: World) -> Any:
    """A Llama with logits large enough that eight bits show; the shared world's GPT-2 has no `nn.Linear`."""
    pytest.importorskip("torchao")
    folder = save_tiny_model(world.root / "teacher", seed=4, scale=0.15, hidden_size=64)
    return load_model(folder, dtype=torch.float32)


def test_the_kl_is_that_of_whole_logits_and_weights_are_8_bit(world: World, options: Options, teacher: Any) -> None:
    rows = TokenStore.open(world.data).heldout(6)
    exact = teacher(torch.from_numpy(rows)).logits.detach().double().flatten(0, 1).log_softmax(-1)
    head = teacher.get_output_embeddings().weight.clone()
    found = quantize_teacher(teacher, options(teacher_precision="int8", teacher_max_kl=1.0), rows)
    quantised = teacher(torch.from_numpy(rows)).logits.detach().double().flatten(0, 1).log_softmax(-1)
    assert found == pytest.approx(float(kl_div(quantised, exact, log_target=True, reduction="batchmean")), rel=1e-3)
    assert 1e-6 < found < 0.1
    assert teacher.model.layers[0].mlp.up_proj.weight.qdata.dtype == torch.int8
    assert torch.equal(teacher.get_output_embeddings().weight, head)


def test_a_run_with_an_int8_teacher_records_its_kl(
    world: World, options: Options, teacher: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = world.root / "teacher"
    student = save_tiny_model(world.root / "student", seed=6, scale=0.1, num_hidden_layers=1)
    config = options(teacher_precision="int8", teacher_max_kl=1.0)
    result = world.run("run", config, teacher=folder, student=student)
    record = json.loads((result.out / "distill.json").read_text())
    assert 1e-6 < record["teacher_kl"] < 0.1
    assert "The int8 teacher differs from the exact one by" in capfd.readouterr().err
    exact = world.run("exact", options(), teacher=folder, student=student)
    assert exact.teacher_kl is None
    assert result.heldout_loss == pytest.approx(exact.heldout_loss, abs=2 * record["teacher_kl"] + 0.01)


def test_a_teacher_that_is_changed_too_much_is_refused(world: World, options: Options, teacher: Any) -> None:
    with pytest.raises(UsageError, match=r"int8 changes the teacher by .* more than teacher_max_kl = 1e-09"):
        quantize_teacher(
            teacher, options(teacher_precision="int8", teacher_max_kl=1e-9), TokenStore.open(world.data).heldout(6)
        )


def test_what_cannot_be_quantised_or_measured_is_refused(world: World, options: Options, teacher: Any) -> None:
    rows = TokenStore.open(world.data).heldout(6)
    with pytest.raises(UsageError, match="measured on held-out rows and there are none"):
        quantize_teacher(teacher, options(teacher_precision="int8"), rows[:0])
    with pytest.raises(UsageError, match=r"fp8 needs a GPU of compute capability 8\.9"):
        quantize_teacher(teacher, options(teacher_precision="fp8"), rows)
    gpt2 = load_model(world.teacher, dtype=torch.float32)
    with pytest.raises(UsageError, match="GPT2LMHeadModel has no linear layers that torchao knows"):
        quantize_teacher(gpt2, options(teacher_precision="int8"), rows)


def test_the_plan_counts_a_byte_for_each_quantised_weight(options: Options) -> None:
    model = empty_model(tiny_config(num_hidden_layers=2))
    matrices = 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 64 * 32)  # q, o; k, v; the three of the MLP
    rest = 257 * 32 + 5 * 32
    assert teacher_bytes(model, options(), 4) == 4 * (matrices + rest)
    assert teacher_bytes(model, options(teacher_precision="int8"), 2) == matrices + 2 * rest
