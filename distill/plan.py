"""What a distillation will cost, from config.json files alone."""

import copy
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from compress.base.units import format_bytes, format_count
from compress.distill.config import DistillConfig
from compress.distill.loop.optimizer import state_bytes
from compress.distill.objective.chunks import default_chunk_tokens
from compress.distill.objective.mixture import mixing_bytes
from compress.distill.objective.objective import Objective, make_objective
from compress.distill.objective.part import Pair
from compress.distill.resources.auto import (
    default_micro_batch_rows,
    resolve_attention,
    resolve_precision,
    resolve_sharding,
)
from compress.distill.resources.flops import measuring_flops_per_token, training_flops_per_token
from compress.distill.resources.loading import recompute_activations
from compress.distill.resources.schedule import budget
from compress.distill.resources.step_memory import StepShape, trace_step
from compress.distill.students.parts import select, sketch, trained_parameters
from compress.distill.students.quantized import weight_bytes
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
    parameters: int
    """Of the student as it is in the end."""
    trained_parameters: int
    """Of its own, or of adapters."""
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

    def trained_text(self) -> str:
        """`all 134M` or `4.88M of 134M` parameters, for people."""
        trained, all_of_them = format_count(self.trained_parameters), format_count(self.parameters)
        return f"all {all_of_them}" if self.trained_parameters == self.parameters else f"{trained} of {all_of_them}"

    def memory_text(self) -> str:
        """`weights 2.79 GiB, gradients 2.79 GiB, ...` for people."""
        return ", ".join(f"{name} {format_bytes(size)}" for name, size in self.memory_bytes.items())


@dataclasses.dataclass(frozen=True)
class ScoringPlan:
    """Cost of the pass that scores the text, which a store whose scores are kept is spared."""

    tokens: int | None
    """Of all training rows; None where these are not counted yet."""
    flops_per_token: float

    @property
    def flops(self) -> float | None:
        """Of the whole pass."""
        return None if self.tokens is None else self.tokens * self.flops_per_token


def plan_scoring(
    config: DistillConfig, *, student: Any, teacher: Any, num_rows: int | None, seq_len: int
) -> ScoringPlan | None:
    """The pass over a store before a training that selects from it or orders it; None where neither is asked for.

    `student` and `teacher` are model configs. Heads are counted at every token; of conversations they run at those that
    are learned.
    """
    if config.scored is None:
        return None
    learner = student if config.scored.by == "student_disagreement" else None
    flops = measuring_flops_per_token(learner, teacher, seq_len)
    return ScoringPlan(None if num_rows is None else num_rows * seq_len, flops)


def plan_distill(
    config: DistillConfig,
    *,
    student: Any,
    teacher: Any | None,
    num_rows: int,
    seq_len: int,
    device: torch.device | None = None,
    processes: int = 1,
    kept: tuple[int, ...] | None = None,
    cached: bool = False,
    others: Sequence[Any] = (),
) -> DistillPlan:
    """Steps, tokens and FLOPs of a run, and the memory of one of its processes.

    `student`, `teacher` and the `others` that teach beside it are model configs (`PretrainedConfig`), `kept` the
    teacher's layers that the student has; the store has `num_rows` rows of `seq_len` tokens. With `cached`, the teacher
    is not run: its signals come from a cache. Without a `device` the plan is for a GPU that has bf16, or for a CPU at
    `precision: fp32`.

    Raises:
        UsageError: more tokens than the store has in `epochs`, a step shorter than a row, or parts to train that the
            student does not have.
    """
    extent = budget(config, num_rows=num_rows, seq_len=seq_len)
    tokens = extent.rows * seq_len
    pair = _pair(config, student, teacher, kept)._replace(others=tuple(others))
    if device is None:
        device = torch.device("cpu" if config.precision == "fp32" else "cuda")
        bf16 = device.type == "cuda"
    else:
        bf16 = resolve_precision(config, device) == "bf16"
    model = sketch(config, pair, bf16=bf16)
    trained = trained_parameters(model)
    per_token = training_flops_per_token(model, None if cached else teacher, seq_len, others)
    shape = _shape(config, pair, seq_len, device, bf16, processes)
    return DistillPlan(
        steps=extent.steps,
        tokens=tokens,
        flops_per_token=per_token,
        flops=per_token * tokens,
        parameters=count_parameters(empty_model(student)),
        trained_parameters=trained,
        micro_batch_rows=shape.rows,
        memory_bytes=_memory(config, pair, shape, processes, trained, cached=cached),
    )


def _shape(
    config: DistillConfig, pair: Pair, seq_len: int, device: torch.device, bf16: bool, processes: int
) -> StepShape:
    step_rows = -(-(config.batch_tokens // seq_len) // processes)
    rows = min(step_rows, config.micro_batch_rows or default_micro_batch_rows(device, seq_len))
    vocabulary: int = pair.student.get_text_config().vocab_size
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
        select=functools.partial(select, config=config, pair=pair, bf16=bf16),
    )


def _memory(
    config: DistillConfig, pair: Pair, shape: StepShape, processes: int, trained: int, *, cached: bool
) -> dict[str, int]:
    objective = make_objective(config, pair)
    activations, peak = _step_memory(pair, shape, gradients=4 * trained)
    beside = max(0, peak - 4 * trained)
    parts = {
        **held_bytes(config, pair, bf16=shape.bf16, processes=processes, cached=cached),
        "activations": min(activations, beside),
        "signals": _signal_bytes(objective, pair, shape, 2 if shape.bf16 else 4),
        "projections": (4 + 4 + 8) * sum(parameter.numel() for parameter in objective.learned.parameters()),
        "temporary": max(0, beside - activations) + _mixing_bytes(pair, shape),
        "data": _BYTES_READ_PER_TOKEN * config.batch_tokens,
    }
    return {name: size for name, size in parts.items() if size}


def held_bytes(
    config: DistillConfig, pair: Pair, *, bf16: bool, processes: int, cached: bool = False
) -> dict[str, int]:
    """Bytes of what one process holds all the time: parameters and what there is one of for each of them; of a `cached`
    teacher the output head alone, of those beside it all.

    Raises:
        UsageError: as `sketch`.
    """
    model, guide = sketch(config, pair, bf16=bf16), None if pair.teacher is None else empty_model(pair.teacher)
    others = [empty_model(copy.deepcopy(other)) for other in pair.others]
    sharding = "none" if processes == 1 else resolve_sharding(config, processes)
    own = 1 if sharding == "none" else processes
    value = 2 if bf16 else 4
    live = [*([] if guide is None or cached else [guide]), *others]
    of_teacher = sum(teacher_bytes(each, config, value) // (processes if sharding == "both" else 1) for each in live)
    if guide is not None and cached:
        of_teacher += value * count_parameters(guide.get_output_embeddings())
    parts = {
        "weights": weight_bytes(model, config) // own,
        "gradients": 4 * trained_parameters(model) // own,
        "optimizer moments": state_bytes(model, config) // own,
        "teacher": of_teacher,
        "gathered weights": 0 if own == 1 else value * _gathered(model, _with_gradients),
    }
    if sharding == "both":
        parts["gathered weights"] += value * sum(_gathered(each, count_parameters) for each in live)
    return parts


def _pair(config: DistillConfig, student: Any, teacher: Any | None, kept: tuple[int, ...] | None) -> Pair:
    """The two models; which layers were kept touches the costs of `train: seams` alone, and is else made up."""
    if kept is not None or config.train == "seams":
        return Pair(student, teacher, kept)
    depths = [model.get_text_config().num_hidden_layers for model in (student, teacher) if model is not None]
    return Pair(student, teacher, tuple(range(depths[0])) if depths[0] <= depths[-1] else None)


def _signal_bytes(objective: Objective, pair: Pair, shape: StepShape, value: int) -> int:
    """The outputs of blocks that the objective holds, of both models, beside their last hidden states; and the last
    hidden states of the teachers beside the first."""
    needs = objective.needs
    held = ((needs.student_blocks, pair.student), (needs.teacher_blocks, pair.teacher))
    widths: int = sum(len(blocks) * model.get_text_config().hidden_size for blocks, model in held if model is not None)
    widths += sum(other.get_text_config().hidden_size for other in pair.others)
    return shape.rows * shape.seq_len * widths * value


def _mixing_bytes(pair: Pair, shape: StepShape) -> int:
    """What several teachers' logits take to be made one."""
    vocabulary: int = pair.student.get_text_config().vocab_size
    tokens = shape.logits_bytes // (vocabulary * (2 if shape.bf16 else 4))
    return mixing_bytes(tokens, vocabulary) if pair.others else 0


def _with_gradients(module: nn.Module) -> int:
    """Values of a module's parameters, and of the gradients that are whole before they are split."""
    return count_parameters(module) + trained_parameters(module)


def _gathered(model: Any, count: Callable[[Any], int]) -> int:
    """Parameters of a split model that are whole at one time: all but the layers', and those of two layers."""
    layers = [count(layer) for layer in decoder_layers(model)[1]]
    return count(model) - sum(layers) + 2 * max(layers)


def _step_memory(pair: Pair, shape: StepShape, gradients: int) -> tuple[int, int]:
    """Activations, and the peak with gradients; an estimate for models that cannot be run without values."""
    try:
        return trace_step(pair.student, pair.teacher, shape)
    except Exception:  # whatever a model of any architecture raises on tensors without values
        config = pair.student.get_text_config()
        value = 2 if shape.bf16 else 4
        activations = shape.rows * shape.seq_len * _activation_bytes_per_token(config, shape, value)
        head = 4 * config.vocab_size * config.hidden_size
        return activations, activations + gradients + head + (1 if pair.teacher is None else 2) * shape.logits_bytes


def _activation_bytes_per_token(config: Any, shape: StepShape, value: int) -> int:
    """About 27 hidden-sized values a layer with a gated MLP and memory-efficient attention, as measured on Llama.

    With gradient checkpointing one layer holds them and the others keep their input.
    """
    layers: int = config.num_hidden_layers
    width: int = config.hidden_size
    per_layer = 27 * width * value
    return layers * per_layer if shape.recompute is None else per_layer + layers * width * value
