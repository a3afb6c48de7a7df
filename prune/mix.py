"""How a cut changes the mixture of layer types (sliding or full attention, attention or recurrence)."""

from collections import Counter
from collections.abc import Sequence

from compress.errors import InputError
from compress.prune.spec import evenly_spaced, format_layers

_NOTABLE_SHIFT = 0.1


def count_types(types: Sequence[str]) -> dict[str, int]:
    """Layers of each type, in order of first appearance."""
    return dict(Counter(types))


def require_attention(types: Sequence[str], kept: Sequence[int]) -> None:
    """Refuse to leave a hybrid without attention: its recurrent layers alone cannot look back exactly.

    Raises:
        InputError: the model has attention layers and none is kept; the message names them.
    """
    attention = [i for i, kind in enumerate(types) if _is_attention(kind)]
    if attention and not set(attention) & set(kept):
        raise InputError(
            f"This choice keeps none of the model's attention layers ({format_layers(attention)}), only "
            f"{', '.join(sorted({types[i] for i in kept}))}; keep at least one of them."
        )


def mix_note(types: Sequence[str], kept: Sequence[int]) -> str | None:
    """A sentence when a type's share of the layers changes by a tenth or more, with a choice that keeps the mix."""
    before, after = count_types(types), count_types([types[i] for i in kept])
    shift = max(abs(count / len(types) - after.get(kind, 0) / len(kept)) for kind, count in before.items())
    if shift < _NOTABLE_SHIFT:
        return None
    note = f"The mixture of layer types changes: {_list(before, len(types))} -> {_list(after, len(kept))}."
    proposal = proportional(types, len(kept))
    if proposal != tuple(kept) and count_types([types[i] for i in proposal]) != after:
        note += f" To stay close to the mixture with as many layers: --keep {format_layers(proposal)}"
    return note


def proportional(types: Sequence[str], count: int) -> tuple[int, ...]:
    """`count` layers in which each type has its share (largest remainders), evenly spaced within the type."""
    totals = count_types(types)
    quotas = {kind: count * total // len(types) for kind, total in totals.items()}
    by_remainder = sorted(
        totals, key=lambda kind: (quotas[kind] * len(types) - count * totals[kind], kind != types[-1])
    )
    for kind in by_remainder[: count - sum(quotas.values())]:
        quotas[kind] += 1
    chosen: list[int] = []
    for kind, quota in quotas.items():
        layers = [i for i, other in enumerate(types) if other == kind]
        if quota:
            chosen += [layers[position] for position in evenly_spaced(quota, len(layers))]
    return tuple(sorted(chosen))


def _is_attention(kind: str) -> bool:
    return kind.endswith("attention") and not kind.startswith("linear")


def _list(counts: dict[str, int], total: int) -> str:
    only = "only " if len(counts) == 1 else ""
    return f"{only}{', '.join(f'{count} {kind}' for kind, count in counts.items())} of {total}"
