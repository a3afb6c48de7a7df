"""A byte-level BPE tokenizer as the metadata of a GGUF file."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compress.base.errors import InputError
from compress.model.load import load_tokenizer
from compress.model.tokenizer import chat_template, tokenizer_spec

_BYTES = {"type": "ByteLevel", "add_prefix_space": False}
_SPECIAL = ("bos", "eos", "unk", "pad")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GgufTokenizer:
    """What a GGUF file says of a tokenizer."""

    pre: str
    """llama.cpp's name of the way in which text is split before it is merged."""
    tokens: Sequence[str]
    types: Sequence[int]
    """Of each token, gguf's `TokenType`."""
    merges: Sequence[str]
    special: dict[str, int]
    adds_bos: bool
    chat_template: str | None

    def write(self, writer: Any) -> None:
        """Put it into the metadata of a `GGUFWriter`."""
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        writer.add_token_merges(self.merges)
        for role, token in self.special.items():
            getattr(writer, f"add_{role}_token_id")(token)
        writer.add_add_bos_token(self.adds_bos)
        if self.chat_template is not None:
            writer.add_chat_template(self.chat_template)


def gguf_tokenizer(name: str, folder: Path, vocab_size: int) -> GgufTokenizer:
    """The tokenizer in `folder` of the model `name`, whose embeddings have `vocab_size` rows.

    Raises:
        InputError: it is no byte-level BPE, splits text in a way that has no name here, or has more tokens than rows.
    """
    from gguf import TokenType

    tokenizer = load_tokenizer(folder)
    spec = tokenizer_spec(tokenizer)
    parts = json.loads(spec.definition)
    pre = _pre_tokenizer(parts)
    refusal = f"The tokenizer of {name} has no form in a GGUF file here"
    remedy = "Export the model as int8 or int4, or convert it with llama.cpp's convert_hf_to_gguf.py."
    if pre is None:
        raise InputError(
            f"{refusal}: it is no byte-level BPE that splits text as GPT-2, SmolLM, Llama 3 or Qwen 2 do. {remedy}"
        )
    if not parts["model"]["merges"]:
        raise InputError(f"{refusal}: it merges nothing, and GGUF has no empty list of merges. {remedy}")
    if spec.vocab_size > vocab_size:
        raise InputError(f"{refusal}: it has {spec.vocab_size} tokens, and the model {vocab_size} embeddings. {remedy}")
    tokens = [f"[PAD{number}]" for number in range(vocab_size)]
    types = [TokenType.UNUSED] * vocab_size
    for token, number in tokenizer.backend_tokenizer.get_vocab(with_added_tokens=True).items():
        tokens[number], types[number] = token, TokenType.NORMAL
    for added in parts["added_tokens"]:
        types[added["id"]] = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    special = {role: getattr(tokenizer, f"{role}_token_id") for role in _SPECIAL}
    return GgufTokenizer(
        pre=pre,
        tokens=tokens,
        types=types,
        merges=[pair if isinstance(pair, str) else " ".join(pair) for pair in parts["model"]["merges"]],
        special={role: number for role, number in special.items() if number is not None},
        adds_bos=spec.adds_prefix,
        chat_template=chat_template(tokenizer),
    )


def _pre_tokenizer(parts: dict[str, Any]) -> str | None:
    """llama.cpp's name for the way in which a tokenizer.json splits text; None where it is no such BPE."""
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    splitting = parts["pre_tokenizer"] or {}
    steps = splitting["pretokenizers"] if splitting.get("type") == "Sequence" else [splitting]
    normalizer = parts["normalizer"] or {"type": "NFC"}  # which llama.cpp leaves out for Qwen as well
    *before, last = steps
    if parts["model"]["type"] != "BPE" or normalizer["type"] != "NFC" or not _BYTES.items() <= last.items():
        return None
    if not before:
        return "gpt-2" if last.get("use_regex") else None
    first = before[0]
    if len(before) > 1:
        return None
    if first == {"type": "Digits", "individual_digits": True}:
        return "smollm" if last.get("use_regex") else None
    pattern = first.get("pattern", {}).get("Regex")
    alike = [pre for pre in ("llama-bpe", "qwen2") if GGUF_PRE_TOKENIZER_SPLITS[pre] == pattern]
    return alike[0] if alike and first.get("behavior") == "Isolated" and not last.get("use_regex") else None
