"""All that the suite shows on CPUs, on the device that is there: losses, runs, resume, optimizers, scores, cuts."""

import copy
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from distill_world import SEQ_LEN, World, losses_of, setting_of
from divergence_definitions import ALL, divergence_by_definition, name_of
from helpers import byte_tokenizer, save_tiny_model, tiny_config
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from compress.data import TokenStore
from compress.distill import DistillConfig, distillation_loss
from compress.distill.config import DivergenceConfig
from compress.distill.loop.optimizer import make_optimizer
from compress.distill.resources.attention import DOCUMENTS, ROWS, choose
from compress.distill.rows.batch import document_boundaries
from compress.distill.rows.documents import document_positions, packed_hidden_states, starts_after_eos
from compress.distill.rows.source import packed
from compress.distill.students.sharding import shard_model
from compress.distill.teachers.quantization import quantize_teacher
from compress.evaluate import EvalConfig, evaluate_model
from compress.evaluate.harness.scorer import Scorer
from compress.inference.readout import load_checkpoint
from compress.model.load import load_model
from compress.model.parts import OutputHead, hidden_states
from compress.prune import RankingConfig, RepairConfig, prune

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore")]
Options = Callable[..., DistillConfig]
N, D, V = 70, 48, 1003
HEADS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bias": {"bias": True},
    "softcap": {"softcap": 4.0},
    "scale": {"scale": 0.3},
}
CLOSE = {torch.float32: (1e-5, 3e-5), torch.bfloat16: (2e-2, 3e-2)}
"""Relative errors of losses and of gradients: some units in the last place of the logits' dtype."""


@pytest.mark.parametrize("dtype", CLOSE, ids=str)
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("divergence", ALL, ids=name_of)
def test_loss_and_gradients_against_float64(
    divergence: DivergenceConfig, head: str, dtype: torch.dtype, device: torch.device
) -> None:
    draw = torch.Generator().manual_seed(0)
    states, teacher_states = (torch.randn(N, D, generator=draw) for _ in range(2))
    weight, teacher_weight = (torch.randn(V, D, generator=draw) * 0.3 for _ in range(2))
    bias = torch.randn(V, generator=draw) if HEADS[head].get("bias") else None
    labels = torch.randint(0, V, (N,), generator=draw)
    given = [None if t is None else t.to(dtype) for t in (states, weight, bias, teacher_states, teacher_weight)]
    scale, cap, temperature, alpha = HEADS[head].get("scale", 1.0), HEADS[head].get("softcap"), 2.0, 0.6

    wide = [None if t is None else t.double() for t in given]
    trained = [t.requires_grad_() for t in wide[:3] if t is not None]

    def logits(hidden: Any, matrix: Any, offset: Any) -> Tensor:
        z = scale * (hidden @ matrix.T + (0.0 if offset is None else offset))
        return z if cap is None else cap * torch.tanh(z / cap)

    z, z_teacher = logits(*wide[:3]), logits(wide[3], wide[4], None)
    soft = temperature**2 * divergence_by_definition(divergence, z_teacher / temperature, z / temperature).mean()
    hard = torch.nn.functional.cross_entropy(z, labels)
    (alpha * soft + (1 - alpha) * hard).backward()

    here = [None if t is None else t.to(device).requires_grad_(i < 3) for i, t in enumerate(given)]
    heads = OutputHead(here[1], here[2], scale, cap), OutputHead(here[4], None, scale, cap)  # type: ignore[arg-type]
    out = distillation_loss(
        here[0], heads[0], here[3], heads[1], labels.to(device), alpha=alpha, temperature=temperature,  # type: ignore[arg-type]
        divergence=divergence, chunk_tokens=32,
    )  # fmt: skip
    out.loss.backward()
    assert out.soft.item() == pytest.approx(soft.item(), rel=CLOSE[dtype][0])
    assert out.hard.item() == pytest.approx(hard.item(), rel=CLOSE[dtype][0])
    ours = [t.grad.cpu().double() for t in here[:3] if t is not None and t.grad is not None]
    for found, expected in zip(ours, trained, strict=True):
        assert ((found - expected.grad).norm() / expected.grad.norm()).item() < CLOSE[dtype][1]  # type: ignore[union-attr]


@pytest.mark.parametrize("tied", [True, False])
def test_a_models_gradients_against_float64(tied: bool, world: World, options: Options, device: torch.device) -> None:
    """Of all parameters, in micro-batches of two rows, by dense autograd on the CPU."""
    folders = [
        save_tiny_model(world.root / f"m{seed}", seed=seed, tie_word_embeddings=tied, num_hidden_layers=2)
        for seed in (1, 2)
    ]
    student, teacher = (load_model(folder, dtype=torch.float32, device=device) for folder in folders)
    config = options(micro_batch_rows=2, precision="fp32")
    losses = losses_of(config, student, teacher, world.root)
    rows = TokenStore.open(world.data).heldout(5)
    losses.backward(losses.share(packed(rows, torch.arange(5).numpy())), setting_of(config))
    wide, guide = (AutoModelForCausalLM.from_pretrained(folder).double() for folder in folders)
    ids = torch.from_numpy(rows)
    log_q, log_p = (model(ids).logits[:, :-1].flatten(0, 1).log_softmax(-1) for model in (wide, guide))
    soft, hard = (
        torch.nn.functional.kl_div(log_q, log_p.detach(), log_target=True, reduction="batchmean"),
        torch.nn.functional.nll_loss(log_q, ids[:, 1:].flatten()),
    )
    (0.8 * soft + 0.2 * hard).backward()
    found = {name: p.grad for name, p in student.named_parameters()}
    for name, parameter in wide.named_parameters():
        gradient = found[name].cpu().double()
        assert ((gradient - parameter.grad).norm() / parameter.grad.norm()).item() < 1e-4, name


OTHERS: list[dict[str, Any]] = [{"document_mask": True}, {"optimizer": "muon"}]


def trained_bytes(world: World, name: str) -> bytes:
    return (world.root / name / "student" / "model.safetensors").read_bytes()


def in_a_process(world: World, name: str, config: DistillConfig, kill_at: int | None = None) -> int:
    """`compress distill`; killed as soon as the checkpoint of a step is there."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "compress.cli", *world.command(name, config)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environment)
    saved = world.root / name / "train" / "checkpoints" / f"step-{kill_at}" / "manifest.json"
    while kill_at is not None and process.poll() is None:
        if saved.is_file():
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.005)
    return process.wait()


@pytest.mark.parametrize("changes", [{}, *(pytest.param(each, marks=pytest.mark.slow) for each in OTHERS)], ids=str)
def test_a_run_killed_and_resumed_is_bitwise_the_same(
    changes: dict[str, Any], world: World, options: Options, device: torch.device
) -> None:
    """On a GPU that is `deterministic: true`'s promise."""
    config = options(
        tokens=40 * 4 * SEQ_LEN, epochs=8, checkpoint_every=2, deterministic=True, precision="auto", **changes
    )
    assert in_a_process(world, "whole", config) == 0
    assert in_a_process(world, "cut", config, kill_at=4) == -signal.SIGKILL
    assert in_a_process(world, "cut", config) == 0
    assert trained_bytes(world, "whole") == trained_bytes(world, "cut")
    assert world.metrics("cut")[-1]["step"] == 40
    record = json.loads((world.root / "cut" / "student" / "distill.json").read_text())
    assert 0 < record["mfu"] <= 1
    assert record["peak_memory"] > 0


@pytest.mark.parametrize("documents", [False, True])
def test_a_compiled_run_is_the_plain_one(documents: bool, world: World, options: Options, device: torch.device) -> None:
    folders = {"student": save_tiny_model(world.root / "s", seed=1, num_hidden_layers=1, scale=0.1)}
    folders["teacher"] = save_tiny_model(world.root / "t", seed=2, num_hidden_layers=2, scale=0.1)
    results, losses = {}, {}
    for name, compiled in (("plain", False), ("compiled", True)):
        precision = "fp32" if device.type == "cpu" else "bf16"
        config = options(compile=compiled, document_mask=documents, precision=precision)
        results[name] = world.run(name, config, **folders)
        losses[name] = [row["loss"] for row in world.metrics(name) if "loss" in row]
    assert losses["compiled"] == pytest.approx(losses["plain"], rel=1e-4 if device.type == "cpu" else 1e-2)
    if device.type == "cuda":
        expected = DOCUMENTS if documents else ROWS
        assert results["compiled"].attention == expected
        assert results["plain"].attention == (DOCUMENTS if documents else "sdpa")


@pytest.mark.parametrize("model_type", ["llama", "mistral"])
def test_documents_are_kept_apart_by_the_kernel(model_type: str, device: torch.device) -> None:
    """Against each document alone, in float64 on the CPU."""
    if device.type != "cuda":
        pytest.skip("the kernel is CUDA's")
    torch.manual_seed(0)
    fields = {"sliding_window": 16} if model_type == "mistral" else {}
    model = AutoModelForCausalLM.from_config(tiny_config(model_type, **fields), attn_implementation="sdpa").eval()
    exact = copy.deepcopy(model).double()
    rows = torch.randint(0, 40, (4, 96), generator=torch.Generator().manual_seed(1)).numpy()
    positions = document_positions(starts_after_eos(rows, 7))
    alone = []
    for row, place in zip(rows, positions, strict=True):
        ends = [*(place == 0).nonzero()[0].tolist(), len(row)]
        parts = [torch.from_numpy(row[start:end])[None] for start, end in itertools.pairwise(ends)]
        alone.append(torch.cat([hidden_states(exact, part)[0] for part in parts]))
    model = model.to(device)
    arguments = [torch.from_numpy(array).to(device) for array in (rows, positions, document_boundaries(positions))]
    with torch.autocast("cuda", torch.bfloat16), torch.no_grad():
        assert choose(model, DOCUMENTS, 96)
        found = packed_hidden_states(model, *arguments).double().cpu()
    expected = torch.stack(alone)
    assert ((found - expected).norm() / expected.norm()).item() < 2e-2


@pytest.mark.parametrize("name", ["adamw", "muon", "adamw8bit"])
def test_optimizers_step_as_on_a_cpu(name: str, options: Options, device: torch.device) -> None:
    if name == "adamw8bit":
        pytest.importorskip("torchao")
    torch.manual_seed(0)
    plain = AutoModelForCausalLM.from_config(tiny_config(num_hidden_layers=1, hidden_size=128, intermediate_size=256))
    moved = copy.deepcopy(plain).to(device)
    before = {key: value.clone() for key, value in plain.named_parameters()}
    for model in (plain, moved):
        optimizer = make_optimizer(model, options(optimizer=name))
        for number, parameter in enumerate(model.parameters()):
            draw = torch.Generator().manual_seed(number)
            parameter.grad = torch.randn(parameter.shape, generator=draw).to(parameter.device)
        optimizer.step(1e-3, skip=torch.zeros((), device=next(model.parameters()).device))
    ours, theirs = dict(moved.named_parameters()), dict(plain.named_parameters())
    for key, start in before.items():
        change, expected = ours[key].detach().cpu() - start, theirs[key].detach() - start
        assert expected.norm() > 0
        assert ((change - expected).norm() / expected.norm()).item() < (1e-4 if name == "adamw" else 3e-2), key


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_a_quantised_teacher_stays_within_its_kl(
    kind: Any, world: World, options: Options, device: torch.device
) -> None:
    pytest.importorskip("torchao")
    if kind == "fp8" and (device.type != "cuda" or torch.cuda.get_device_capability() < (8, 9)):
        pytest.skip("needs a GPU with fp8 products")
    folder = save_tiny_model(world.root / "teacher", seed=4, scale=0.15, hidden_size=64)
    teacher = load_model(folder, dtype=torch.bfloat16, device=device)
    rows = TokenStore.open(world.data).heldout(6)
    found = quantize_teacher(teacher, options(teacher_precision=kind, teacher_max_kl=1.0, precision="bf16"), rows)
    assert 1e-7 < found < 0.5


def test_weights_split_over_one_process_learn_the_same(world: World, options: Options, device: torch.device) -> None:
    folder = save_tiny_model(world.root / "m", seed=1)
    gradients = {}
    backend = "nccl" if device.type == "cuda" else "gloo"
    store = torch.distributed.FileStore(str(world.root / "store"), 1)
    for split in (False, True):
        model = load_model(folder, dtype=torch.float32, device=device)
        if split:
            torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)
            shard_model(model, model, device=device, bf16=False)
        ids = torch.arange(60, device=device).view(2, 30)
        model(input_ids=ids, labels=ids).loss.backward()
        gradients[split] = {
            name: (p.grad.full_tensor() if split else p.grad).cpu() for name, p in model.named_parameters()
        }
    torch.distributed.destroy_process_group()
    torch.testing.assert_close(gradients[True], gradients[False], rtol=1e-4, atol=1e-6)


def test_scores_are_lm_evals(world: World, device: torch.device) -> None:
    checkpoint = load_checkpoint(save_tiny_model(world.root / "m", seed=3), dtype="float32", device=str(device))
    pairs = [
        (f"The number {i} is followed by", f" {word}") for i in range(6) for word in ("one", "some more", "nothing")
    ]
    requests = [Instance("loglikelihood", {}, pair, 0, ("t", 0, 1)) for pair in pairs]
    theirs = HFLM(
        pretrained=AutoModelForCausalLM.from_pretrained(checkpoint.folder).to(device), tokenizer=byte_tokenizer(),
        backend="causal", batch_size=4, softmax_dtype="float32",
    ).loglikelihood(requests, disable_tqdm=True)  # fmt: skip
    ours = Scorer(checkpoint, 512).loglikelihood(requests, disable_tqdm=True)
    for (score, greedy), (expected, expected_greedy) in zip(ours, theirs, strict=True):
        assert score == pytest.approx(expected, rel=1e-4, abs=1e-4)
        assert greedy == expected_greedy


def test_an_evaluation_is_a_cpus(world: World, text_file: Path, device: torch.device) -> None:
    folders = [save_tiny_model(world.root / f"m{seed}", seed=seed) for seed in (1, 2)]
    found = {}
    for place in ("cpu", str(device)):
        config = EvalConfig(
            dtype="float32",
            device=place,
            heldout_sequences=4,
            heldout_seq_len=64,
            samples=1,
            responses=2,
            speed_repeats=1,
        )
        found[place] = evaluate_model(folders[0], config, teacher=folders[1], text=text_file)
    for part, name in (("heldout", "loss_nats"), ("fidelity", "kl_nats")):
        assert found[str(device)][part][name] == pytest.approx(found["cpu"][part][name], rel=1e-4)
    assert found[str(device)]["speed"]["decode_tokens_per_s"] > 0


@pytest.mark.parametrize("by", ["block-influence", "angular", "perplexity", "perplexity-greedy", "taylor"])
def test_layers_rank_as_on_a_cpu(by: Any, world: World, text_file: Path, device: torch.device) -> None:
    teacher = save_tiny_model(world.root / "m", seed=1)
    scores = []
    for number, place in enumerate(("cpu", str(device))):
        choice = RankingConfig(by=by, layers=2, calibration=str(text_file), calibration_tokens=1500, device=place)
        scores.append(prune(teacher, world.root / f"cut-{number}", choice).record["scores"])
    assert scores[1] == pytest.approx(scores[0], rel=1e-3, abs=1e-5)


def test_a_cut_is_repaired_as_on_a_cpu(world: World, text_file: Path, device: torch.device) -> None:
    teacher = save_tiny_model(world.root / "m", seed=1)
    weights = []
    for number, place in enumerate(("cpu", str(device))):
        how = RepairConfig(calibration=str(text_file), repair_tokens=1500, device=place)
        out = prune(teacher, world.root / f"cut-{number}", "0,3", repair=how).out
        weights.append(load_file(out / "model.safetensors"))
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-2, atol=1e-3)


def test_micro_batches_of_any_size_give_the_same_losses(world: World, options: Options, device: torch.device) -> None:
    models = {name: save_tiny_model(world.root / name, seed=seed) for seed, name in enumerate(("student", "teacher"))}
    losses = []
    for rows in (1, 4):
        config = options(precision="fp32", deterministic=True, micro_batch_rows=rows)
        world.run(f"rows-{rows}", config, **models)
        losses.append([row["loss"] for row in world.metrics(f"rows-{rows}") if "loss" in row])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
