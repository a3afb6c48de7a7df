"""What a distillation will cost, from config.json files alone."""

import dataclasses
from typing import Any

import torch

from compress.base.units import format_bytes
from compress.distill.config import DistillConfig
from compress.distill.loop.optimizer import state_bytes
from compress.distill.objective.chunks import default_chunk_tokens
from compress.distill.objective.objective import Objective, make_objective
from compress.distill.objective.part import Pair
from compress.distill.resources.auto import (
    default_micro_batch_rows,
    resolve_attention,
    resolve_precision,
    resolve_sharding,
)
from compress.distill.resources.flops import training_flops_per_token
from compress.distill.resources.loading import recompute_activations
from compress.distill.resources.schedule import budget
from compress.distill.resources.step_memory import StepShape, trace_step
from compress.distill.teachers.quantization import teacher_bytes
from compress.model.parts import count_parameters, decoder_layers, empty_model

_BYTES_READ_PER_TOKEN = 2 * 2 * 8


@dataclasses.dataclass(frozen=True)
class DistillPlan:
    """Extent and cost of a run on one device."""

    steps: int
    tokens: int
    flops_per_token: float
    flops: float
    micro_batch_rows: int
    memory_bytes: dict[str, int]
    """Bytes of each part at the peak; `activations` and `temporary` (logits, layers' gradients) are beside the rest."""

    @property
    def total_bytes(self) -> int:
        """Sum of all parts."""
        return sum(self.memory_bytes.values())

    def hours(self, flops_per_s: float) -> float:
        """Hours of training at a rate of `flops_per_s` actually reached (a GPU's peak times 0.3 to 0.5)."""
        return self.flops / flops_per_s / 3600

    def memory_text(self) -> str:
        """`weights 2.79 GiB, gradients 2.79 GiB, ...` for people."""
        return ", ".join(f"{name} {format_bytes(size)}" for name, size in self.memory_bytes.items())


def plan_distill(
    config: DistillConfig,
    *,
    student: Any,
    teacher: Any | None,
    num_rows: int,
    seq_len: int,
    device: torch.device | None = None,
    processes: int = 1,
) -> DistillPlan:
    """Steps, tokens and FLOPs of a run, and the memory of one of its processes.

    `student` and `teacher` are model configs (`PretrainedConfig`); the store has `num_rows` rows of `seq_len` tokens.
    Without a `device` the plan is for a GPU that has bf16, or for a CPU at `precision: fp32`.

    Raises:
        UsageError: more tokens than the store has in `epochs`, or a step shorter than a row.
    """
    extent = budget(config, num_rows=num_rows, seq_len=seq_len)
    tokens = extent.rows * seq_len
    per_token = training_flops_per_token(student, teacher, seq_len)
    if device is None:
        device = torch.device("cpu" if config.precision == "fp32" else "cuda")
        bf16 = device.type == "cuda"
    else:
        bf16 = resolve_precision(config, device) == "bf16"
    shape = _shape(config, student, seq_len, device, bf16, processes)
    return DistillPlan(
        steps=extent.steps,
        tokens=tokens,
        flops_per_token=per_token,
        flops=per_token * tokens,
        micro_batch_rows=shape.rows,
        memory_bytes=_memory(config, student, teacher, shape, processes),
    )


def _shape(
    config: DistillConfig, student: Any, seq_len: int, device: torch.device, bf16: bool, processes: int
) -> StepShape:
    step_rows = -(-(config.batch_tokens // seq_len) // processes)
    rows = min(step_rows, config.micro_batch_rows or default_micro_batch_rows(device, seq_len))
    vocabulary: int = student.get_text_config().vocab_size
    value_bytes = 2 if bf16 else 4
    chunk = config.chunk_tokens or min(rows * seq_len, default_chunk_tokens(device, vocabulary, value_bytes))
    return StepShape(
        rows=rows,
        seq_len=seq_len,
        bf16=bf16,
        attention=resolve_attention(config, device, seq_len) or "sdpa",
        recompute=recompute_activations if config.gradient_checkpointing else None,
        logits_bytes=chunk * vocabulary * value_bytes,
        accumulates=rows < step_rows,
    )


def _memory(
    config: DistillConfig, student: Any, teacher: Any | None, shape: StepShape, processes: int
) -> dict[str, int]:
    pair = _pair(student, teacher)
    objective = make_objective(config, pair)
    activations, peak = _step_memory(student, teacher, shape)
    beside = max(0, peak - 4 * count_parameters(empty_model(student)))
    parts = {
        **held_bytes(config, student, teacher, bf16=shape.bf16, processes=processes),
        "activations": min(activations, beside),
        "signals": _signal_bytes(objective, pair, shape, 2 if shape.bf16 else 4),
        "projections": (4 + 4 + 8) * sum(parameter.numel() for parameter in objective.learned.parameters()),
        "temporary": max(0, beside - activations),
        "data": _BYTES_READ_PER_TOKEN * config.batch_tokens,
    }
    return {name: size for name, size in parts.items() if size}


def held_bytes(
    config: DistillConfig, student: Any, teacher: Any | None, *, bf16: bool, processes: int
) -> dict[str, int]:
    """Bytes of what one process holds all the time: parameters and what there is one of for each of them."""
    model, guide = empty_model(student), None if teacher is None else empty_model(teacher)
    parameters = count_parameters(model)
    sharding = "none" if processes == 1 else resolve_sharding(config, processes)
    own = 1 if sharding == "none" else processes
    value = 2 if bf16 else 4
    parts = {
        "weights": 4 * parameters // own,
        "gradients": 4 * parameters // own,
        "optimizer moments": state_bytes(model, config) // own,
        "teacher": 0
        if guide is None
        else teacher_bytes(guide, config, value) // (processes if sharding == "both" else 1),
        "gathered weights": 0 if own == 1 else 2 * value * _gathered_parameters(model),
    }
    if guide is not None and sharding == "both":
        parts["gathered weights"] += value * _gathered_parameters(guide)
    return parts


def _pair(student: Any, teacher: Any | None) -> Pair:
    """The two models; which layers were kept does not touch what it costs."""
    depths = [model.get_text_config().num_hidden_layers for model in (student, teacher) if model is not None]
    return Pair(student, teacher, tuple(range(depths[0])) if depths[0] <= depths[-1] else None)


def _signal_bytes(objective: Objective, pair: Pair, shape: StepShape, value: int) -> int:
    """The outputs of blocks that the objective holds, of both models, beside last hidden states."""
    needs = objective.needs
    held = ((needs.student_blocks, pair.student), (needs.teacher_blocks, pair.teacher))
    widths: int = sum(len(blocks) * model.get_text_config().hidden_size for blocks, model in held if model is not None)
    return shape.rows * shape.seq_len * widths * value


def _gathered_parameters(model: Any) -> int:
    """Parameters of a split model that are whole at one time: all but the layers', and those of two layers."""
    layers = [count_parameters(layer) for layer in decoder_layers(model)[1]]
    return count_parameters(model) - sum(layers) + 2 * max(layers)


def _step_memory(student: Any, teacher: Any | None, shape: StepShape) -> tuple[int, int]:
    """Activations, and the peak with gradients; an estimate for models that cannot be run without values."""
    try:
        return trace_step(student, teacher, shape)
    except Exception:  # whatever a model of any architecture raises on tensors without values
        config = student.get_text_config()
        value = 2 if shape.bf16 else 4
        activations = shape.rows * shape.seq_len * _activation_bytes_per_token(config, shape, value)
        head = 4 * config.vocab_size * config.hidden_size
        gradients = 4 * count_parameters(empty_model(student))
        return activations, activations + gradients + head + (1 if teacher is None else 2) * shape.logits_bytes


def _activation_bytes_per_token(config: Any, shape: StepShape, value: int) -> int:
    """About 27 hidden-sized values a layer with a gated MLP and memory-efficient attention, as measured on Llama.

    With gradient checkpointing one layer holds them and the others keep their input.
    """
    layers: int = config.num_hidden_layers
    width: int = config.hidden_size
    per_layer = 27 * width * value
    return layers * per_layer if shape.recompute is None else per_layer + layers * width * value
