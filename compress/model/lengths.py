"""How many tokens a model reads at once, and what is cut to fit."""

from collections.abc import Iterable
from typing import Any

from compress.base.errors import UsageError
from compress.base.progress import say


def context_tokens(config: Any) -> int | None:
    """Tokens that the model of this config reads at most; None where its config does not bound them."""
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 1 else None


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
