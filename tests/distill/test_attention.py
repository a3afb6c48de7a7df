"""Attention without masks, compiled or over packed documents: right wherever it is taken, and taken only there."""

import contextlib
import inspect
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from distill_world import World
from helpers import save_tiny_model, tiny_config
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface, AutoModelForCausalLM

from compress.distill import DistillConfig
from compress.distill.resources import attention, auto, loading
from compress.distill.resources.attention import DOCUMENTS, ROWS, choose, without_mask
from compress.distill.resources.loading import compile_backbone, load_checked
from compress.distill.rows import documents
from compress.distill.rows.batch import document_boundaries
from compress.distill.rows.documents import document_positions, packed_hidden_states, starts_after_eos
from compress.model.parts import hidden_states

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
IDS = torch.randint(0, 257, (3, 48), generator=torch.Generator().manual_seed(0))


def model_of(model_type: str = "llama", **fields: Any) -> Any:
    torch.manual_seed(1)
    config = tiny_config(model_type, num_hidden_layers=2, **fields)
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()


@contextlib.contextmanager
def graphs_of(model: Any) -> Iterator[list[torch.fx.GraphModule]]:
    """The graphs that a compiled model is traced to."""
    found: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        found.append(graph)
        return graph.forward

    torch._dynamo.reset()
    model.base_model.compile(fullgraph=True, dynamic=False, backend=keep)
    yield found
    torch._dynamo.reset()


def attentions_in(graph: torch.fx.GraphModule) -> list[dict[str, Any]]:
    nodes = [node for node in graph.graph.nodes if node.target is functional.scaled_dot_product_attention]
    return [{"attn_mask": None, "is_causal": False, **node.kwargs, "operands": node.args} for node in nodes]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("model_type", "key_heads"), [("llama", 2), ("qwen3", 2), ("gpt2", 4)])
def test_a_compiled_model_makes_no_mask_and_repeats_no_keys(model_type: str, key_heads: int) -> None:
    expected = hidden_states(model_of(model_type), IDS)
    masks = {}
    for name in ("sdpa", ROWS):
        model = model_of(model_type)
        model.set_attn_implementation(name)
        assert torch.equal(hidden_states(model, IDS), expected)
        with graphs_of(model) as graphs:
            torch.testing.assert_close(hidden_states(model, IDS), expected, rtol=1e-5, atol=1e-6)
        (graph,) = graphs
        calls = attentions_in(graph)
        assert len(calls) >= model.config.num_hidden_layers
        masks[name] = [call["attn_mask"] is not None for call in calls]
        if name == ROWS:
            assert all(call["is_causal"] for call in calls)
            keys = calls[0]["operands"][1].meta["example_value"]
            assert keys.shape[1] == key_heads
    assert not any(masks[ROWS])
    assert all(masks["sdpa"]), "transformers makes one: then ours is still needed"


WINDOWS = {"sliding_window": 16, "head_dim": 8}


@pytest.mark.parametrize(
    ("model_type", "fields", "seq_len", "expected"),
    [
        ("llama", {}, 4096, ROWS),
        ("gemma3_text", WINDOWS, 48, None),
        ("gemma3_text", WINDOWS, 16, ROWS),
        ("mistral", {"sliding_window": 16}, 48, None),
        ("mistral", {"sliding_window": None}, 48, ROWS),
        ("qwen2", {"sliding_window": 16, "use_sliding_window": False}, 48, ROWS),
        ("bloom", {}, 48, None),
        ("llama", {"attention_chunk_size": 16}, 48, None),
    ],
)
def test_it_is_taken_where_every_layer_sees_the_whole_row(
    model_type: str, fields: dict[str, Any], seq_len: int, expected: str | None
) -> None:
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(tiny_config(model_type, num_hidden_layers=2, **fields)).eval()
    assert without_mask(model, seq_len, documents=False, compiled=True, bf16=True) == expected
    assert without_mask(model, seq_len, documents=False, compiled=False, bf16=True) is None
    assert without_mask(model, seq_len, documents=True, compiled=True, bf16=True) is None, "a CPU has no such kernel"
    if expected is not None:
        ids = IDS.repeat(1, 2)[:, :seq_len]
        plain = hidden_states(model, ids)
        assert choose(model, expected, seq_len)
        assert torch.equal(hidden_states(model, ids), plain)


def test_a_model_that_would_see_otherwise_keeps_its_masks(capsys: pytest.CaptureFixture[str]) -> None:
    """As if its config did not say that it looks back 16 tokens."""
    model = model_of("gemma3_text", **WINDOWS)
    plain = hidden_states(model, IDS)
    assert not choose(model, ROWS, 48)
    assert "is run with attention masks (causal_rows: its hidden states differ by" in capsys.readouterr().err
    assert model.config._attn_implementation == "sdpa"
    assert torch.equal(hidden_states(model, IDS), plain)


@torch.library.custom_op("compress_tests::by_documents", mutates_args=())
def _by_documents(
    query: Tensor, key: Tensor, value: Tensor, ends: Tensor, longest: int, scale: float, left: int
) -> Tensor:
    groups = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    out = torch.full_like(query, torch.nan)
    for start, end in itertools.pairwise(ends.tolist()):
        assert end - start <= longest
        place = torch.arange(end - start)
        back = place[:, None] - place[None, :]
        mask = (back >= 0) & ((back <= left) if left >= 0 else torch.tensor(True))
        part = [tensor[start:end].transpose(0, 1) for tensor in (query, key, value)]
        out[start:end] = functional.scaled_dot_product_attention(*part, attn_mask=mask, scale=scale).transpose(0, 1)
    return out


@_by_documents.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, ends: Tensor, longest: int, scale: float, left: int) -> Tensor:
    return torch.empty_like(query)


def by_documents(
    query: Tensor, key: Tensor, value: Tensor, boundaries: Tensor, longest: int, *, scale: float, window_size: Any
) -> Tensor:
    """What `varlen_attn` is by definition, one document after the other, and opaque to the compiler as it is."""
    assert (boundaries.dtype, window_size[1]) == (torch.int32, 0)
    found: Tensor = _by_documents(query, key, value, boundaries, longest, scale, window_size[0])
    return found


EOS = 7
PACKED = np.where(np.random.default_rng(3).random((4, 48)) < 0.1, EOS, IDS.repeat(2, 1)[:4].numpy())


@pytest.mark.parametrize(
    ("model_type", "fields"),
    [("llama", {}), ("qwen3", {}), ("gemma3_text", WINDOWS), ("mistral", {"sliding_window": 16})],
)
def test_documents_are_as_if_each_were_alone(
    model_type: str, fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "variable_length", by_documents)
    model = model_of(model_type, **fields)
    positions = document_positions(starts_after_eos(PACKED, EOS))
    boundaries = document_boundaries(positions)
    assert len(boundaries) - 1 == 32, "a power of two"
    assert (np.diff(boundaries) >= 0).all()
    assert (boundaries[0], boundaries[-1]) == (0, PACKED.size)
    alone = []
    for row, place in zip(PACKED, positions, strict=True):
        parts = np.split(row, np.flatnonzero(place == 0)[1:])
        alone.append(torch.cat([hidden_states(model, torch.from_numpy(part)[None])[0] for part in parts]))
    assert choose(model, DOCUMENTS, 48)
    arguments = [torch.from_numpy(array) for array in (PACKED, positions, boundaries)]
    packed = packed_hidden_states(model, *arguments)
    torch.testing.assert_close(packed, torch.stack(alone), rtol=1e-4, atol=1e-5)
    with graphs_of(model) as graphs:
        torch.testing.assert_close(hidden_states(model, IDS), hidden_states(model_of(model_type, **fields), IDS))
    assert len(graphs) == 1


def test_a_model_whose_documents_it_cannot_part_keeps_its_masks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = model_of()
    assert not choose(model, DOCUMENTS, 48), "there is no such kernel on a CPU"
    assert "is run with attention masks (causal_documents: " in capsys.readouterr().err
    monkeypatch.setattr(attention, "variable_length", lambda query, *_, **__: torch.zeros_like(query))
    assert not choose(model, DOCUMENTS, 48)
    assert "hidden states differ" in capsys.readouterr().err
    assert model.config._attn_implementation == "sdpa"
    states = torch.zeros(1, 2, 3, 4)
    for more in ({"softcap": 3.0}, {"s_aux": states}, {"dropout": 0.1}):
        with pytest.raises(ValueError, match=r"variable-length attention has no"):
            AttentionInterface()[DOCUMENTS](None, states, states, states, None, **more)


def test_kernels_of_sixteen_bits_are_checked_in_sixteen_bits(
    world: World, options: Callable[..., DistillConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fp32 student meets them under autocast, as it does in training."""
    seen: list[torch.dtype] = []

    def narrow(query: Tensor, *arguments: Any, **more: Any) -> Tensor:
        seen.append(query.dtype)
        return by_documents(query, *arguments, **more)

    monkeypatch.setattr(attention, "variable_length", narrow)
    monkeypatch.setattr(loading, "without_mask", lambda *_, **__: DOCUMENTS)
    folder = save_tiny_model(world.root / "llama")
    here = auto.Here(CPU, "bf16", None, "none", 1, compiled=False, seq_len=32, documents_apart=True)
    model = load_checked(options(document_mask=True), folder, here, dtype=torch.float32, device=CPU)
    assert (model.config._attn_implementation, model.dtype) == (DOCUMENTS, torch.float32)
    assert set(seen) == {torch.bfloat16}


def test_a_model_that_drops_what_it_is_told_of_documents_has_a_mask(
    world: World,
    options: Callable[..., DistillConfig],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(attention, "variable_length", by_documents)
    monkeypatch.setattr(documents, "documents_of", lambda *_: {})
    monkeypatch.setattr(loading, "without_mask", lambda *_, **__: DOCUMENTS)
    folder = save_tiny_model(world.root / "llama")
    here = auto.Here(CPU, "fp32", None, "none", 1, compiled=False, seq_len=32, documents_apart=True)
    model = load_checked(options(document_mask=True), folder, here, dtype=torch.float32, device=CPU)
    assert model.config._attn_implementation == "sdpa"
    assert "keeps documents apart with a mask" in capsys.readouterr().err


def test_a_student_that_waits_for_its_device_is_checked_without_its_kernel(
    world: World, options: Callable[..., DistillConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To be split over processes it lies on the host first, where flash attention is not."""

    def on_a_gpu_only(*_: Any, **__: Any) -> Any:
        raise RuntimeError("FlashAttention only supports CUDA tensors")

    monkeypatch.setitem(AttentionInterface._global_mapping, "flash_attention_2", on_a_gpu_only)
    load = loading.load_model
    monkeypatch.setattr(loading, "load_model", lambda folder, *, attn_implementation, **more: load(folder, **more))
    monkeypatch.setattr(
        "transformers.PreTrainedModel._check_and_adjust_attn_implementation", lambda s, name, *_, **__: name
    )
    folder = save_tiny_model(world.root / "llama")
    here = auto.Here(CPU, "bf16", "flash_attention_2", "student", 1, compiled=False, seq_len=32, documents_apart=False)
    model = load_checked(options(), folder, here, dtype=torch.float32, device=CPU)
    assert model.config._attn_implementation == "flash_attention_2"


@pytest.mark.parametrize(
    ("asked", "device", "sharding", "flops", "triton", "expected"),
    [
        ("auto", CUDA, "none", 1e18, True, True),
        ("auto", CUDA, "none", 1e16, True, False),
        ("auto", CUDA, "student", 1e18, True, False),
        ("auto", CUDA, "none", 1e18, False, False),
        ("auto", CPU, "none", 1e20, True, False),
        (True, CPU, "none", 1.0, True, True),
        (False, CUDA, "none", 1e20, True, False),
    ],
)
def test_what_is_compiled(
    asked: Any, device: torch.device, sharding: Any, flops: float, triton: bool, expected: bool,
    options: Callable[..., DistillConfig], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(auto, "find_spec", lambda _: object() if triton else None)
    assert auto.resolve_compile(options(compile=asked), device, sharding, flops) is expected


class Breaks(torch.nn.Module):
    """A block that looks at a value."""

    def __init__(self, block: torch.nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        return self.block(hidden * 1.5 if float(hidden.sum()) > 0 else hidden, *args, **kwargs)


@pytest.mark.filterwarnings("ignore")
def test_a_model_that_makes_no_one_graph_is_run_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    whole, broken = model_of(), model_of()
    broken.model.layers[0] = Breaks(broken.model.layers[0])
    compile_backbone(whole, asked=False, backend="eager")
    assert whole.model._compiled_call_impl is not None
    assert capsys.readouterr().err == ""
    compile_backbone(broken, asked=False)
    assert broken.model._compiled_call_impl is None
    assert "LlamaForCausalLM is not compiled (compile: auto): " in capsys.readouterr().err
    expected = hidden_states(broken, IDS)
    assert expected.isfinite().all()


@pytest.mark.filterwarnings("ignore")
def test_there_may_be_a_graph_for_each_number_of_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch stops at eight by default, for teacher and student together."""
    monkeypatch.setattr(attention, "variable_length", by_documents)
    model = model_of()
    assert choose(model, DOCUMENTS, 48)
    torch._dynamo.reset()
    compile_backbone(model, asked=True, backend="eager")
    for count in range(1, 13):
        row = np.arange(48)[None]
        positions = row % (48 // count)
        boundaries = torch.from_numpy(document_boundaries(positions)[: count + 2])
        found = packed_hidden_states(model, torch.from_numpy(row), torch.from_numpy(positions), boundaries)
        assert found.shape == (1, 48, 32)
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore")
def test_a_teacher_is_quantised_before_it_is_compiled(
    world: World, options: Callable[..., DistillConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its first graph is thrown away."""
    order: list[str] = []
    source = "compress.distill.teachers.source"
    monkeypatch.setattr(f"{source}.quantize_teacher", lambda *_: order.append("quantised") or 0.0)
    monkeypatch.setattr(f"{source}.compile_backbone", lambda *_, **__: order.append("compiled"))
    monkeypatch.setattr("compress.distill.preflight.check_quantization", lambda *_, **__: None)
    world.run("run", options(compile=True, teacher_precision="int8", tokens=64))
    assert order == ["quantised", "compiled"]


def test_torchs_kernel_is_called_as_it_is_declared() -> None:
    varlen = pytest.importorskip("torch.nn.attention.varlen")
    declared = inspect.signature(varlen.varlen_attn).parameters
    assert list(declared)[:7] == ["query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"]
    assert {"scale", "window_size"} <= set(declared)
    query = torch.empty(12, 4, 8, device="meta")
    key = torch.empty(12, 2, 8, device="meta")
    boundaries = torch.tensor([0, 5, 12], dtype=torch.int32, device="meta")
    assert (
        attention.variable_length(query, key, key, boundaries, 12, scale=0.5, window_size=(-1, 0)).shape == query.shape
    )


def test_a_saved_student_does_not_say_how_it_was_trained(tmp_path: Path) -> None:
    model = model_of()
    assert choose(model, ROWS, 48)
    model.save_pretrained(tmp_path / "student")
    assert ROWS not in (tmp_path / "student" / "config.json").read_text()
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "student").config._attn_implementation == "sdpa"
