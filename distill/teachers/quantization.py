"""What torchao, an optional package, gives: a teacher with 8-bit weights, kept only if it still says the same."""

from typing import Any

import torch
from torch import Tensor, nn

from compress.base.errors import UsageError
from compress.base.packages import require_package
from compress.base.progress import say
from compress.distill.config import DistillConfig
from compress.distill.objective.loss import IGNORE_INDEX, distillation_loss
from compress.distill.resources.auto import resolve_precision
from compress.distill.rows.batch import Ids
from compress.model.parts import OutputHead, count_parameters, decoder_layers, hidden_states, output_head

MEASURED_TOKENS = 16384
"""Held-out tokens, at most, on which a change of the teacher's signals is measured."""
_FP8_CAPABILITY = (8, 9)


@torch.no_grad()
def quantize_teacher(teacher: Any, config: DistillConfig, heldout: Ids, labels: Ids | None = None) -> float:
    """Quantise the linear layers of a teacher in place; returns KL(exact || quantised) in nats a token.

    The KL is the mean over the held-out rows [H, S], at most 16384 tokens of them; with `labels` [H, S - 1] (as of a
    `Batch`) over the tokens that have one. Embeddings, norms and the output head stay as they are: the loss multiplies
    the head itself. `int8` holds weights in 8 bits, one scale a row, and multiplies in the teacher's dtype; `fp8` also
    multiplies in fp8 (e4m3, a scale a row and a token).

    Raises:
        UsageError: torchao is missing, the device has no fp8 products, the teacher has no linear layers, there are no
            held-out rows, or the KL is above `teacher_max_kl`.
    """
    device = next(teacher.parameters()).device
    check_quantization(config, device, num_heldout=len(heldout))
    count = max(1, MEASURED_TOKENS // max(heldout.shape[1], 1))
    rows = torch.from_numpy(heldout[:count]).to(device)
    _, layers = decoder_layers(teacher)
    option = _option(config)
    if not any(isinstance(module, nn.Linear) for module in layers.modules()):
        raise UsageError(f"{option}: {type(teacher).__name__} has no linear layers that torchao knows; leave it out.")
    counting: Any = slice(None)
    if labels is not None:
        counting = (
            torch.nn.functional.pad(torch.from_numpy(labels[:count] != IGNORE_INDEX), (0, 1)).flatten().to(device)
        )
    head, exact = output_head(teacher), _all_hidden(teacher, rows)[counting]

    from torchao.quantization import quantize_

    quantize_(layers, _recipe(config))
    kl = divergence_of_states(exact, _all_hidden(teacher, rows)[counting], head, config)
    say(f"The {config.teacher_precision} teacher differs from the exact one by {kl:.2g} nats a token (held-out rows).")
    if not kl <= config.teacher_max_kl:
        raise UsageError(
            f"{option} changes the teacher by {kl:.3g} nats a token on held-out rows, more than teacher_max_kl = "
            f"{config.teacher_max_kl}. Use teacher_precision: auto, or raise the limit if that is little beside what "
            "the student will be off by."
        )
    return kl


def teacher_bytes(teacher: Any, config: DistillConfig, value_bytes: int) -> int:
    """Bytes of a teacher's weights (it may be on the meta device) with `value_bytes` each where they stay exact."""
    exact = count_parameters(teacher)
    if config.teacher_precision == "auto":
        return value_bytes * exact
    linear = sum(m.weight.numel() for m in decoder_layers(teacher)[1].modules() if isinstance(m, nn.Linear))
    return value_bytes * (exact - linear) + linear


def check_quantization(config: DistillConfig, device: torch.device, *, num_heldout: int) -> None:
    """Refuse to quantise a teacher where that cannot be done or not be measured.

    Raises:
        UsageError: torchao is missing, there are no held-out rows, or the device or the precision has no fp8 products.
    """
    if config.teacher_precision == "auto":
        return
    option = _option(config)
    require_package("torchao", option)
    if not num_heldout:
        raise UsageError(f"{option} is measured on held-out rows and there are none; raise heldout_sequences.")
    if config.teacher_precision == "fp8":
        capable = device.type == "cuda" and torch.cuda.get_device_capability(device) >= _FP8_CAPABILITY
        if not capable or resolve_precision(config, device) != "bf16":
            raise UsageError(
                f"{option} needs a GPU of compute capability 8.9 or later (Ada, Hopper) and precision: bf16; use int8 "
                "elsewhere."
            )


def _option(config: DistillConfig) -> str:
    return f"teacher_precision: {config.teacher_precision}"


def _recipe(config: DistillConfig) -> Any:
    """torchao's config; it must not touch the compiler's settings, which are the whole process's."""
    from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, Int8WeightOnlyConfig, PerRow

    if config.teacher_precision == "int8":
        return Int8WeightOnlyConfig(set_inductor_config=False)
    return Float8DynamicActivationFloat8WeightConfig(granularity=PerRow(), set_inductor_config=False)


def _all_hidden(model: Any, rows: Tensor) -> Tensor:
    """Last hidden states [H * S, D], one row of `rows` [H, S] at a time."""
    return torch.cat([hidden_states(model, row[None])[0] for row in rows])


def divergence_of_states(exact: Tensor, changed: Tensor, head: OutputHead, config: DistillConfig) -> float:
    """KL(exact || changed) of hidden states [N, D] through one head, nats a token, at temperature 1."""
    labels = torch.zeros(len(exact), dtype=torch.int64, device=exact.device)
    out = distillation_loss(
        changed, head, exact, head, labels, alpha=1.0, ignore_index=None, chunk_tokens=config.chunk_tokens
    )
    return float(out.soft)
