"""Options of the teachers: a cache of their signals, and several that teach together."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from compress.base.config import config
from compress.base.currency import FREE, PLACE, Before
from compress.base.errors import UsageError

_K, _DRAWS = 8, 50
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@config
class CacheConfig:
    """What is kept of the teacher for each token of a store, so that training runs it no more: {kind: hidden}."""

    kind: Literal["hidden", "samples", "topk"] = "hidden"
    """hidden: the last hidden state, with the output head once: a training from it is the live one, bit for bit.
    samples: tokens drawn from its distribution, a tenth of the bytes or less; gradients of forward KL have the
    expectation of the live ones. topk: its most likely tokens, for comparison: the rest is missing, a bias."""
    rows: Annotated[Literal["exact", "int8"], Before("exact")] = "exact"
    """Of `hidden`: as the teacher has them, or rounded to 8 bits, a scale for every 32: what that changes is measured
    on held-out rows and refused above `teacher_max_kl`."""
    draws: Annotated[int, Field(ge=1, le=255)] = _DRAWS
    """Of `samples`: how often a token is drawn."""
    k: Annotated[int, Field(ge=1, le=1024)] = _K
    """Of `topk`: how many tokens are kept, 6 bytes each."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of `samples`: what the draws depend on, with the number of a row."""
    folder: Annotated[str | None, FREE] = None
    """Where the cache lies, for several runs to share; by default in the run's folder, as teacher-cache."""

    def __post_init__(self) -> None:
        for name, kind, default in (
            ("rows", "hidden", "exact"),
            ("draws", "samples", _DRAWS),
            ("seed", "samples", 0),
            ("k", "topk", _K),
        ):
            if self.kind != kind and getattr(self, name) != default:
                raise ValueError(f"`{name}` is of kind: {kind}, and this is {self.kind}; leave it out")


@config
class VoiceConfig:
    """What a teacher counts among several."""

    weight: Weight = 1.0
    """Beside the others' weights, which are made to add up to 1 for each row."""
    sources: dict[str, Weight] = dataclasses.field(default_factory=dict)
    """The weight for rows of these sources of a blend, by their names, in place of `weight`: {books: 1, web: 0}."""


@config
class OtherTeacher(VoiceConfig):
    """A model that teaches beside the run's teacher, and has its vocabulary."""

    model: Annotated[str, PLACE]
    """Hub id, local folder, or a GGUF file."""
    revision: Annotated[str | None, FREE] = None
    """Commit, tag or branch on the hub; the default branch when absent."""


@config
class MixtureConfig(VoiceConfig):
    """Several teachers: the run's own, which `weight` and `sources` are of, with others."""

    with_: Annotated[tuple[OtherTeacher, ...], Field(min_length=1)]
    """The others; `with` in a recipe."""
    of: Literal["probabilities", "logits"] = "probabilities"
    """What is mixed: sum w_i softmax(z_i / T), which holds possible what any teacher does; or logits, sum w_i z_i,
    whose softmax holds possible what all do."""

    def __post_init__(self) -> None:
        named = dict.fromkeys(name for voice in self.voices for name in voice.sources)
        for name in _each(tuple(named)):
            if not any(self.shares(name)):
                raise ValueError(f"no teacher has a weight{'' if name is None else f' for rows of {name!r}'}")

    @property
    def voices(self) -> tuple[VoiceConfig, ...]:
        """All teachers, the run's own first."""
        return (self, *self.with_)

    def shares(self, source: str | None) -> tuple[float, ...]:
        """What each teacher counts for rows of a source, 1 in all, or 0 where none has a weight; None is text of one
        source."""
        weights = [voice.weight if source is None else voice.sources.get(source, voice.weight) for voice in self.voices]
        return tuple(weight / (sum(weights) or 1.0) for weight in weights)

    def check_sources(self, sources: Sequence[str]) -> None:
        """Refuse text that has not the sources that weights are given for, or rows that no teacher speaks for.

        Raises:
            UsageError: which.
        """
        there = f"there are {', '.join(sources)}" if sources else "the text is no blend (data.sources)"
        for voice in self.voices:
            if unknown := [name for name in voice.sources if name not in sources]:
                raise UsageError(f"distill.mixture has weights for the source {unknown[0]!r}, and {there}.")
        for name in _each(sources):
            if not any(self.shares(name)):
                rows = "the text" if name is None else f"rows of the source {name!r}"
                raise UsageError(f"distill.mixture: no teacher has a weight for {rows}; give one of them some.")

    def describe(self, teacher: str, sources: Sequence[str]) -> str:
        """`books: A 41%, B 59%; web: A 100%; probabilities mixed`, with the run's own teacher under its name."""
        names = (teacher, *(other.model for other in self.with_))

        def of(source: str | None) -> str:
            shares = zip(names, self.shares(source), strict=True)
            return ", ".join(f"{name} {share:.0%}" for name, share in shares if share)

        found = {source: of(source) for source in _each(sources)}
        alike = len(set(found.values())) == 1
        parts = list(found.values())[:1] if alike else [f"{source}: {said}" for source, said in found.items()]
        return "; ".join([*parts, f"{self.of} mixed"])


def _each(sources: Sequence[str]) -> Sequence[str | None]:
    """The sources of a blend; of other text its one, which has no name."""
    return sources or [None]
