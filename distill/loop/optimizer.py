"""The student's optimizer: AdamW, Muon with AdamW, or AdamW with 8-bit moments; each steps whole or not at all."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compress.base.errors import UsageError, reason_of
from compress.base.packages import require_package
from compress.distill.config import DistillConfig
from compress.distill.students.sharding import local

_BLOCK_VALUES_8BIT = 256
_MIN_VALUES_8BIT = 4096


class StudentOptimizer:
    """torch optimizers over disjoint parts of a model's parameters, stepped as one.

    Their state exists from the start, at zero, so a checkpoint is put back by copying into it and memory does not grow
    at the first step. Of a parameter that is split over processes they are given this process's part: `shards` maps
    those to their parameters.
    """

    def __init__(self, parts: Sequence[torch.optim.Optimizer], shards: Mapping[Tensor, Tensor] | None = None) -> None:
        self._parts = parts
        self._shards = dict(shards or {})
        self._allocate()

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The parameter groups of all parts."""
        return [group for part in self._parts for group in part.param_groups]

    @property
    def state(self) -> dict[Tensor, dict[str, Tensor]]:
        """Each parameter's state tensors by name; of a split parameter, those of this process's part."""
        states = {parameter: state for part in self._parts for parameter, state in part.state.items()}
        return {self._shards.get(parameter, parameter): state for parameter, state in states.items()}

    @torch.no_grad()
    def step(self, lr: float, skip: Tensor) -> None:
        """Change the weights by their gradients at the rate `lr`.

        Where `skip` (a float 0-dimensional tensor on the weights' device) is 1, no bit of any weight or state changes,
        whatever is in the gradients. It is never read back, so the host does not wait for the device.
        """
        for shard, parameter in self._shards.items():
            shard.grad = None if parameter.grad is None else local(parameter.grad)
        for group in self.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr
        for part in self._parts:
            if isinstance(part, torch.optim.AdamW):
                part.found_inf = skip  # type: ignore[attr-defined]
                part.step()
            else:
                _step_or_keep(part, skip.bool())

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for part in self._parts:
            part.zero_grad()
        for parameter in self._shards.values():
            parameter.grad = None

    def _allocate(self) -> None:
        """Make the state, all zero, by a skipped step of zero gradients."""
        parameters = [self._shards.get(p, p) for group in self.param_groups for p in group["params"]]
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        self.step(0.0, torch.ones((), device=parameters[0].device))
        self.zero_grad()
        for parameter, state in self.state.items():
            if "step" in state:  # torchao's is on the CPU: putting it back there would wait for the device
                state["step"] = state["step"].to(parameter.device).zero_()


def make_optimizer(model: nn.Module, config: DistillConfig, beside: Iterable[Tensor] = ()) -> StudentOptimizer:
    """The optimizer `config.optimizer` names, over the trainable parameters of a Hugging Face model, and what is
    learned `beside` it.

    Weight decay is on matrices only (not on norms and biases), decoupled, scaled by the learning rate.

    - `adamw`: torch's fused AdamW (Loshchilov & Hutter, arXiv:1711.05101).
    - `muon`: torch.optim.Muon (Jordan et al., https://kellerjordan.github.io/posts/muon/) for `hidden_matrices`, AdamW
      for the rest. Updates are scaled by 0.2 sqrt(max(rows, columns)), which gives them the root mean square of
      AdamW's, so one learning rate and one weight decay serve both (Liu et al., arXiv:2502.16982, section 2.2).
      Momentum 0.95 with Nesterov, five Newton-Schulz iterations in bf16: torch's defaults, Jordan's.
    - `adamw8bit`: torchao's AdamW whose moments are 8-bit in blocks of 256 (Dettmers et al., arXiv:2110.02861);
      tensors of fewer than 4096 values keep fp32 moments. Unlike the paper, embeddings have 8-bit moments too.

    Raises:
        UsageError: `adamw8bit` without torchao, or where its update cannot be compiled.
    """
    owners = [*(p for p in model.parameters() if p.requires_grad), *beside]
    parameters = [local(p) for p in owners]
    shards = {part: owner for part, owner in zip(parameters, owners, strict=True) if part is not owner}
    if config.optimizer == "muon":
        hidden = hidden_matrices(model)
        muon = torch.optim.Muon(
            [p for p in parameters if p in hidden],
            lr=config.lr,
            weight_decay=config.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        )
        return StudentOptimizer([muon, _fused_adamw([p for p in parameters if p not in hidden], config)])
    if config.optimizer == "adamw8bit":
        return _adamw_8bit(parameters, config)
    return StudentOptimizer([_fused_adamw(parameters, config)], shards)


def hidden_matrices(model: nn.Module) -> set[Tensor]:
    """Trainable weights of the linear layers between embeddings and output head: what Muon is for.

    Linear layers are `nn.Linear` and GPT-2's `Conv1D` (the transpose of one, which Muon does not mind). Not among them
    are matrices that are no linear map of the hidden states (embeddings, state-space parameters), the output head,
    tied or not, and weights of experts stacked into one tensor.
    """
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()  # type: ignore[operator]
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | Conv1D) and m is not head]
    return {layer.weight for layer in layers if layer.weight.requires_grad}


def state_bytes(model: nn.Module, config: DistillConfig) -> int:
    """Bytes of the optimizer's state for a model (which may be on the meta device), but for a few a tensor."""
    hidden = hidden_matrices(model) if config.optimizer == "muon" else set()
    return sum(_state_bytes(p, config, p in hidden) for p in model.parameters() if p.requires_grad)


def flat_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One parameter's state as plain tensors; a tensor subclass is taken apart (`exp_avg.codes`, `exp_avg.scale`)."""
    flat: dict[str, Tensor] = {}
    for key, value in state.items():
        if hasattr(value, "__tensor_flatten__"):
            flat |= {f"{key}.{inner}": getattr(value, inner) for inner in value.__tensor_flatten__()[0]}
        else:
            flat[key] = value
    return flat


def _fused_adamw(parameters: Sequence[Tensor], config: DistillConfig) -> torch.optim.AdamW:
    """The fused kernel can skip a step on the device (`found_inf`) with nothing read back."""
    return torch.optim.AdamW(_decay_groups(parameters, config), lr=config.lr, betas=config.betas, fused=True)


def _adamw_8bit(parameters: Sequence[Tensor], config: DistillConfig) -> StudentOptimizer:
    require_package("torchao", "optimizer: adamw8bit")
    from torchao.optim import AdamW8bit

    try:
        return StudentOptimizer([AdamW8bit(_decay_groups(parameters, config), lr=config.lr, betas=config.betas)])
    except RuntimeError as error:
        raise UsageError(
            "optimizer: adamw8bit compiles its update, which failed here "
            f"({reason_of(error)}). It needs a C++ compiler on CPUs and Triton on GPUs; install it, "
            "or use optimizer: adamw."
        ) from error


def _decay_groups(parameters: Sequence[Tensor], config: DistillConfig) -> list[dict[str, Any]]:
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _step_or_keep(optimizer: torch.optim.Optimizer, skip: Tensor) -> None:
    """`optimizer.step()` for one that knows no `found_inf`; where `skip` is true, everything is put back as it was.

    Parameters go one at a time, so that there is a copy of only one parameter and its state.
    """
    groups = optimizer.param_groups
    try:
        for group in groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                tensors = [parameter, *flat_state(optimizer.state[parameter]).values()]
                before = [tensor.clone() for tensor in tensors]
                optimizer.param_groups = [{**group, "params": [parameter]}]
                optimizer.step()
                for now, then in zip(tensors, before, strict=True):
                    now.copy_(torch.where(skip, then, now))
    finally:
        optimizer.param_groups = groups


def _state_bytes(parameter: Tensor, config: DistillConfig, hidden: bool) -> int:
    count = parameter.numel()
    if hidden:
        return 4 * count
    quantised = count >= _MIN_VALUES_8BIT and count % _BLOCK_VALUES_8BIT == 0
    if config.optimizer == "adamw8bit" and quantised:
        return 2 * (count + 4 * count // _BLOCK_VALUES_8BIT)
    return 8 * count
