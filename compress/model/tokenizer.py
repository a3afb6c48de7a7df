"""A tokenizer as data, and the fingerprint by which text and models are known to speak of the same tokens.

Nothing here imports torch or transformers before a tokenizer is loaded: processes that tokenize start quickly.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from compress.base.disk import sha256_json
from compress.base.errors import InputError
from compress.model.files import resolve_model
from compress.model.framing import prefix_of


class TokenizerSpec(NamedTuple):
    """A tokenizer as data: small enough to hand to a process, exact enough to name in an index."""

    definition: str
    """The fast tokenizer's JSON."""
    eos_id: int
    vocab_size: int
    """One more than the largest id."""
    sha256: str
    prefix: tuple[int, ...]
    """Token ids that a text may begin with (see `prefix_of`)."""
    adds_prefix: bool
    """Whether the tokenizer's own encoding begins with them."""

    @property
    def dtype(self) -> Any:
        """The narrowest unsigned type that holds every id."""
        return np.dtype("<u2" if self.vocab_size <= 2**16 else "<u4")

    @property
    def description(self) -> dict[str, Any]:
        """What a store's index says of it."""
        return {
            "dtype": self.dtype.name,
            "vocab_size": self.vocab_size,
            "eos_id": self.eos_id,
            "tokenizer_sha256": self.sha256,
        }


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """SHA-256 of what decides the ids: normalizer, pre-tokenizer, model, added tokens, and the EOS token's id.

    It stays the same when `save_pretrained` writes the tokenizer to another folder in another layout.

    Raises:
        InputError: the tokenizer is not a fast one, or has no EOS token.
    """
    return tokenizer_spec(tokenizer).sha256


def tokenizer_spec(tokenizer: Any) -> TokenizerSpec:
    """Take a transformers tokenizer apart.

    Raises:
        InputError: it is not a fast one, or has no EOS token to end documents with.
    """
    name = getattr(tokenizer, "name_or_path", None) or type(tokenizer).__name__
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise InputError(f"The tokenizer {name} has no fast form (tokenizer.json), which preparing text needs.")
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"The tokenizer {name} has no end-of-sequence token to put between documents. Name one as `eos_token` in "
            "its tokenizer_config.json."
        )
    definition = backend.to_str()
    parts = json.loads(definition)
    decisive = {k: parts.get(k) for k in ("normalizer", "pre_tokenizer", "model", "added_tokens")}
    return TokenizerSpec(
        definition,
        int(tokenizer.eos_token_id),
        max(backend.get_vocab(with_added_tokens=True).values()) + 1,
        sha256_json({**decisive, "eos_id": tokenizer.eos_token_id}),
        *prefix_of(tokenizer),
    )


def find_tokenizer(folder: str | Path) -> Any:
    """The transformers tokenizer of a model folder, or of a hub model.

    Raises:
        InputError: there is none, or it cannot be used.
    """
    from compress.model.load import load_tokenizer

    path = Path(folder).expanduser()
    return load_tokenizer(path if path.is_dir() else resolve_model(str(folder), weights=False))


def chat_template(tokenizer: Any) -> str | None:
    """The text of the template that chats are written in; None without one, or with none of several as the default."""
    try:
        template: str = tokenizer.get_chat_template()
    except ValueError:
        return None
    return template


def load_spec(folder: str | Path) -> TokenizerSpec:
    """The tokenizer of a folder as data; raises as `find_tokenizer`."""
    return tokenizer_spec(find_tokenizer(folder))
