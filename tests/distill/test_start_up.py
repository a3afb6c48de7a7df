"""What is refused before the first step, and what a run is told it will cost."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from distill_world import SEQ_LEN, World
from helpers import save_tiny_model, tiny_config
from transformers import AutoConfig, AutoModelForCausalLM

from compress.base.errors import CompressError, InputError, UsageError
from compress.data import TokenStore
from compress.distill import DistillConfig, plan_distill
from compress.model.vocabulary import compare_tokens, shared_ids

Options = Callable[..., DistillConfig]


def nothing_was_written(world: World) -> bool:
    folder = world.root / "run"
    return not (folder / "student").exists() and not list(folder.rglob("metrics.jsonl"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": 10**9}, "allow the data to be repeated"),
        ({"batch_tokens": 8}, "less than one sequence"),
        ({"alpha": 1.5}, "alpha"),
    ],
)
def test_options_that_cannot_work_are_refused_before_step_0(
    world: World, options: Options, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        world.run("run", options(**changes))
    assert nothing_was_written(world)


def test_a_missing_teacher_is_refused(world: World, options: Options) -> None:
    with pytest.raises(UsageError, match=r"alpha = 0\.8 needs a teacher"):
        world.run("run", options(), teacher=None)


@pytest.mark.faults(24)
def test_an_output_that_is_not_free_is_refused_and_kept(world: World, options: Options) -> None:
    out = world.root / "mine"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="not empty"):
        world.run("run", options(), out=out)
    assert (out / "thesis.txt").read_text() == "years of work"
    with pytest.raises(UsageError, match="work folder"):
        world.run("run", options(), work=out / "thesis.txt" / "train")


@pytest.mark.faults(24)
def test_a_generation_config_that_could_not_be_saved_again_is_refused(world: World, options: Options) -> None:
    student = world.root / "student"
    shutil.copytree(world.student, student)
    (student / "generation_config.json").write_text(json.dumps({"do_sample": False, "temperature": 0.5}))
    with pytest.raises(InputError, match=r"generation_config\.json contradicts itself"):
        world.run("run", options(), student=student)
    assert nothing_was_written(world)


@pytest.mark.faults(13)
def test_data_of_another_tokenizer_is_refused(world: World, options: Options) -> None:
    data = world.root / "data"
    shutil.copytree(world.data, data)
    student = world.root / "student"
    shutil.copytree(world.student, student)
    tokenizer = json.loads((student / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (student / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(InputError, match="tokenizers differ in 4 entries"):
        world.run("run", options(), student=student)
    with pytest.raises(InputError, match="made with another tokenizer"):
        world.run("run", options(alpha=0.0), student=student, teacher=None)


@pytest.mark.faults(14)
def test_an_unreadable_teacher_is_named(world: World, options: Options) -> None:
    teacher = world.root / "teacher"
    shutil.copytree(world.teacher, teacher)
    weights = teacher / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"teacher/model\.safetensors .*truncated or corrupt"):
        world.run("run", options(), teacher=teacher)


def test_logits_transformed_in_an_unknown_way_are_refused(
    world: World, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.gpt2 import modeling_gpt2

    original = modeling_gpt2.GPT2LMHeadModel.forward

    def doubled(*args: Any, **kwargs: Any) -> Any:
        out = original(*args, **kwargs)
        out.logits = out.logits * 2
        return out

    monkeypatch.setattr(modeling_gpt2.GPT2LMHeadModel, "forward", doubled)
    with pytest.raises(CompressError, match="does not know"):
        world.run("run", options())


@pytest.mark.faults(13)
def test_a_padded_vocabulary_is_compared_on_the_shared_ids(
    world: World, options: Options, capfd: pytest.CaptureFixture[str]
) -> None:
    teacher = save_tiny_model(world.root / "padded", seed=4, scale=0.1, vocab_size=320)
    assert shared_ids(world.student, teacher) == 257
    assert "the 257 ids they share" in " ".join(capfd.readouterr().err.split())
    world.run("run", options(alpha=1.0), teacher=teacher)
    rows = torch.from_numpy(TokenStore.open(world.data).heldout(6))
    models = [AutoModelForCausalLM.from_pretrained(path).double().eval() for path in (world.student, teacher)]
    with torch.no_grad():
        logits = [model(rows).logits[:, :-1, :257].flatten(0, 1) for model in models]
    log_q, log_p = (torch.log_softmax(z, -1) for z in logits)
    kl = torch.nn.functional.kl_div(log_q, log_p, log_target=True, reduction="batchmean")
    assert world.metrics("run")[0]["heldout_soft"] == pytest.approx(float(kl), rel=1e-5)


def test_the_students_padding_rows_get_no_gradient(world: World, options: Options) -> None:
    student = save_tiny_model(world.root / "wide", seed=4, scale=0.1, vocab_size=300, tie_word_embeddings=False)
    world.run("run", options(weight_decay=0.0), student=student)
    before, after = (
        AutoModelForCausalLM.from_pretrained(path).lm_head.weight for path in (student, world.root / "run" / "student")
    )
    assert torch.equal(before[257:], after[257:])
    assert not torch.equal(before[:257], after[:257])


@pytest.mark.faults(13)
@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        ({"a": 0, "b": 1}, {"a": 0, "b": 1}, None),
        ({"a": 0, "b": 1}, {"a": 1, "b": 0}, "token id 0: 'a' is id 1 to the teacher and id 0 to the student"),
        ({"a": 0, "b": 1}, {"a": 0, "c": 1}, "'b' is unknown to the teacher and id 1 to the student"),
    ],
)
def test_tokenizers_compared(student: dict[str, int], teacher: dict[str, int], message: str | None) -> None:
    if message is None:
        compare_tokens(student, teacher)
        return
    with pytest.raises(InputError, match=message):
        compare_tokens(student, teacher)


@pytest.mark.parametrize(
    ("model_type", "fields"),
    [
        ("gemma2", {"final_logit_softcapping": 0.5, "head_dim": 8}),
        ("granite", {"logits_scaling": 3.0}),
        ("cohere", {"logit_scale": 0.3}),
    ],
)
def test_logit_scaling_and_soft_capping_are_kept(
    world: World, options: Options, model_type: str, fields: dict[str, Any]
) -> None:
    student = save_tiny_model(world.root / model_type, model_type, scale=0.2, num_hidden_layers=1, **fields)
    world.run("run", options(tokens=4 * SEQ_LEN, alpha=0.0), student=student, teacher=None)
    rows = torch.from_numpy(TokenStore.open(world.data).heldout(6))
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(student)(rows, labels=rows).loss
    assert world.metrics("run")[0]["heldout_hard"] == pytest.approx(float(expected), rel=1e-5)


def llama(layers: int) -> Any:
    return AutoConfig.for_model(
        "llama", vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=layers,
        num_attention_heads=32, num_key_value_heads=8, head_dim=64, tie_word_embeddings=True,
    )  # fmt: skip


def test_the_seed_papers_run_planned_from_configs() -> None:
    config = DistillConfig(tokens=2_200_000_000, batch_tokens=524288)
    plan = plan_distill(config, student=llama(8), teacher=llama(16), num_rows=1_080_000, seq_len=2048)
    assert plan.steps == 4197
    assert plan.tokens == 1_074_219 * 2048
    # 2 P a forward pass; norms aside, plus attention: 4 * layers * 2048 * 1024 a forward pass (half the context)
    attention = 4 * 2048 * 1024
    expected = 2 * 1_235_814_400 + 16 * attention + 3 * (2 * 749_242_368 + 8 * attention)
    assert plan.flops_per_token == pytest.approx(expected, rel=1e-3)
    assert plan.hours(4e14) == pytest.approx(expected * plan.tokens / 4e14 / 3600, rel=1e-3)
    assert plan.memory_bytes["weights"] == plan.memory_bytes["gradients"] == 4 * 749_242_368
    assert plan.memory_bytes["optimizer moments"] == 8 * 749_242_368
    assert plan.memory_bytes["teacher"] == 2 * 1_235_814_400
    assert plan.total_bytes == sum(plan.memory_bytes.values())


def test_a_plan_without_a_teacher_and_with_recomputation_is_smaller() -> None:
    full = plan_distill(DistillConfig(alpha=0.0), student=llama(8), teacher=llama(8), num_rows=1000, seq_len=2048)
    alone = plan_distill(DistillConfig(alpha=0.0), student=llama(8), teacher=None, num_rows=1000, seq_len=2048)
    config = DistillConfig(alpha=0.0, gradient_checkpointing=True)
    lean = plan_distill(config, student=llama(8), teacher=None, num_rows=1000, seq_len=2048)
    assert "teacher" not in alone.memory_bytes
    assert full.flops == pytest.approx(alone.flops * 4 / 3)
    assert lean.memory_bytes["activations"] < alone.memory_bytes["activations"] / 4
    assert "weights 2.79 GiB" in alone.memory_text()


def test_the_plan_counts_the_parameters_a_model_has(tmp_path: Path) -> None:
    config = tiny_config("qwen2")
    plan = plan_distill(DistillConfig(), student=config, teacher=None, num_rows=100_000, seq_len=64)
    model = AutoModelForCausalLM.from_config(config)
    assert plan.memory_bytes["weights"] == 4 * sum(p.numel() for p in model.parameters())
