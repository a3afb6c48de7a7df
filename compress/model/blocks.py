"""All hooks on decoder blocks: what goes into them, what comes out, and blocks that are run otherwise.

A block is given the hidden state first, or by the name `hidden_states`, and returns it alone, or first in a tuple or a
list.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from compress.model.parts import decoder_layers

Forward = Callable[..., Any]


class Watch(NamedTuple):
    """A module, which of its tensors is wanted, and what takes it."""

    module: nn.Module
    side: Literal["input", "output"]
    take: Callable[[Tensor], None]


def given(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The hidden state [..., S, D] among a block's arguments."""
    hidden: Tensor = args[0] if args else kwargs["hidden_states"]
    return hidden


def with_given(hidden: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A block's arguments with another hidden state among them."""
    return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})


def returned(output: Any) -> Tensor:
    """The hidden state [..., S, D] in what a block returned."""
    hidden: Tensor = output[0] if isinstance(output, tuple | list) else output
    return hidden


@contextmanager
def watched(*watches: Watch) -> Iterator[None]:
    """While the block of code runs, give each module's input or output to its `take`, once a forward pass.

    The tensors are the model's own: with their gradient, and written over later where a model does that.
    """
    with ExitStack() as hooks:
        for watch in watches:
            hooks.callback(_hook(watch).remove)
        yield


@contextmanager
def block_outputs(model: nn.Module, blocks: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """A dict that a forward pass fills with the outputs [B, S, D] of these 0-based blocks; only they are kept.

    They are what the next block is given: the last one's is before the final norm. With gradient checkpointing they
    are the outputs that the backward pass goes through.
    """
    seen: dict[int, Tensor] = {}
    layers = decoder_layers(model)[1] if blocks else nn.ModuleList()
    with watched(*(Watch(layers[i], "output", lambda hidden, i=i: seen.update({i: hidden})) for i in blocks)):  # type: ignore[misc]
        yield seen


@contextmanager
def replaced(layers: nn.ModuleList, forward_of: Callable[[int, Forward], Forward]) -> Iterator[None]:
    """Run each layer by `forward_of(its index, its own forward)` while the block of code runs."""
    own: list[Forward] = [layer.forward for layer in layers]
    for index, layer in enumerate(layers):
        layer.forward = forward_of(index, own[index])
    try:
        yield
    finally:
        for layer, forward in zip(layers, own, strict=True):
            layer.forward = forward


def _hook(watch: Watch) -> Any:
    if watch.side == "input":
        return watch.module.register_forward_pre_hook(
            lambda _, args, kwargs: watch.take(given(args, kwargs)), with_kwargs=True
        )
    return watch.module.register_forward_hook(lambda _, args, output: watch.take(returned(output)))
