"""Costs of models: by algebra for Llama, and for others by counting weights, caches and products of tiny ones."""

import pytest
import torch
from model_zoo import tiny_config
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, LlamaConfig

from compress.model.costs import Costs, model_costs
from compress.model.probe import AttentionCost, CacheCost

TYPES = (
    "bamba", "deepseek_v3", "gemma2", "gemma3n_text", "gemma4_text", "gpt2", "gpt_oss", "laguna", "lfm2", "llama",
    "mixtral", "mllama", "olmo_hybrid", "qwen3_moe",
)  # fmt: skip


def test_llama_3_2_1b_by_algebra() -> None:
    config = LlamaConfig(
        vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
        num_key_value_heads=8, head_dim=64, tie_word_embeddings=True,
    )  # fmt: skip
    costs = model_costs(config)
    attention, mlp = 16 * (2 * 2048 * 2048 + 2 * 2048 * 512), 16 * 3 * 2048 * 8192
    assert costs.parameters == {
        "mlp": mlp,
        "embeddings": 128256 * 2048,
        "attention": attention,
        "norms": 33 * 2048,
    }
    assert sum(costs.parameters.values()) == 1_235_814_400
    assert costs.weight_flops == 2 * (attention + mlp + 128256 * 2048)
    assert costs.attention == (AttentionCost(2 * 32 * (64 + 64), None),) * 16
    assert costs.cache == (CacheCost(2 * 8 * 64, None),) * 16
    assert costs.cache_bytes_per_token(2) == 16 * 2048
    assert costs.decode_flops(1000) == costs.weight_flops + 16 * 8192 * 1000
    assert costs.prefill_flops(1000) == costs.weight_flops + 16 * 8192 * 500.5


def test_windows_and_states_bound_what_a_token_costs() -> None:
    costs = Costs(
        parameters={},
        weight_flops=10,
        attention=(AttentionCost(4, None), AttentionCost(4, 3)),
        cache=(CacheCost(6, None), CacheCost(6, 3), CacheCost(0, None, state=5)),
    )
    assert costs.cache_bytes_per_token(2) == 12
    assert costs.cache_bytes(2, 1) == 6 * 2 + 6 * 2 + 5
    assert costs.cache_bytes(10, 1) == 6 * 10 + 6 * 3 + 5
    assert costs.decode_flops(10) == 10 + 4 * 10 + 4 * 3 + 4 * 5
    seen = [i + 1 for i in range(10)], [min(i + 1, 3) for i in range(10)]
    assert costs.prefill_flops(10) == 10 + 4 * sum(map(sum, seen)) / 10 + 4 * 5


@pytest.mark.parametrize("model_type", TYPES)
def test_parameters_by_part_are_those_of_the_model(model_type: str) -> None:
    costs = model_costs(tiny_config(model_type))
    model = AutoModelForCausalLM.from_config(tiny_config(model_type))
    assert sum(costs.parameters.values()) == model.num_parameters()
    embeddings = {id(m.weight): m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    assert costs.parameters["embeddings"] == sum(embeddings.values())
    experts = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
    assert costs.parameters.get("experts", 0) == experts


@pytest.mark.parametrize("model_type", ["deepseek_v3", "gemma2", "gpt_oss", "laguna", "llama", "mixtral", "qwen3_moe"])
def test_weights_are_multiplied_as_often_as_torch_counts(model_type: str) -> None:
    costs = model_costs(tiny_config(model_type))
    config = tiny_config(model_type)
    config._attn_implementation = "eager"
    config._experts_implementation = "batched_mm"
    model = AutoModelForCausalLM.from_config(config).eval()
    tokens = 8
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.arange(3, 3 + tokens)[None], use_cache=False)
    dense_attention = sum(part.flops * tokens for part in costs.attention)  # eager attention computes masked scores too
    counted = counter.get_total_flops() / tokens - dense_attention
    assert counted == pytest.approx(costs.weight_flops, rel=0.01)  # torch counts the angles of RoPE as a product, too


@pytest.mark.parametrize("model_type", ["bamba", "deepseek_v3", "gemma2", "gemma3n_text", "laguna", "lfm2", "llama"])
@torch.no_grad()
def test_the_cache_is_as_large_as_a_run_makes_it(model_type: str) -> None:
    costs = model_costs(tiny_config(model_type))
    model = AutoModelForCausalLM.from_config(tiny_config(model_type)).eval()
    tokens = 20
    cache = model(input_ids=torch.arange(3, 3 + tokens)[None], use_cache=True).past_key_values
    held = 0
    for layer in cache.layers:
        for tensor in (getattr(layer, "keys", None), getattr(layer, "values", None)):
            if isinstance(tensor, torch.Tensor) and tensor.dim() == 4:
                # the cache of a sliding layer leaves room for the token to come, which the window counts
                held += tensor.numel() + (tensor[:, :, 0].numel() if getattr(layer, "is_sliding", False) else 0)
        for name in ("conv_states", "recurrent_states"):
            states = getattr(layer, name, None) or {}
            held += sum(state.numel() for state in states.values() if isinstance(state, torch.Tensor))
    assert costs.cache_bytes(tokens, 1) == held
