"""Rules for per-layer config fields, and the mixture of layer types, against literals."""

import copy
import itertools
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import tiny_config
from hypothesis import given
from hypothesis import strategies as st

from compress.base.errors import InputError, UsageError
from compress.prune.choose.kinds import layer_kinds
from compress.prune.choose.mix import choose_layers, mix_note, proportional, require_attention
from compress.prune.rules.fields import RULES, VERIFIED_TYPES
from compress.prune.rules.rules import REMOVED, NotExpressible, Renumbering
from compress.prune.rules.student_config import student_config

CUT = Renumbering((1, 2, 5), 6)


@pytest.mark.parametrize(
    ("name", "fields", "expected"),
    [
        ("layer_types", {"layer_types": list("abcdef")}, {"layer_types": list("bcf")}),
        ("no_rope_layers", {"no_rope_layers": [1, 1, 1, 0, 1, 0]}, {"no_rope_layers": [1, 1, 0]}),
        ("intermediate_size", {"intermediate_size": 64}, {}),
        ("intermediate_size", {"intermediate_size": [1, 2, 3, 4, 5, 6]}, {"intermediate_size": [2, 3, 6]}),
        ("mlp_only_layers", {"mlp_only_layers": [0, 2, 5]}, {"mlp_only_layers": [1, 2]}),
        ("full_attn_idxs", {"full_attn_idxs": []}, {"full_attn_idxs": []}),
        ("per_layer_config", {"per_layer_config": {"05": "x", "0": "y"}}, {"per_layer_config": {"2": "x"}}),
        ("max_window_layers", {"max_window_layers": 2}, {"max_window_layers": 1}),
        ("max_window_layers", {"max_window_layers": 28}, {"max_window_layers": 3}),
        ("first_k_dense_replace", {"first_k_dense_replace": 1}, {"first_k_dense_replace": 0}),
        (
            "moe_layer_end_index",
            {"moe_layer_interval": 1, "moe_layer_start_index": 2, "moe_layer_end_index": -1},
            {"moe_layer_interval": 1, "moe_layer_start_index": 1, "moe_layer_end_index": 2},
        ),
        (
            "moe_layer_interval",
            {"moe_layer_interval": 6, "moe_layer_start_index": 0, "moe_layer_end_index": 4},
            {"moe_layer_interval": 1, "moe_layer_start_index": 3, "moe_layer_end_index": 2},
        ),
        (
            "attn_layer_period",
            {"attn_layer_period": 3, "attn_layer_offset": 1},
            {"attn_layer_period": 3, "attn_layer_offset": 0},
        ),
        (
            "expert_layer_offset",
            {"expert_layer_period": 2, "expert_layer_offset": 0},
            {"expert_layer_period": 2, "expert_layer_offset": 1},
        ),
        ("ple_layer_ids", {"ple_layer_ids": [1, 2, 6]}, {"ple_layer_ids": [1, 3]}),
        ("scale_depth", {"scale_depth": 1.4}, {"scale_depth": pytest.approx(1.4 / 2**0.5)}),
        (
            "indexer_types",
            {"indexer_types": ["full", "full", "shared", "shared", "full", "full"]},
            {"indexer_types": ["full", "shared", "full"]},
        ),
        (
            "num_kv_shared_layers",
            {"num_kv_shared_layers": 2, "layer_types": list("abaabb")},
            {"num_kv_shared_layers": 1},
        ),
        ("block_types", {"block_types": ["r", "r", "a"]}, {"block_types": ["r", "a", "a"]}),
        ("decoder_sparse_step", {"decoder_sparse_step": 1}, {}),
        (
            "decoder_sparse_step",
            {"decoder_sparse_step": 2, "mlp_only_layers": [5]},
            {"decoder_sparse_step": 1, "mlp_only_layers": [1, 2]},
        ),
        ("attention_types", {"attention_types": [[["g", "l"], 3]]}, {"attention_types": [[["l", "g", "l"], 1]]}),
        (
            "sliding_window_pattern",
            {"sliding_window_pattern": 6, "layer_types": []},
            {"sliding_window_pattern": REMOVED},
        ),
        ("num_kv_shared_layers", {"num_kv_shared_layers": 0}, {}),
        ("num_nextn_predict_layers", {"num_nextn_predict_layers": 1}, {"num_nextn_predict_layers": 0}),
    ],
)
def test_a_rule_rewrites_its_field(name: str, fields: dict[str, Any], expected: dict[str, Any]) -> None:
    assert RULES[name](name, fields, CUT) == expected


@pytest.mark.faults(6)
@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("layer_types", {"layer_types": ["a"] * 5}),
        ("mlp_only_layers", {"mlp_only_layers": [6]}),
        ("per_layer_config", {"per_layer_config": {"first": {}}}),
        ("moe_layer_interval", {"moe_layer_interval": 2, "moe_layer_start_index": 0, "moe_layer_end_index": 5}),
        ("indexer_types", {"indexer_types": ["full"] * 3 + ["shared"] + ["full", "shared"]}),
        ("expert_layer_period", {"expert_layer_period": 3, "expert_layer_offset": 2}),
        ("decoder_sparse_step", {"decoder_sparse_step": 0}),
        ("attention_types", {"attention_types": [[["g", "l"], 2]]}),
        ("sliding_window_pattern", {"sliding_window_pattern": 6}),
        ("num_kv_shared_layers", {"num_kv_shared_layers": 2}),
        ("num_kv_shared_layers", {"num_kv_shared_layers": 2, "layer_types": list("aabbab")}),
        ("scale_attn_by_inverse_layer_idx", {"scale_attn_by_inverse_layer_idx": True}),
        ("rescale_every", {"rescale_every": 6}),
        ("quantization_config", {"quantization_config": {"bits": 4}}),
    ],
)
def test_what_cannot_be_written_is_refused(name: str, fields: dict[str, Any]) -> None:
    with pytest.raises(NotExpressible):
        RULES[name](name, fields, CUT)


@pytest.mark.parametrize("model_type", sorted(VERIFIED_TYPES))
def test_keeping_every_layer_says_the_same(model_type: str) -> None:
    config = tiny_config(model_type, num_hidden_layers=6)
    same = student_config(config, config.to_dict(), tuple(range(6)))
    period = {"_sliding_window_pattern", "no_rope_layer_interval"}
    ignored = period | {"max_window_layers", "num_hidden_layers", "num_nextn_predict_layers"}
    assert {k: v for k, v in same.items() if k not in ignored} == {
        k: v for k, v in config.to_dict().items() if k not in ignored
    }
    again = type(config).from_dict(copy.deepcopy(same))
    assert again.num_hidden_layers == 6
    assert getattr(again, "layer_types", None) == getattr(config, "layer_types", None)


@pytest.mark.faults(6)
@pytest.mark.parametrize(
    "extra",
    [
        {"depth_gains": [0.1, 0.2, 0.3, 0.4]},
        {"adapter": {"rank_by_block": [1, 2, 3, 4]}},
        {"gates": {"0": 1.0, "3": 2.0}},
        {"special_layers": [2]},
        {"scale_by_layer": {"first": 1}},
    ],
)
def test_an_unknown_per_layer_field_is_refused_by_name(extra: dict[str, Any]) -> None:
    config = tiny_config("llama", **extra)
    (name,) = extra
    with pytest.raises(InputError, match=name):
        student_config(config, config.to_dict(), (0, 1))


def test_lists_that_happen_to_be_as_long_as_the_stack_are_left_alone() -> None:
    config = tiny_config("llama", num_hidden_layers=2, eos_token_id=[3, 4], attn={"id2label": {"0": "a"}})
    assert student_config(config, config.to_dict(), (1,))["eos_token_id"] == [3, 4]


def test_types_that_depend_on_the_index_are_refused() -> None:
    config = tiny_config("gpt2", scale_attn_by_inverse_layer_idx=True)
    with pytest.raises(InputError, match="scale_attn_by_inverse_layer_idx"):
        student_config(config, config.to_dict(), (0, 1))
    config = tiny_config("diffllama")
    with pytest.raises(InputError, match="lambda_init"):
        student_config(config, config.to_dict(), (0, 1))


def test_a_period_two_pattern_is_noticed_and_a_better_choice_is_offered() -> None:
    types = ["sliding_attention", "full_attention"] * 13
    note = mix_note(types, range(1, 26, 2))
    assert note is not None
    assert "only 13 full_attention of 13" in note
    assert "--keep " in note
    assert mix_note(types, (0, 1, 4, 5)) is None
    assert mix_note(["full_attention"] * 8, (1, 3)) is None


PATTERNS = st.lists(
    st.sampled_from(["full_attention", "sliding_attention", "linear_attention"]), min_size=1, max_size=60
)


@given(PATTERNS, st.data())
def test_the_offered_choice_is_proportional(types: list[str], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(types)))
    chosen = proportional(types, count)
    assert len(set(chosen)) == len(chosen) == count
    assert chosen[-1] == len(types) - 1
    shares = {kind: count * types.count(kind) / len(types) for kind in types}
    found = {kind: sum(types[i] == kind for i in chosen) for kind in shares}
    attention = [kind for kind in shares if kind != "linear_attention"]
    least = dict.fromkeys(shares, 0) | {types[-1]: 1}
    if attention and count > 1 and not any(least[kind] for kind in attention):
        least[max(attention, key=types.count)] = 1
    assert any(found[kind] for kind in attention) or not attention or count == 1
    raised = sum(least[kind] > shares[kind] for kind in shares)
    assert all(abs(found[kind] - shares[kind]) < 1 + raised for kind in shares)


@given(PATTERNS, st.data())
def test_no_choice_with_these_ends_is_closer_to_the_mix(types: list[str], data: st.DataObject) -> None:
    count = data.draw(st.integers(min(2, len(types)), len(types)))
    chosen = choose_layers(f"uniform:{count}", types)
    assert (chosen[0], chosen[-1], len(chosen)) == (0 if count > 1 else len(types) - 1, len(types) - 1, count)
    if len(set(types)) > 1:
        shares = {kind: count * types.count(kind) / len(types) for kind in types}
        found = {kind: sum(types[i] == kind for i in chosen) for kind in shares}
        fixed = {kind: sum(types[i] == kind for i in {0, len(types) - 1}) for kind in shares}
        attention = [kind for kind in shares if kind != "linear_attention"]
        for less, more in itertools.permutations(shares, 2):  # one layer of a type for one of another
            alone = less in attention and sum(found[kind] for kind in attention) == 1 and more not in attention
            if found[less] > fixed[less] and found[more] < types.count(more) and not alone:
                swapped = found | {less: found[less] - 1, more: found[more] + 1}
                assert distance(found, shares) <= distance(swapped, shares) + 1e-9


def distance(found: dict[str, int], shares: dict[str, float]) -> float:
    return sum((found[kind] - share) ** 2 for kind, share in shares.items())


def test_a_pattern_is_preserved_for_any_spec_that_names_no_layers() -> None:
    types = ["sliding_attention", "full_attention"] * 13
    for spec, count in (("alternate", 13), ("1::2", 13), ("contiguous:8", 8), ("uniform:9", 9)):
        kept = choose_layers(f"pattern:{spec}", types)
        mix = [types[i] for i in kept]
        assert len(kept) == count
        assert abs(mix.count("full_attention") - mix.count("sliding_attention")) <= 1
    assert choose_layers("pattern:alternate", ["full_attention"] * 4) == (1, 3)
    assert choose_layers("uniform:4", ["full_attention"] * 10) == (0, 3, 6, 9)
    with pytest.raises(UsageError, match="names its layers itself"):
        choose_layers("pattern:0,2", types)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, ["full_attention"] * 4),
        ({"sliding_window": 4}, ["sliding_attention"] * 4),
        ({"first_k_dense_replace": 1}, ["full_attention/dense"] + ["full_attention/sparse"] * 3),
        ({"moe_layers": [1], "layer_types": list("abab")}, ["a/dense", "b/sparse", "a/dense", "b/dense"]),
        ({"decoder_sparse_step": 2, "layer_types": list("abcd")}, ["a/dense", "b/sparse", "c/dense", "d/sparse"]),
        ({"expert_layer_period": 2, "expert_layer_offset": 1}, ["full_attention/dense", "full_attention/sparse"] * 2),
        ({"mlp_layer_types": ["sparse"] * 4}, ["full_attention"] * 4),
    ],
)  # fmt: skip
def test_kinds_of_layers_say_what_differs(fields: dict[str, Any], expected: list[str]) -> None:
    assert layer_kinds(SimpleNamespace(**fields), 4) == expected


def test_a_hybrid_keeps_attention() -> None:
    types = ["linear_attention", "full_attention", "linear_attention"]
    require_attention(types, (0, 1))
    require_attention(["mamba"] * 3, (0,))
    with pytest.raises(InputError, match="none of the model's attention layers"):
        require_attention(types, (0, 2))
