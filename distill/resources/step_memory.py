"""Peak memory of one micro-batch, found by running it on tensors that have shapes but no storage.

The models' own code runs on torch's meta device, so that what a layer keeps for its backward pass and what
recomputation saves are the architecture's and the installed library's, not a formula's.
"""

import functools
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from compress.model.kinds import model_class
from compress.model.load import no_transformers_bars
from compress.model.parts import decoder_layers, hidden_states
from compress.model.remote_code import trusted

_IN_BF16 = {functional.linear, torch.matmul, Tensor.matmul, torch.addmm, torch.bmm, torch.baddbmm}
_TEACHER_LAYERS = 2


class StepShape(NamedTuple):
    """What goes through the models at once, and how."""

    rows: int
    seq_len: int
    bf16: bool
    """Products in bf16 under autocast, and the teacher's weights in bf16."""
    attention: str
    """transformers' `attn_implementation`; all but `eager` keep no scores."""
    recompute: Callable[[Any], None] | None
    """Turns on gradient checkpointing in a model."""
    logits_bytes: int
    """Bytes of one model's logits that the loss holds at once."""
    accumulates: bool
    """Whether gradients of an earlier micro-batch are there already."""
    select: Callable[[Any], object] | None = None
    """Freezes what is not trained of the student, and adds what is trained beside it; None trains all."""
    teacher_len: int | None = None
    """Tokens of the teacher's rows, where its tokenizer is another."""


class StepMemory(NamedTuple):
    """Bytes besides weights and optimizer moments."""

    activations: int
    """What the models' forward passes leave for the loss and the backward pass."""
    peak: int
    """The most that exists at one time, gradients of parameters included."""


def trace_step(student: Any, teacher: Any | None, shape: StepShape) -> StepMemory:
    """Run one micro-batch of two model configs without storage.

    A teacher keeps nothing of its layers, so a few stand for all. Raises whatever a model raises whose control flow
    depends on values, such as a mixture of experts that asks which of them have tokens.
    """
    # Both models on the meta device, where tensors have a shape and a dtype and take no memory.
    with torch.device("meta"), no_transformers_bars():
        learner = _model(student, torch.float32, shape).train()
        if shape.select is not None:
            shape.select(learner)
        if shape.recompute is not None:
            shape.recompute(learner)
        source = None
        if teacher is not None:
            source = _model(teacher, torch.bfloat16 if shape.bf16 else torch.float32, shape).requires_grad_(False)
            del decoder_layers(source)[1][_TEACHER_LAYERS:]
        ids = torch.zeros(shape.rows, shape.seq_len, dtype=torch.int64)
        own = ids if shape.teacher_len is None else torch.zeros(shape.rows, shape.teacher_len, dtype=torch.int64)
    # What lives before the step does not count; gradients do, and are there already where micro-batches add up.
    with _LiveBytes([*learner.parameters(), *(source.parameters() if source is not None else ())]) as live:
        if shape.accumulates:
            for parameter in learner.parameters():
                parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
        activations = _micro_batch(learner, source, (ids, own), shape, live)
    return StepMemory(activations, live.peak)


def _micro_batch(
    learner: Any, source: Any | None, rows_of: tuple[Tensor, Tensor], shape: StepShape, live: "_LiveBytes"
) -> int:
    """One step as `compress.distill.loop.step` takes it, on rows of the student and of the teacher; returns the bytes
    of its activations."""
    ids, own = rows_of
    before, teacher_rows = live.now, None
    # The teacher first: of it, only the states that have a label outlive its forward pass.
    if source is not None:
        with torch.no_grad():
            teacher_hidden = hidden_states(source, own)
        teacher_rows = teacher_hidden[:, :-1].flatten(0, 1)
        del teacher_hidden
    # What is there when the student's forward pass ends is what its backward pass needs: the activations.
    hidden = hidden_states(learner, ids)
    rows = hidden[:, :-1].flatten(0, 1)
    activations = live.now - before
    # The loss makes its gradients in its forward pass; then layers are gone through backwards, and the peak is passed.
    loss = _Loss.apply(rows, learner.get_output_embeddings().weight, teacher_rows, shape)  # type: ignore[no-untyped-call]
    loss.backward()
    return activations


class _Loss(torch.autograd.Function):
    """The buffers of `distillation_loss`: a chunk's logits, and the gradients of hidden states and of a head that is
    trained, made at once."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, teacher: Tensor | None, shape: StepShape) -> Tensor:
        models = 1 if teacher is None else 2
        buffers = [hidden.new_empty(models * shape.logits_bytes, dtype=torch.uint8)]
        if shape.bf16:
            hidden = hidden.bfloat16()
            buffers.append(head.bfloat16())
        d_head = torch.empty_like(head) if ctx.needs_input_grad[1] else None
        ctx.save_for_backward(torch.empty_like(hidden), d_head)
        del buffers
        return hidden.new_empty((), dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> tuple[Tensor | None, ...]:
        return (*ctx.saved_tensors, None, None)


class _Attention(torch.autograd.Function):
    """What memory-efficient attention keeps (Dao et al., arXiv:2205.14135): its inputs, output and log-sum-exp."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


class _AsOnADevice(TorchFunctionMode):
    """Does to tensors without storage what a device does to real ones: fused attention, and autocast to bf16.

    The only value a model asks for is whether rows are unpacked, on which it skips its mask: they are.
    """

    def __init__(self, bf16: bool) -> None:
        super().__init__()
        self._bf16 = bf16
        self._copies: dict[int, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.__bool__:
            return True
        if self._bf16 and (func in _IN_BF16 or func is functional.scaled_dot_product_attention):
            # autocast is the device's, and tensors here are on none
            args, kwargs = tree_map(self._lower, (args, kwargs))
        if func is functional.scaled_dot_product_attention:
            return _Attention.apply(*args[:3])  # type: ignore[no-untyped-call]
        return func(*args, **kwargs)

    def _lower(self, value: Any) -> Any:
        """The bf16 of an fp32 tensor; of a weight, one copy for the whole pass, as autocast keeps it."""
        if not isinstance(value, Tensor) or value.dtype != torch.float32:
            return value
        if not value.is_leaf:
            return value.bfloat16()
        return self._copies.setdefault(id(value), value.bfloat16())


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the storages that operations make, while they live.

    Each storage that an operation returns and that is not known is new memory, until Python lets go of it: a finalizer
    takes its bytes off again. What was there `before` is known.
    """

    def __init__(self, before: list[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known = weakref.WeakSet(tensor.untyped_storage() for tensor in before)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage()) not in self._known:
                self._known.add(storage)
                weakref.finalize(storage, self._free, storage.nbytes())
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
        return out

    def _free(self, size: int) -> None:
        self.now -= size


def _model(config: Any, dtype: torch.dtype, shape: StepShape) -> Any:
    """A model whose decoder, wherever it is entered, runs as on a device."""
    attention, make = "eager" if shape.attention == "eager" else "sdpa", model_class(config).from_config
    try:
        model = make(config, dtype=dtype, attn_implementation=attention, trust_remote_code=trusted())
    except ValueError:
        model = make(config, dtype=dtype, attn_implementation="eager", trust_remote_code=trusted())
    as_on_a_device = _AsOnADevice(shape.bf16)
    # the parts of each layer too: recomputation in the backward pass calls them outside of the model
    parts = [part for layer in decoder_layers(model)[1] for part in layer.children()]
    for module in (model.base_model, *parts):
        module.forward = _under(as_on_a_device, module.forward)
    return model.eval()


def _under(mode: TorchFunctionMode, forward: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        with mode:
            return forward(*args, **kwargs)

    return run
