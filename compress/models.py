"""Loading Hugging Face causal LMs safely and strictly, and taking them apart: decoder stack, hidden states, head.

Nothing here runs code from a model folder, reads a pickle, or accepts a checkpoint that does not fill the model
exactly.
"""

import dataclasses
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from compress.artifacts import sha256_file
from compress.errors import CompressError, InputError

_HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "*.spm", "tokenizer*")
_STACKS = (
    "model.layers", "model.language_model.layers", "language_model.model.layers", "transformer.h",
    "transformer.blocks", "transformer.layers", "gpt_neox.layers", "model.decoder.layers", "backbone.layers",
)  # fmt: skip
_EOS_NAMES = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eos|>")
WEIGHT_FILES = "*.safetensors"


def resolve_model(name: str, revision: str | None = None, *, weights: bool = True) -> Path:
    """Folder of a model: a local folder as it is, or a hub id downloaded (safetensors, configs, tokenizer only).

    With `weights=False` only the JSON files of a hub model are fetched: enough to plan.

    Raises:
        InputError: no such folder, no config.json in it, or the hub refused; the message says what to do.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(f"{name} is not a model folder: it has no config.json.")
        return path
    if path.is_absolute() or name.startswith(".") or name.count("/") > 1 or path.exists():
        raise InputError(f"The model folder {name} does not exist.")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return Path(
            snapshot_download(name, revision=revision, allow_patterns=list(_HUB_FILES) if weights else ["*.json"])
        )
    except GatedRepoError as error:
        raise InputError(
            f"{name} is gated on the Hugging Face hub: accept its licence on its page there, then `hf auth login`."
        ) from error
    except RepositoryNotFoundError as error:
        raise InputError(f"{name} is neither a local folder nor a model on the Hugging Face hub.") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise InputError(
            f"{name} is not a local folder, and it could not be fetched from the Hugging Face hub "
            f"({' '.join(str(error).split())[:200]}). Check the name and the network, or give a local folder."
        ) from error


def load_config(folder: Path) -> Any:
    """The model's `PretrainedConfig`.

    Raises:
        InputError: config.json is missing, broken, of an unknown type, or asks for code of its own.
    """
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        raise InputError(f"{folder / 'config.json'} cannot be used: {' '.join(str(error).split())[:400]}") from error


def load_tokenizer(folder: Path) -> Any:
    """The model's tokenizer. A bare tokenizer.json names no EOS token: then the usual names are looked for.

    Raises:
        InputError: the folder holds no usable tokenizer.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        if tokenizer.eos_token is None:
            tokenizer.eos_token = next((name for name in _EOS_NAMES if name in tokenizer.get_vocab()), None)
        return tokenizer
    except Exception as error:
        raise InputError(
            f"{folder} has no usable tokenizer ({' '.join(str(error).split())[:300]}). Copy tokenizer.json and "
            "tokenizer_config.json of the original model into it."
        ) from error


def load_model(folder: Path, *, dtype: torch.dtype, device: torch.device | str = "cpu", **kwargs: Any) -> Any:
    """A causal LM in evaluation mode, loaded from safetensors only; every key must match.

    Further `kwargs` go to `from_pretrained` (`attn_implementation`).

    Raises:
        InputError: a shard is missing, truncated or corrupt, escapes the folder, or a key is missing, unexpected
            or of another shape; the message names the file or the keys.
    """
    check_weight_files(folder)
    try:
        with no_transformers_bars():
            model, info = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                **kwargs,
            )
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
        raise InputError(f"{folder} cannot be loaded ({reason}).") from error
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if found := sorted(map(str, info.get(kind) or [])):
            raise InputError(
                f"{folder} does not fill its model: {kind.replace('_', ' ')} {', '.join(found[:5])}"
                f"{' ...' if len(found) > 5 else ''}. The checkpoint and its config.json do not belong together."
            )
    return model.to(device).eval()


@contextmanager
def no_transformers_bars() -> Iterator[None]:
    """Keep transformers' own bars for loading and writing weights off the user's screen."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def check_weight_files(folder: Path) -> list[Path]:
    """The safetensors shards of a model folder, after checking that each is whole and lies inside it.

    Symbolic links may lead out of the folder only as the hub cache's do (into its `blobs/`).

    Raises:
        InputError: no weights, only pickles, a shard named outside the folder, or one that is missing or damaged.
    """
    from safetensors import SafetensorError, safe_open

    from compress.artifacts import read_json

    index = folder / "model.safetensors.index.json"
    if index.is_file():
        content = read_json(index)
        weight_map = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(weight_map, dict) or not weight_map:
            raise InputError(f"{index} is no shard index: it has no weight_map. Download it again.")
        names = sorted(set(map(str, weight_map.values())))
    elif (folder / "model.safetensors").is_file():
        names = ["model.safetensors"]
    else:
        pickles = [p.name for p in (*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth"))]
        hint = f" It has {pickles[0]}, a pickle, which can run code: convert it to safetensors." if pickles else ""
        raise InputError(f"{folder} has no model.safetensors.{hint}")
    shards = []
    for name in names:
        path = folder / name
        if os.path.basename(name) != name or "\\" in name or ":" in name:
            raise InputError(f"{index} names the shard {name!r}, which is not a plain file name inside the folder.")
        if not path.is_file():
            raise InputError(f"{path} is missing, though {index.name} names it. Download the model again.")
        try:
            with safe_open(path, framework="pt") as file:
                file.keys()
        except (SafetensorError, OSError) as error:
            raise InputError(
                f"{path} is not a whole safetensors file ({error}). It is truncated or corrupt: download it again."
            ) from error
        shards.append(path)
    return shards


def model_fingerprint(folder: Path) -> dict[str, str]:
    """SHA-256 of each file that makes the model what it is: config, weights, tokenizer, generation config."""
    names = {"config.json", "generation_config.json", "chat_template.jinja", "model.safetensors.index.json"}
    files = [p for p in sorted(folder.iterdir()) if p.is_file()]
    chosen = [
        p
        for p in files
        if p.name in names
        or p.suffix == ".safetensors"
        or p.name.startswith(("token", "vocab", "merges", "special", "spiece"))
    ]
    return {path.name: _content_hash(path) for path in chosen}


def _content_hash(path: Path) -> str:
    """SHA-256 of the content; the hub's cache names a large file's blob by that very hash."""
    blob = path.resolve().name
    if path.is_symlink() and len(blob) == 64 and path.resolve().parent.name == "blobs":
        return blob
    return sha256_file(path)


def decoder_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The stack of transformer layers and its dotted name, e.g. `("model.layers", ModuleList)`.

    Raises:
        InputError: the model keeps its layers where we do not know to look.
    """
    for name in _STACKS:
        try:
            found = model.get_submodule(name)
        except AttributeError:
            continue
        if isinstance(found, nn.ModuleList):
            return name, found
    raise InputError(f"{type(model).__name__} keeps its layers in none of {', '.join(_STACKS)}.")


def empty_model(config: Any) -> Any:
    """The architecture of a config on the meta device: shapes and names, no memory."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def count_parameters(model: nn.Module) -> int:
    """Number of parameters, tied ones counted once."""
    return sum(p.numel() for p in model.parameters())


@dataclasses.dataclass(frozen=True)
class OutputHead:
    """How a causal LM turns last hidden states h [N, D] into logits [N, V].

    z = scale * (h W^T + bias); with a cap c, c * tanh(z / c) (Gemma 2, arXiv:2408.00118, section 2).
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [N, V] in the dtype of `hidden` [N, D]."""
        bias = None if self.bias is None else self.bias.to(hidden.dtype)
        logits = nn.functional.linear(hidden, self.weight.to(hidden.dtype), bias)
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits


def output_head(model: Any) -> OutputHead:
    """The model's head with its logit scaling (Cohere, Granite, Falcon-H1) and soft-capping (Gemma)."""
    config = model.config.get_text_config()
    head = model.get_output_embeddings()
    if head is None:
        raise InputError(f"{type(model).__name__} has no output head.")
    scale = 1.0
    for name, invert in (("logit_scale", False), ("logits_scaling", True), ("lm_head_multiplier", False)):
        value = getattr(config, name, None)
        if value is not None:
            scale *= 1.0 / float(value) if invert else float(value)
    softcap = getattr(config, "final_logit_softcapping", None)
    return OutputHead(head.weight, getattr(head, "bias", None), scale, None if not softcap else float(softcap))


def hidden_states(model: Any, input_ids: Tensor, **kwargs: Any) -> Tensor:
    """Last hidden states [B, S, D] after the final norm, without running the head; `input_ids` is [B, S]."""
    hidden: Tensor = model.base_model(input_ids=input_ids, use_cache=False, **kwargs).last_hidden_state
    return hidden


@torch.no_grad()
def check_output_head(model: Any, name: str) -> None:
    """Compare head(hidden) with the model's own logits on a few tokens.

    Raises:
        CompressError: they differ, so this architecture transforms its logits in a way `output_head` does not know.
    """
    device = next(model.parameters()).device
    vocabulary = model.get_input_embeddings().num_embeddings
    ids = torch.arange(1, 17, device=device).remainder(vocabulary)[None]
    expected = model(input_ids=ids, use_cache=False).logits[0].float()
    hidden = hidden_states(model, ids)[0]
    found = output_head(model).logits(hidden).float()
    tolerance = 1e-4 if hidden.dtype == torch.float32 else 0.05
    error = (found - expected).abs().max().item()
    if not error <= tolerance * max(1.0, expected.abs().max().item()):
        raise CompressError(
            f"{name} ({type(model).__name__}) transforms its logits in a way this tool does not know: hidden states "
            f"times the output head differ from the model's logits by up to {error:.3g}."
        )


def kv_bytes_per_token(config: Any, bytes_per_value: int = 2) -> int:
    """Bytes of key-value cache one token takes over all layers (2 bytes a value: bf16)."""
    text = config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return int(2 * text.num_hidden_layers * heads * head_dim * bytes_per_value)


def forward_flops_per_token(config: Any, seq_len: int) -> float:
    """FLOPs of one forward pass a token at a mean causal context of `seq_len / 2`.

    2 FLOPs for each weight a token is multiplied with (all but the input embeddings), and 4 * D * context a layer
    for QK^T and AV (Kaplan et al., arXiv:2001.08361, table 1, halved for the causal mask).
    """
    text = config.get_text_config()
    model = empty_model(config)
    embedding = model.get_input_embeddings().weight
    head = model.get_output_embeddings().weight
    weights = count_parameters(model) - embedding.numel() + (embedding.numel() if head is embedding else 0)
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    attention = 4 * text.num_hidden_layers * text.num_attention_heads * head_dim * (seq_len / 2)
    return float(2 * weights + attention)
