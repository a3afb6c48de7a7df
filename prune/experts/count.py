"""How many experts a model's layers have, how many may stay, and the config of a model that has them."""

from typing import Any

from compress.base.errors import InputError, UsageError
from compress.prune.parts import ExpertsConfig
from compress.prune.rules.student_config import text_section

TYPES = ("mixtral", "olmoe", "qwen2_moe", "qwen3_moe")
"""Types whose code was read for this: a router with a row for each expert, softmax over all, the top k of it (made to
sum to 1 or not), and experts in one module of transformers, on disk together or one by one."""
_COUNTS = ("num_local_experts", "num_experts")
_TOP_K = "num_experts_per_tok"
_ANY_COUNT = (*_COUNTS, "n_routed_experts", "moe_num_experts")


def num_experts(text: Any, name: str) -> int:
    """Experts of each sparse layer of the model `name`, by its language model's config.

    Raises:
        InputError: it has none, or is of a type that is not known.
    """
    if text.model_type in TYPES:
        return int(next(getattr(text, field) for field in _COUNTS if getattr(text, field, None)))
    if any(getattr(text, field, None) for field in _ANY_COUNT):
        raise InputError(
            f"Experts of {name}, a {text.model_type}, cannot be dropped: this tool knows those of {', '.join(TYPES)}."
        )
    raise InputError(f"{name}, a {text.model_type}, has no experts to drop: leave `experts` out.")


def kept_experts(config: ExpertsConfig, text: Any, name: str) -> int:
    """How many experts of each sparse layer stay.

    Raises:
        InputError: as `num_experts`.
        UsageError: they would be all, or fewer than each token is given to.
    """
    total, top_k = num_experts(text, name), int(getattr(text, _TOP_K))
    count = config.experts if isinstance(config.experts, int) else round(config.experts * total)
    if count >= total or count < top_k:
        raise UsageError(
            f"experts = {config.experts}: {count} of the {total} experts of {name}'s layers would stay, and each token "
            f"is given to {top_k} of them; write a number from {top_k} to {total - 1}, or a share."
        )
    return count


def write_count(content: dict[str, Any], config: Any, count: int) -> None:
    """Put the number of experts into a config.json's `content`, under the names that it has there."""
    text = config.get_text_config()
    section = text_section(config, text, content)
    own = [field for field in _COUNTS if field in text.to_dict()]
    section |= dict.fromkeys([field for field in _COUNTS if field in section] or own, count)
