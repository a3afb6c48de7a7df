"""How many layers stay where a recipe's target says how small or how fast the student is to be."""

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

from compress.base.config import to_dict
from compress.base.disk import read_json, sha256_json, write_json
from compress.base.errors import CompressError, UsageError
from compress.base.machine import device_name, find_device
from compress.base.outputs import MADE_BY, Output, has_fields
from compress.base.progress import say
from compress.base.units import format_bytes, format_count
from compress.evaluate import EvalConfig, speed_of_shapes
from compress.model.facts import ModelFacts
from compress.prune.plan import Derivation, derive
from compress.prune.rules.student_config import num_layers
from compress.run.depth import token_cost
from compress.run.target_config import TargetConfig

_MARGIN = 1.02
"""How much faster than asked a depth is to be, as measured: timings of one and the same model differ by as much."""


def find_layers(asked: TargetConfig, known: ModelFacts, seconds: Mapping[int, float] | None) -> int:
    """The most layers of a model of which a target's size or speed can be had.

    `seconds` are those that a token takes to be written with so many layers; without them, a speed-up is one of FLOPs.

    Raises:
        UsageError: even one layer is too many, all of them are few enough, or the seconds tell nothing.
    """
    total = num_layers(known.config)
    if seconds is not None and seconds[min(seconds)] >= seconds[max(seconds)]:
        raise UsageError(
            f"target.decode_speedup: {min(seconds)} layers of {known.name} took as long as {max(seconds)}, so other "
            "work on this machine, or what is the same in both, hides what a layer costs. Remove the run's target.json "
            "and time them anew when nothing else runs (eval.speed_repeats, eval.speed_decode_tokens: more of it), or "
            "write target.params."
        )

    @cache
    def cut(layers: int) -> Derivation:
        return derive(known.name, known.side, f"contiguous:{layers}")

    def excess(layers: int) -> float:
        """How many times too large or too slow a cut is."""
        try:
            return _excess(asked, known, cut, layers, seconds)
        except CompressError:  # this type cannot be cut so far: that would be small enough, and is refused later
            return 0.0

    found = bisect_right(range(1, total + 1), 1.0, key=excess)
    if found == 0:
        raise UsageError(
            f"target: even one layer of {known.name} is too much, as embeddings and head are the rest. Ask for less."
        )
    if found == total:
        raise UsageError(f"target: {known.name} is there already, with all of its {total} layers. Ask for more.")
    return found


def _excess(
    asked: TargetConfig,
    known: ModelFacts,
    cut: Callable[[int], Derivation],
    layers: int,
    seconds: Mapping[int, float] | None,
) -> float:
    plan = cut(layers).plan
    if asked.params is not None:
        return _over(plan.params_after, asked.params, plan.params_before)
    if asked.bytes is not None:
        return _over(plan.bytes_after, asked.bytes, plan.bytes_before)
    assert asked.decode_speedup is not None
    if seconds is None:
        return asked.decode_speedup * token_cost(cut(layers).student) / token_cost(known.config)
    (few, short), (many, long) = sorted(seconds.items())
    own = short + (long - short) * (layers - few) / (many - few)
    return _MARGIN * asked.decode_speedup * own / long if layers < many else math.inf


def _over(size: int, asked: float, whole: int) -> float:
    """A size over the one asked for, of which at most 1 is a share of the whole."""
    return size / (asked * whole if asked <= 1 else asked)


def measured_seconds(known: ModelFacts, config: EvalConfig, path: Path, *, measure: bool) -> dict[int, float] | None:
    """Seconds that a token takes to be written with all layers, and with half of them: from the record in `path`, or
    measured now and recorded there; None without a record where they are not to be measured."""
    total = num_layers(known.config)
    half = derive(known.name, known.side, f"contiguous:{max(1, total // 2)}")
    shape = config.only_speed()
    of = sha256_json(
        {
            "teacher": known.config.to_dict(),
            "speed": to_dict(shape),
            "device": device_name(find_device(config.device)),
        }
    )
    if path.is_file():
        record = read_json(path)
        if record["of"] == of:
            return {int(layers): seconds for layers, seconds in record["seconds"].items()}
    if not measure:
        return None
    say(f"target: timing {total} and {len(half.plan.kept_layers)} layers of {known.name}, with random weights")
    configs = {str(total): known.config, str(len(half.plan.kept_layers)): half.student}
    speeds = speed_of_shapes(configs, known.side, shape)
    seconds = {name: 1 / speed["decode_tokens_per_s"] for name, speed in speeds.items()}
    write_json(path, {MADE_BY: "compress run", "of": of, "seconds": seconds, "speeds": speeds})
    return {int(layers): each for layers, each in seconds.items()}


def timing_output(path: Path) -> Output:
    """The record of `measured_seconds`."""
    return Output(path, "the timing of two depths", has_fields("of", "seconds"))


def target_text(asked: TargetConfig, *, timed: bool) -> str:
    """What is to be reached, and how many layers stay so, in words; `timed`: by timings of this device."""
    lines = []
    if asked.layers is not None:
        wanted = {"params": format_count, "bytes": format_bytes}
        found = [(name, value) for name in wanted if (value := getattr(asked, name)) is not None]
        size = [f"{f'{v:g}x of the teacher' if v <= 1 else wanted[name](v)} in {name} at most" for name, v in found]
        if asked.decode_speedup is not None:
            by = "as timed" if timed else "by FLOPs; it is timed before the run begins"
            size.append(f"{asked.decode_speedup:g}x as fast in decoding, {by}")
        how = asked.by if asked.rank_after is None else f"a heal of each candidate on {asked.rank_after:,} tokens"
        lines.append(f"{', '.join(size)}: {asked.layers} layers stay, chosen by {how}")
    if asked.kept is not None:
        lines.append(f"training ends once {asked.kept:.0%} of the teacher's score above chance is kept")
    return "; ".join(lines)
