"""How a cut changes the mixture of layer types (sliding or full attention, attention or recurrence)."""

from collections import Counter
from collections.abc import Sequence

from compress.base.errors import InputError
from compress.prune.choose.spec import PATTERN, evenly_spaced, format_layers, parse_spec

_NOTABLE_SHIFT = 0.1
_WITHOUT_ATTENTION = frozenset({"linear_attention", "mamba", "mamba2", "conv", "recurrent", "moe", "mlp"})


def count_types(types: Sequence[str]) -> dict[str, int]:
    """Layers of each type, in order of first appearance."""
    return dict(Counter(types))


def choose_layers(spec: str, types: Sequence[str]) -> tuple[int, ...]:
    """Kept layers of a SPEC for a model whose layers are of these types; raises as `parse_spec` does.

    `uniform:N` gives each type its share and keeps both ends; `pattern:SPEC` keeps as many layers as SPEC would, each
    type by its share. Where all layers are of one type, `uniform:N` is evenly spaced and `pattern:SPEC` is SPEC.
    """
    kept = parse_spec(spec, len(types))
    uniform = spec.removeprefix(PATTERN).startswith("uniform:")
    if len(set(types)) > 1 and (uniform or spec.startswith(PATTERN)):
        return proportional(types, len(kept), ends=uniform)
    return kept


def require_attention(types: Sequence[str], kept: Sequence[int]) -> None:
    """Refuse to leave a hybrid without attention: its recurrent layers alone cannot look back exactly.

    Raises:
        InputError: the model has attention layers and none is kept; the message names them.
    """
    attention = [i for i, kind in enumerate(types) if is_attention(kind)]
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


def proportional(types: Sequence[str], count: int, *, ends: bool = False) -> tuple[int, ...]:
    """`count` layers in which each type has its share, evenly spaced within the type, the last layer among them.

    Shares are rounded by largest remainders; a model with attention keeps some. With `ends` the first layer stays
    too, if `count` allows.
    """
    required = [0, len(types) - 1] if ends and count > 1 else [len(types) - 1]
    quotas = _quotas(types, count, Counter(types[i] for i in set(required)))
    chosen: list[int] = []
    for kind, quota in quotas.items():
        layers = [i for i, other in enumerate(types) if other == kind]
        if quota == 1 and ends and layers[0] == 0:
            chosen.append(0)
        elif quota:
            chosen += [layers[position] for position in evenly_spaced(quota, len(layers))]
    return tuple(sorted(chosen))


def _quotas(types: Sequence[str], count: int, least: Counter[str]) -> dict[str, int]:
    """How many layers of each type stay: its share of `count`, not less than `least` and not more than there are."""
    totals = count_types(types)
    attention = [kind for kind in totals if is_attention(kind)]
    if attention and count > sum(least.values()) and not any(least[kind] for kind in attention):
        least[max(attention, key=totals.__getitem__)] = 1
    quotas = {kind: max(least[kind], count * total // len(types)) for kind, total in totals.items()}

    def excess(kind: str) -> tuple[int, bool]:
        return quotas[kind] * len(types) - count * totals[kind], kind != types[-1]

    while sum(quotas.values()) < count:
        quotas[min((kind for kind in totals if quotas[kind] < totals[kind]), key=excess)] += 1
    while sum(quotas.values()) > count:
        quotas[max((kind for kind in totals if quotas[kind] > least[kind]), key=excess)] -= 1
    return quotas


def is_attention(kind: str) -> bool:
    """Whether a layer of this type looks back exactly: not by recurrence or convolution, and not only an MLP."""
    return kind.partition("/")[0] not in _WITHOUT_ATTENTION


def _list(counts: dict[str, int], total: int) -> str:
    only = "only " if len(counts) == 1 else ""
    return f"{only}{', '.join(f'{count} {kind}' for kind, count in counts.items())} of {total}"
