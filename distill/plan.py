"""What a distillation will cost, from config.json files alone."""

import dataclasses
from typing import Any

from compress.architecture import count_parameters, empty_model
from compress.distill.config import DistillConfig
from compress.distill.flops import training_flops_per_token
from compress.distill.optimizer import state_bytes
from compress.distill.quantization import teacher_bytes
from compress.distill.schedule import budget
from compress.units import format_bytes

_MICRO_BATCH_TOKENS = 16384
_LOGITS_BYTES = 128 << 20


@dataclasses.dataclass(frozen=True)
class DistillPlan:
    """Extent and cost of a run on one GPU in mixed precision (bf16), or on a CPU in fp32."""

    steps: int
    tokens: int
    flops_per_token: float
    flops: float
    memory_bytes: dict[str, int]
    """Peak bytes of each part on one device; activations are an estimate, the rest is counted."""

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
    config: DistillConfig, *, student: Any, teacher: Any | None, num_rows: int, seq_len: int
) -> DistillPlan:
    """Steps, tokens, FLOPs and memory of a run.

    `student` and `teacher` are model configs (`PretrainedConfig`); the store has `num_rows` rows of `seq_len` tokens.
    `precision: auto` counts as bf16, that is, as on a GPU.

    Raises:
        UsageError: more tokens than the store has in `epochs`, or a step shorter than a row.
    """
    extent = budget(config, num_rows=num_rows, seq_len=seq_len)
    tokens = extent.rows * seq_len
    per_token = training_flops_per_token(student, teacher, seq_len)
    return DistillPlan(
        steps=extent.steps,
        tokens=tokens,
        flops_per_token=per_token,
        flops=per_token * tokens,
        memory_bytes=_memory(config, student, teacher, seq_len),
    )


def _memory(config: DistillConfig, student: Any, teacher: Any | None, seq_len: int) -> dict[str, int]:
    value = 4 if config.precision == "fp32" else 2
    shape = student.get_text_config()
    model = empty_model(student)
    parameters = count_parameters(model)
    tokens = min(config.batch_tokens, seq_len * (config.micro_batch_rows or max(1, _MICRO_BATCH_TOKENS // seq_len)))
    chunk = (config.chunk_tokens or tokens) * shape.vocab_size * value
    if config.chunk_tokens is None:
        chunk = min(chunk, _LOGITS_BYTES)
    head_copy = shape.vocab_size * shape.hidden_size * (4 + (2 if value == 2 else 0))
    parts = {
        "weights": 4 * parameters,
        "gradients": 4 * parameters,
        "optimizer moments": state_bytes(model, config),
        "teacher": 0 if teacher is None else teacher_bytes(empty_model(teacher), config, value),
        "activations": tokens * _activation_bytes_per_token(config, shape, value),
        "loss": chunk * (1 if teacher is None else 2) + head_copy,
    }
    return {name: size for name, size in parts.items() if size}


def _activation_bytes_per_token(config: DistillConfig, shape: Any, value: int) -> int:
    """About 17 hidden-sized values a layer with a memory-efficient attention (Korthikanti et al., arXiv:2205.05198).

    With gradient checkpointing one layer holds them and the others keep their input.
    """
    layers: int = shape.num_hidden_layers
    width: int = shape.hidden_size
    per_layer = 17 * width * value
    if config.gradient_checkpointing:
        return per_layer + layers * width * value
    return layers * per_layer
