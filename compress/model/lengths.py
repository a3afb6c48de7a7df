"""How many tokens a model reads at once, and what is cut to fit."""

from collections.abc import Iterable
from typing import Any

from compress.base.errors import UsageError
from compress.base.progress import say

WINDOWS = ("sliding_window", "window_size", "attention_window", "attention_window_size", "attention_chunk_size")
"""What configs call the number of tokens that their layers, or some of them, look back."""
_FIELDS = ("max_position_embeddings", "max_seq_len", "max_target_positions")
_PADDED_POSITIONS = (
    "camembert", "data2vec-text", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
)  # fmt: skip
"""Types whose first token has the position after `pad_token_id`: that many rows of their table serve no text."""


def context_tokens(config: Any) -> int | None:
    """Tokens that the model of this config reads at most; None where its config does not bound them.

    Where positions are computed (rotary embeddings) it is what the model was made for: longer text runs, and means
    nothing.
    """
    text = config.get_text_config()
    found = (getattr(text, name, None) for name in _FIELDS)
    limit = min((value for value in found if isinstance(value, int) and value > 1), default=None)
    if limit is None or text.model_type not in _PADDED_POSITIONS:
        return limit
    return limit - (text.pad_token_id or 0) - 1


def shortest_context(configs: Iterable[Any]) -> int | None:
    """Tokens that all models of these configs read; None where nothing bounds them."""
    return min((limit for limit in map(context_tokens, configs) if limit is not None), default=None)


def check_rows(seq_len: int, config: Any, name: str) -> None:
    """Refuse rows of text that a model does not read as a whole.

    Raises:
        UsageError: they are longer than its context.
    """
    limit = context_tokens(config)
    if limit is not None and seq_len > limit:
        raise UsageError(
            f"Rows of {seq_len} tokens are longer than {name} reads, {limit} at most: prepare the text with "
            f"data.seq_len: {limit} or less."
        )


def fit(what: str, prompt: int, new: int, limit: int | None) -> tuple[int, int]:
    """Tokens of a prompt and of what follows it, both cut alike where they exceed `limit` together; that is said."""
    if limit is None or prompt + new <= limit:
        return prompt, new
    follows = max(1, new * limit // (prompt + new)) if new else 0
    asked, cut = (f"{prompt} + {new}", f"{limit - follows} + {follows}") if new else (prompt, limit)
    say(f"{what}: {asked} tokens exceed the context of {limit}, and are cut to {cut}.")
    return limit - follows, follows
