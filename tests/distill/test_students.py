"""What is trained of a student: its parts, or adapters beside its weights; and what is frozen costs nothing."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from distill_world import SEQ_LEN, World, losses_of
from helpers import save_tiny_model, tiny_config
from safetensors.torch import load_file
from torch import Tensor
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from compress.base.errors import UsageError
from compress.base.units import format_count
from compress.data import TokenStore
from compress.distill import DistillConfig
from compress.distill.loop.optimizer import make_optimizer
from compress.distill.objective.part import Pair
from compress.distill.plan import held_bytes
from compress.distill.resources.auto import Here
from compress.distill.resources.flops import training_flops_per_token
from compress.distill.rows.batch import Batch
from compress.distill.rows.source import StoreRows
from compress.distill.students.config import LoraConfig
from compress.distill.students.parts import select, sketch
from compress.distill.students.student import load_student
from compress.model.load import load_model

Options = Callable[..., DistillConfig]
TEACHER_LAYERS, KEPT = 8, (0, 1, 4, 6)
BLOCK = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj")
MAPS = (*BLOCK, "mlp.down_proj")
NORMS = ("input_layernorm", "post_attention_layernorm")


def block(number: int) -> set[str]:
    return {f"model.layers.{number}.{name}.weight" for name in (*MAPS, *NORMS)}


def norms(number: int) -> set[str]:
    return {f"model.layers.{number}.{name}.weight" for name in NORMS}


FINAL = {"model.norm.weight"}
TRAINED = {
    "seams": block(1) | norms(2) | block(2) | norms(3) | block(3) | FINAL,
    "last:2": block(2) | block(3) | FINAL,
    "norms": norms(0) | norms(1) | norms(2) | norms(3) | FINAL,
    "no_embeddings": block(0) | block(1) | block(2) | block(3) | FINAL,
}
"""By hand, of the layers 0, 1, 4 and 6 of eight, tied or not: gaps after the blocks 1, 2 and 3."""


@pytest.fixture
def cut(world: World) -> World:
    """A Llama of four blocks that were layers 0, 1, 4 and 6 of its teacher's eight."""
    teacher = save_tiny_model(world.root / "deep", seed=1, scale=0.1, num_hidden_layers=TEACHER_LAYERS)
    student = save_tiny_model(world.root / "cut", seed=2, scale=0.1, tie_word_embeddings=False)
    (student / "prune.json").write_text(json.dumps({"kept_layers": KEPT}))
    return dataclasses.replace(world, teacher=teacher, student=student)


def pair_of(layers: int = 4, kept: tuple[int, ...] | None = KEPT, **fields: Any) -> Pair:
    return Pair(tiny_config(num_hidden_layers=layers, **fields), tiny_config(num_hidden_layers=TEACHER_LAYERS), kept)


def names_of(model: torch.nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("train", TRAINED)
def test_parts_are_those_they_are_called_by(options: Options, train: str, tied: bool) -> None:
    model = sketch(options(train=train), pair_of(tie_word_embeddings=tied), bf16=True)
    assert names_of(model) == TRAINED[train]
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}


def test_a_gap_before_the_first_block_has_the_norms_after_it(options: Options) -> None:
    pair = pair_of(layers=3, kept=(3, 4, 7))
    assert names_of(sketch(options(train="seams"), pair, bf16=False)) == norms(0) | block(1) | norms(2)


@pytest.mark.parametrize(
    ("model_type", "final"),
    [
        ("gpt2", "transformer.ln_f"), ("opt", "model.decoder.final_layer_norm"), ("bloom", "transformer.ln_f"),
        ("gpt_neox", "gpt_neox.final_layer_norm"), ("gemma3_text", "model.norm"), ("phi", "model.final_layernorm"),
        ("mamba", "backbone.norm_f"), ("lfm2", "model.embedding_norm"), ("qwen3_moe", "model.norm"),
    ],
)  # fmt: skip
def test_the_final_norm_is_found_whatever_it_is_called(options: Options, model_type: str, final: str) -> None:
    """Of norms outside the blocks it is the one that is run after them: BLOOM has one before."""
    pair = Pair(tiny_config(model_type, num_hidden_layers=2), None)
    names = names_of(sketch(options(train="last:1"), pair, bf16=False))
    assert {name.rpartition(".")[0] for name in names if ".0." not in name and ".1." not in name} == {final}
    assert not any(".0." in name for name in names)


@pytest.mark.parametrize(
    ("changes", "pair", "says"),
    [
        ({"train": "last:5"}, pair_of(), "last:5 is more than there is: the student has 4 blocks"),
        ({"train": "seams"}, pair_of(kept=None), "no prune.json"),
        ({"train": "seams"}, pair_of(layers=8, kept=tuple(range(8))), "none was: use last:K"),
        ({"lora": LoraConfig(targets=("q_proj", "qkv"))}, pair_of(), "named qkv; there are down_proj, gate_proj, k_p"),
        ({"lora": LoraConfig(targets=("lm_head",))}, pair_of(), "no linear map of the blocks is named lm_head"),
    ],
)
def test_what_is_not_there_cannot_be_trained(options: Options, changes: Any, pair: Pair, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        sketch(options(**changes), pair, bf16=False)


@pytest.mark.parametrize(
    ("train", "precision"),
    [("seams", "fp32"), ("seams", "bf16"), ("last:2", "bf16"), ("norms", "fp32"), ("no_embeddings", "bf16")],
)
def test_what_is_frozen_stays_bit_for_bit_and_has_no_moments(
    cut: World, options: Options, train: str, precision: str
) -> None:
    """The checkpoint is in fp32, and so is what is saved, also where frozen weights were held in bf16."""
    told = cut.run("run", options(train=train, precision=precision, heldout_sequences=0)).describe()
    before, after = (load_file(path / "model.safetensors") for path in (cut.student, cut.root / "run/student"))
    assert {name for name in after if not torch.equal(before[name], after[name])} == TRAINED[train]
    checkpoint = cut.root / "run/train/checkpoints/step-8"
    assert load_file(checkpoint / "model.safetensors").keys() == TRAINED[train]
    moments = {name.partition("/")[2] for name in load_file(checkpoint / "optimizer.safetensors")}
    assert moments == TRAINED[train]
    record = json.loads((cut.root / "run/student/distill.json").read_text())
    assert record["trained_parameters"] == sum(before[name].numel() for name in TRAINED[train])
    assert record["parameters"] == sum(tensor.numel() for tensor in before.values())
    assert f"trained: {format_count(record['trained_parameters'])} of 53.6k parameters" in told


def here(precision: str) -> Here:
    return Here(torch.device("cpu"), precision, None, "none", 4, False, SEQ_LEN, documents_apart=False)


def test_what_is_trained_starts_exactly_where_the_checkpoint_is(cut: World, options: Options) -> None:
    """Frozen weights are read in bf16, and those that are trained are in fp32 what they were in the file."""
    model = load_student(options(train="last:2"), cut.student, here("bf16"), pair_of()).model
    stored = load_file(cut.student / "model.safetensors")
    for name, parameter in model.named_parameters():
        expected = stored[name] if name in TRAINED["last:2"] else stored[name].bfloat16()
        assert parameter.dtype == expected.dtype
        assert torch.equal(parameter, expected), name


def batch_of(world: World, rows: int) -> Batch:
    store = TokenStore.open(world.data)
    source = StoreRows(store=store, seed=0, epochs=1, num_heldout=0, selection=None, apart=False)
    return source.read(source.row_ids(0, rows))


WAYS: dict[str, dict[str, Any]] = {
    "whole": {}, **{train: {"train": train} for train in TRAINED},
    "lora": {"lora": LoraConfig(r=4)}, "lora of two maps": {"lora": LoraConfig(r=4, targets=("q_proj", "mlp.up_proj"))},
}  # fmt: skip


LOWEST = {**dict.fromkeys(WAYS, 0), "seams": 1, "last:2": 2}
"""The lowest block of which something is trained."""


@pytest.mark.parametrize("way", WAYS)
def test_a_step_has_the_flops_it_is_planned_with(cut: World, options: Options, way: str) -> None:
    """By torch's count of the products that are made, of which a frozen weight or head has no gradient's.

    torch counts the whole square of attention, of which what is causal is planned; the last token of a row has no label
    and meets no head; and inputs of the first block want no gradient, nor its keys and values without adapters: that is
    planned as if they did.
    """
    config = options(micro_batch_rows=4, **WAYS[way])
    student, teacher = (
        load_model(path, dtype=torch.float32, attn_implementation="eager") for path in (cut.student, cut.teacher)
    )
    select(student, config, pair_of(), bf16=False)
    losses = losses_of(config, student, teacher, cut.root)
    batch = losses.share(batch_of(cut, 4))
    with FlopCounterMode(display=False) as counted:
        losses.backward(batch, losses._objective.at(0.0))
    model = sketch(config, pair_of(tie_word_embeddings=False), bf16=False)
    planned = training_flops_per_token(model, teacher.config, SEQ_LEN)
    width, keys, rank = 32, 16, 4
    beyond = 4 * width * (SEQ_LEN - (SEQ_LEN + 1) / 2) * (TEACHER_LAYERS + 4 + 2 * (4 - LOWEST[way]))
    unlabelled = 2 * 257 * width / SEQ_LEN * (4 if way == "whole" else 3)
    inputs = {
        "lora": 2 * width * (width + 2 * keys + 3 * rank),
        "lora of two maps": 2 * width * (width + 2 * keys + rank + 2 * SEQ_LEN),
    }
    expected = planned + beyond - unlabelled - inputs.get(way, 0)
    assert counted.get_total_flops() / (4 * SEQ_LEN) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("way", ["last:2", "seams", "whole"])
def test_nothing_is_kept_below_the_lowest_trained_block(cut: World, options: Options, way: str) -> None:
    config = options(micro_batch_rows=2, **WAYS[way])
    student = load_model(cut.student, dtype=torch.float32)
    select(student, config, pair_of(), bf16=False)
    lowest = LOWEST[way]
    place, kept = [-1], dict[int, int]()
    for number, layer in enumerate(student.model.layers):
        layer.register_forward_pre_hook(lambda *_, number=number: place.__setitem__(0, number))

    def pack(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            kept[place[0]] = kept.get(place[0], 0) + tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = student.model(torch.arange(SEQ_LEN)[None], use_cache=False).last_hidden_state.sum()
    loss.backward()
    assert set(kept) - {-1} == set(range(lowest, 4))
    assert (-1 in kept) == (way == "whole")


def reference_loss(logits: Tensor, teacher_logits: Tensor, ids: Tensor, alpha: float) -> Tensor:
    """By its definition, from whole logits [B, S, V]."""
    log_q, log_p = (z[:, :-1].flatten(0, 1).log_softmax(-1) for z in (logits, teacher_logits))
    soft = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    return alpha * soft - (1 - alpha) * log_q.gather(1, ids[:, 1:].reshape(-1, 1)).mean()


def with_adapters(weight: Tensor, a: Tensor, b: Tensor, magnitude: Tensor | None, scale: float, rows: bool) -> Tensor:
    """W + scale B A, for W as it multiplies from the left ([out, in]; GPT-2's is `rows`: [in, out]). In DoRA each row
    has the length m, and the length that it is divided by counts as a constant (arXiv:2402.09353, section 4.3)."""
    full = (weight.T if rows else weight) + scale * b @ a
    if magnitude is not None:
        full = full / full.detach().norm(dim=1, keepdim=True) * magnitude[:, None]
    return full.T if rows else full


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_a_step_of_adapters_equals_one_by_hand(world: World, options: Options, model_type: str, dora: bool) -> None:
    """Loss, gradients and the weights after two steps, in float64 by W + (alpha / r) B A."""
    drop = {} if model_type == "llama" else {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}
    folder = save_tiny_model(world.root / "plain", model_type, seed=2, scale=0.1, num_hidden_layers=2, **drop)
    lora = LoraConfig(r=4, alpha=12.0, dora=dora)
    config = options(lora=lora, micro_batch_rows=1, clip_norm=1e9, weight_decay=0.1, lr=0.01)
    student, teacher = (load_model(path, dtype=torch.float32) for path in (folder, world.teacher))
    select(student, config, Pair(student.config, teacher.config), bf16=False)
    draw = torch.Generator().manual_seed(3)
    parameters = {name: p for name, p in student.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for name, parameter in parameters.items():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.1, generator=draw)
    exact = {name: p.detach().double().requires_grad_() for name, p in parameters.items()}
    losses, optimizer = losses_of(config, student, teacher, world.root), make_optimizer(student, config)
    decayed, plain = ([p for p in exact.values() if (p.ndim >= 2) == matrix] for matrix in (True, False))
    by_hand = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}], lr=0.01, betas=config.betas
    )
    plain_model, source = (load_model(path, dtype=torch.float64) for path in (folder, world.teacher))
    own = dict(plain_model.named_parameters())
    batch = batch_of(world, 3)
    ids = torch.from_numpy(batch.ids)
    for _ in range(2):
        found = losses.backward(losses.share(batch), losses._objective.at(0.0))
        weights = {}
        for name in (
            name.removesuffix(".lora_A.default.weight") for name in exact if name.endswith("lora_A.default.weight")
        ):
            a, b = (exact[f"{name}.lora_{part}.default.weight"] for part in "AB")
            m = exact.get(f"{name}.lora_magnitude_vector.default.weight")
            weights[f"{name}.weight"] = with_adapters(
                own[f"{name}.weight"].detach(), a, b, m, 3.0, model_type == "gpt2"
            )
        logits = functional_call(plain_model, weights, (ids,), {"use_cache": False}).logits
        expected = reference_loss(logits, source(ids, use_cache=False).logits.detach(), ids, 0.8)
        expected.backward()
        loss = float(0.8 * found["soft"].raw + 0.2 * found["hard"].raw)
        assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
        for name, parameter in parameters.items():
            torch.testing.assert_close(parameter.grad.double(), exact[name].grad, rtol=2e-4, atol=2e-7, msg=name)
        optimizer.step(0.01, skip=torch.zeros(()))
        optimizer.zero_grad()
        by_hand.step()
        by_hand.zero_grad()
    for name, parameter in parameters.items():
        torch.testing.assert_close(parameter.detach().double(), exact[name].detach(), rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks for it
@pytest.mark.parametrize(
    "lora",
    [LoraConfig(r=4), LoraConfig(r=4, dora=True, dropout=0.1, targets=("o_proj", "down_proj"))],
    ids=["lora", "dora"],
)
@pytest.mark.parametrize("save_dtype", ["fp32", "bf16"])
def test_the_merged_student_is_the_cut_with_its_adapters(
    cut: World, options: Options, lora: LoraConfig, save_dtype: str
) -> None:
    """Both loaded as users would: plain transformers, and peft onto the cut; in bf16 each weight is rounded once."""
    from peft import PeftModel

    cut.run("run", options(lora=lora, save_dtype=save_dtype, tokens=16 * 4 * SEQ_LEN, lr=0.01, heldout_sequences=0))
    folder, ids = cut.root / "run/student", torch.arange(SEQ_LEN)[None]
    merged = AutoModelForCausalLM.from_pretrained(folder)
    base = AutoModelForCausalLM.from_pretrained(cut.student)
    with torch.no_grad():
        start = base(ids).logits
        adapted = PeftModel.from_pretrained(base, folder / "adapter")
        expected = adapted(ids).logits
        assert (expected - start).abs().max() > 0.1
        if save_dtype == "fp32":
            torch.testing.assert_close(merged(ids).logits, expected, rtol=1e-4, atol=1e-4)
    exact = adapted.merge_and_unload().state_dict()
    for name, weight in merged.state_dict().items():
        bound = 0.0 if save_dtype == "fp32" else 2**-8
        assert ((weight - exact[name]).abs() <= bound * exact[name].abs() + 1e-6).all(), name


def test_adapters_are_drawn_by_the_seed_alone(options: Options) -> None:
    drawn = []
    for seed, noise in ((0, 0), (0, 1), (1, 0)):
        torch.manual_seed(noise)
        model = AutoModelForCausalLM.from_config(tiny_config())
        before = torch.get_rng_state()
        select(model, options(lora=LoraConfig(), seed=seed), pair_of(), bf16=False)
        assert torch.equal(torch.get_rng_state(), before)
        drawn.append(model.get_submodule("model.layers.1.mlp.up_proj.lora_A.default").weight)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_adapters_beside_a_quantised_base_are_merged_into_the_exact_one(
    cut: World, options: Options, kind: Literal["int8", "nf4"], tmp_path: Path
) -> None:
    """What is merged is W + (alpha / r) B A of the checkpoint's W, and only A and B are kept. On a CPU, bitsandbytes'
    kernels take rows of 64 weights or more."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed (pip install bitsandbytes)")
    config = options(lora=LoraConfig(r=4, base_precision=kind), micro_batch_rows=2)
    folder = save_tiny_model(tmp_path / "wide", scale=0.1, hidden_size=64, intermediate_size=128, num_hidden_layers=2)
    student = load_student(config, folder, here("bf16"), pair_of(2))
    quantised = student.model.model.layers[1].mlp.up_proj.base_layer.weight
    assert not quantised.is_floating_point()
    student.model.train()
    student.model.state_dict()  # on CPUs bitsandbytes packs weights in evaluation mode, and unpacks them here
    losses = losses_of(config, student.model, load_model(cut.teacher, dtype=torch.bfloat16), cut.root)
    optimizer = make_optimizer(student.model, config)
    with torch.autocast("cpu", torch.bfloat16):
        losses.backward(losses.share(batch_of(cut, 2)), losses._objective.at(0.0))
    optimizer.step(0.1, skip=torch.zeros(()))
    kept = student.kept()
    assert {name.split(".")[-3] for name in kept} == {"lora_A", "lora_B"}
    finished = student.finished(torch.float32)
    assert finished is not None
    finished.save_pretrained(tmp_path / "merged")
    stored, merged = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "merged"))
    for name, weight in stored.items():
        own = name.removesuffix(".weight")
        if f"{own}.lora_A.default.weight" in kept:
            a, b = (kept[f"{own}.lora_{part}.default.weight"].tensor for part in "AB")
            assert b.abs().max() > 0
            weight = weight + 32 / 4 * b @ a
        torch.testing.assert_close(merged[name], weight)


def test_a_quantised_base_is_planned_by_its_bits(options: Options) -> None:
    """Per map of the blocks: bf16 in two bytes, int8 in one, nf4 in half of one and its scales."""
    planned = {}
    for kind in ("auto", "int8", "nf4"):
        config = options(lora=LoraConfig(r=4, base_precision=kind))
        planned[kind] = held_bytes(config, pair_of(), bf16=True, processes=1)["weights"]
    maps = 4 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64)
    assert planned["auto"] - planned["int8"] == maps
    assert planned["auto"] - planned["nf4"] == pytest.approx(maps * (1.5 - 1 / 64), rel=1e-3)
