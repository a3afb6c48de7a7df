"""Hooks on decoder blocks, against what transformers itself says of the states between them."""

from typing import Any

import pytest
import torch
from helpers import tiny_config
from torch import nn
from transformers import AutoModelForCausalLM

from compress.model.blocks import Watch, block_outputs, replaced, watched
from compress.model.parts import decoder_layers, hidden_states

IDS = torch.arange(24).view(2, 12)


def model_of(model_type: str = "llama") -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(tiny_config(model_type, num_hidden_layers=4)).eval()


def hooks(model: Any) -> int:
    """transformers has hooks of its own."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma2"])
def test_outputs_are_the_states_between_blocks_and_no_hook_stays(model_type: str) -> None:
    model = model_of(model_type)
    states = model(IDS, output_hidden_states=True, use_cache=False).hidden_states
    before = hooks(model)
    with block_outputs(model, (0, 2)) as seen:
        hidden_states(model, IDS)
    assert sorted(seen) == [0, 2]
    assert all(torch.equal(seen[block], states[block + 1]) for block in seen)
    assert hooks(model) == before
    with block_outputs(model, ()) as seen:
        hidden_states(model, IDS)
    assert seen == {}


def test_the_last_blocks_output_is_before_the_final_norm() -> None:
    model = model_of()
    with block_outputs(model, (3,)) as seen:
        hidden = hidden_states(model, IDS)
    assert torch.equal(model.model.norm(seen[3]), hidden)
    assert not torch.equal(seen[3], hidden)


def test_gradients_through_recomputed_blocks_are_those_of_plain_ones() -> None:
    found = []
    for recompute in (False, True):
        model = model_of().train()
        if recompute:
            model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        with block_outputs(model, (1,)) as seen:
            hidden_states(model, IDS)
        seen[1].square().sum().backward()
        found.append([None if p.grad is None else p.grad.clone() for p in model.parameters()])
    used = [(a, b) for a, b in zip(*found, strict=True) if a is not None]
    assert used
    assert all(b is not None and torch.equal(a, b) for a, b in used)


def test_inputs_come_by_place_and_by_name_and_an_error_leaves_no_hook() -> None:
    class Block(nn.Module):
        def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, None]:
            return hidden_states + 1, None

    block, seen = Block(), []
    watches = (Watch(block, "input", seen.append), Watch(block, "output", seen.append))
    with watched(*watches):
        block(torch.zeros(1))
        block(hidden_states=torch.ones(1))
    assert [float(state) for state in seen] == [0, 1, 1, 2]
    with pytest.raises(RuntimeError, match="stop"), watched(*watches):
        raise RuntimeError("stop")
    assert not block._forward_hooks
    assert not block._forward_pre_hooks


def test_layers_are_run_otherwise_only_meanwhile() -> None:
    model = model_of()
    layers = decoder_layers(model)[1]
    plain = hidden_states(model, IDS)
    with replaced(layers, lambda index, own: lambda hidden, **_: hidden):
        skipped = hidden_states(model, IDS)
    assert torch.equal(skipped, model.model.norm(model.get_input_embeddings()(IDS)))
    assert torch.equal(hidden_states(model, IDS), plain)
