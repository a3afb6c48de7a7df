"""Candidate cuts, for a choice that is made by healing each of them a little.

How much a cut costs before healing says little of what it costs after (Minitron, arXiv:2407.14679, saw rankings flip
during the first few hundred steps), so criteria and controls name candidates here, and `compress.run.rank_after` heals
them.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from compress.base.config import config
from compress.base.currency import Before
from compress.base.errors import UsageError
from compress.base.units import Count
from compress.prune.choose.mix import choose_layers
from compress.prune.choose.spec import check_spec
from compress.prune.parts import METHODS, WITHOUT_TEXT, AtLeastOne, CalibrationConfig, Method, RankingConfig

if TYPE_CHECKING:
    from compress.prune.choose.ranking import Ranking

_PROPOSING = tuple(method for method in METHODS if method != "kl-greedy")
"""METHODs that propose a cut where nobody names any: two searches name the same one, as a rule."""
RANDOM_DRAWS = 3
"""Cuts that the candidate `random` stands for."""


@config
class RankAfterConfig(CalibrationConfig):
    """Keep the layers of the candidate cut that is best after a short heal."""

    layers: AtLeastOne
    """How many layers stay."""
    rank_after: AtLeastOne
    """Tokens that each candidate is healed on."""
    by: Method | None = None
    """A METHOD whose cut is to be compared with the controls."""
    candidates: tuple[str, ...] | None = None
    """METHODs and SPECs that name a cut each, `random` three; None is every METHOD but kl-greedy (or `by` alone) and
    the controls: alternate, uniform:N, contiguous:N, random."""
    seed: Count = 0
    """Of the first random draw."""
    rank_tasks: Annotated[tuple[str, ...] | None, Before(None)] = None
    """Tasks whose mean score the healed candidates are compared by, in place of their nearness to the teacher."""
    rank_items: Annotated[AtLeastOne, Before(200)] = 200
    """Items of each of these tasks, its first."""
    data: str | None = None
    """Token store that candidates are healed and measured on."""
    heal: dict[str, Any] = dataclasses.field(default_factory=dict)
    """How they are healed: the options of `compress.distill` that touch the result."""

    @property
    def reads_text(self) -> bool:
        """Whether a candidate is named by a measure that needs text."""
        return any(name in METHODS and name not in WITHOUT_TEXT for name in self._names(self.layers))

    def proposals(self, types: Sequence[str]) -> list[tuple[str, tuple[int, ...] | RankingConfig]]:
        """Each candidate's name, and its layers or the measure that is to choose them; `types` are the model's layers'.

        Raises:
            UsageError: the model has fewer layers, or a SPEC keeps another number of them.
        """
        num_layers = len(types)
        if self.layers > num_layers:
            raise UsageError(f"layers = {self.layers}: the model has {num_layers} layers; write how many of them stay.")
        found: list[tuple[str, tuple[int, ...] | RankingConfig]] = []
        for name in self._names(num_layers):
            if name not in METHODS:
                found.append((name, self._named(name, types)))
                continue
            for draw in range(RANDOM_DRAWS if name == "random" else 1):
                shared = {field: getattr(self, field) for field in CalibrationConfig.__dataclass_fields__}
                measure = RankingConfig(layers=self.layers, by=name, seed=self.seed + draw, **shared)
                found.append((name, measure))
        return found

    def _names(self, num_layers: int) -> tuple[str, ...]:
        measures = _PROPOSING if self.by is None else (self.by, "random")
        if self.candidates is not None:
            return tuple(dict.fromkeys([*([self.by] if self.by else []), *self.candidates]))
        controls = [f"contiguous:{self.layers}"]
        if self.layers >= min(2, num_layers):
            controls.append(f"uniform:{self.layers}")
        if self.layers == (num_layers + 1) // 2:
            controls.append("alternate")
        return tuple(dict.fromkeys([*measures, *controls]))

    def _named(self, spec: str, types: Sequence[str]) -> tuple[int, ...]:
        kept = choose_layers(spec, types)
        if len(kept) != self.layers:
            raise UsageError(
                f"The candidate {spec} keeps {len(kept)} of {len(types)} layers, and layers = {self.layers}. "
                "Candidates are compared at one size; change one of the two."
            )
        return kept


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chosen:
    """Layers that were chosen by healing candidates, and what was asked for."""

    asked: RankAfterConfig
    ranking: "Ranking"


def check_request(
    rank_after: int | None,
    candidates: Sequence[str] | None,
    rank_tasks: Sequence[str] | None,
    layers: int | None,
    keep: str | None,
) -> None:
    """Check what was asked of a ranking against itself, before the model is known.

    Raises:
        ValueError: options that exclude or need each other, or a candidate that is neither a METHOD nor a SPEC.
    """
    if rank_after is None:
        if candidates is not None:
            raise ValueError("`candidates` are healed before one is chosen; write `rank_after`, on how many tokens")
        if rank_tasks is not None:
            raise ValueError("`rank_tasks` compare candidates that were healed; write `rank_after`, on how many tokens")
        return
    if layers is None or keep is not None:
        raise ValueError("`rank_after` compares cuts of one size: write `layers`, how many stay, and no `keep`")
    if candidates is not None and not candidates:
        raise ValueError("`candidates` is empty; name some, or leave it out")
    for name in candidates or ():
        if name not in METHODS:
            try:
                check_spec(name)
            except ValueError as error:
                raise ValueError(f"{error}, or a METHOD: {' | '.join(METHODS)}") from None
