"""Causal attention that makes no mask: what keeps flash kernels in use under torch.compile and for packed documents.

transformers drops a mask that says no more than "causal" by looking at values, which it cannot while a graph is traced:
a compiled model gets a dense [B, 1, S, S] mask and repeated keys and values, and computes the whole square. For packed
documents there is a dense mask in any case. Two implementations are registered with transformers here, and given to
models that a trial shows to compute the same with them:

- `causal_rows`: SDPA with `is_causal`; each row is one sequence.
- `causal_documents`: torch's variable-length flash attention over the documents of all rows (CUDA, bf16).
"""

import inspect
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface

from compress.base.progress import say
from compress.model.lengths import WINDOWS
from compress.model.parts import hidden_states

ROWS, DOCUMENTS = "causal_rows", "causal_documents"
_KINDS = {"full_attention", "attention", "sliding_attention"}
_TRIAL_TOKENS = 64
_VARLEN_CAPABILITY = (8, 0)


def variable_length(query: Tensor, key: Tensor, value: Tensor, boundaries: Tensor, longest: int, **options: Any) -> Any:
    """torch's `varlen_attn` of [T, H, D] queries and [T, Hkv, D] keys and values; [T, H, D]."""
    from torch.nn.attention.varlen import varlen_attn

    if "enable_gqa" in inspect.signature(varlen_attn).parameters:
        options["enable_gqa"] = True
    elif (groups := query.shape[1] // key.shape[1]) > 1:
        key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    return varlen_attn(query, key, value, boundaries, boundaries, longest, longest, **options)


def _documents(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function over [B, H, S, D]: rows are joined, and `cu_seq_lens_q` parts them into
    documents; without it each row is one."""
    unknown = [name for name in ("softcap", "s_aux", "position_bias") if options.get(name) is not None]
    if dropout or unknown or attention_mask is not None:
        raise ValueError(f"variable-length attention has no {', '.join(unknown) or 'dropout and no mask'}")
    batch, _, tokens, _ = query.shape
    if cu_seq_lens_q is None or max_length_q is None:
        cu_seq_lens_q = torch.arange(0, batch * tokens + 1, tokens, dtype=torch.int32, device=query.device)
        max_length_q = tokens
    query, key, value = (_narrow(part).transpose(1, 2).flatten(0, 1) for part in (query, key, value))
    window = (-1, 0) if sliding_window is None else (sliding_window - 1, 0)
    out = variable_length(query, key, value, cu_seq_lens_q, max_length_q, scale=scaling, window_size=window)
    return out.view(batch, tokens, *out.shape[1:]), None


def _narrow(part: Tensor) -> Tensor:
    """As autocast hands it to SDPA, which it knows: rotary embeddings leave queries and keys in fp32."""
    device = part.device.type
    return part.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else part


AttentionInterface.register(ROWS, sdpa_attention_forward)
AttentionInterface.register(DOCUMENTS, _documents)
for _name in (ROWS, DOCUMENTS):
    AttentionMaskInterface.register(_name, lambda *_, **__: None)


def without_mask(model: Any, seq_len: int, *, documents: bool, compiled: bool, bf16: bool) -> str | None:
    """Which of the two implementations is right and pays for rows of `seq_len` tokens; None for neither.

    It is told from the config: no layer may look otherwise than causally and, for whole rows, at less than all of one.
    """
    if model.config._attn_implementation != "sdpa":
        return None
    config = model.config.get_text_config()
    known = set(getattr(config, "layer_types", None) or ()) <= _KINDS
    windows = {name: value for name in WINDOWS if isinstance(value := getattr(config, name, None), int)}
    if not getattr(config, "use_sliding_window", True):
        windows.pop("sliding_window", None)
    if documents:  # the kernel has windows, and is told of them as of sliding ones
        device = next(model.parameters()).device
        capable = device.type == "cuda" and torch.cuda.get_device_capability(device) >= _VARLEN_CAPABILITY
        capable = capable and find_spec("torch.nn.attention.varlen") is not None  # torch 2.10 and later
        return DOCUMENTS if bf16 and capable and known and windows.keys() <= {"sliding_window"} else None
    return ROWS if compiled and known and min(windows.values(), default=seq_len) >= seq_len else None


@torch.no_grad()
def choose(model: Any, name: str, seq_len: int) -> bool:
    """Give a model the implementation `name` if its hidden states of rows of up to `seq_len` tokens stay those of SDPA,
    and say so where they do not.

    Whole rows are compared here; that documents are kept apart is for `compress.distill.rows.documents` to check.
    """
    device = next(model.parameters()).device
    tokens = min(seq_len, _TRIAL_TOKENS)
    ids = torch.arange(2 * tokens, device=device).view(2, -1) % model.get_input_embeddings().num_embeddings
    expected = hidden_states(model, ids).float()
    model.set_attn_implementation(name)
    try:
        found = hidden_states(model, ids).float()
        apart = ((found - expected).norm() / expected.norm()).item()
        fault = None if apart <= (1e-5 if name == ROWS else 0.05) else f"its hidden states differ by {apart:.1%}"
    except (TypeError, ValueError, RuntimeError, AttributeError, KeyError) as error:
        fault = f"{type(error).__name__}: {error}"
    if fault is None:
        return True
    model.set_attn_implementation("sdpa")
    say(f"{type(model).__name__} is run with attention masks ({name}: {fault}).")
    return False


def parts_documents(model: Any) -> bool:
    """Whether a model's attention is `causal_documents`, which is to be told `documents_of` its rows."""
    return bool(model.config._attn_implementation == DOCUMENTS)


def has_no_mask(model: Any) -> bool:
    """Whether a model's attention is one of the two, which see whole rows and neither padding nor a cache."""
    return model.config._attn_implementation in (ROWS, DOCUMENTS)


def documents_of(boundaries: Tensor, longest: int) -> dict[str, Any]:
    """What the attention of documents is told through the model, by transformers' names: int32 `boundaries` [C + 1] of
    documents in rows that are joined, from 0 on, in order (equal ones hold no tokens), and a bound of their length."""
    ends = {"cu_seq_lens_q": boundaries, "cu_seq_lens_k": boundaries}
    return {**ends, "max_length_q": longest, "max_length_k": longest}
