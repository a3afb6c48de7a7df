"""Whether a run reached what its recipe asked for, and what it would take."""

import math
from collections.abc import Mapping
from typing import Any

from compress.report.judge.ability import kept
from compress.report.judge.forecast import NoForecast, fit_forecast, full_rate_points
from compress.report.judge.scores import Comparison
from compress.report.judge.stats import Estimate
from compress.report.run_files import Record, RunFiles

_OF_TEACHER = {"params": "params", "bytes": "bytes", "decode_speedup": "speedup_decode"}


def reached(
    run: RunFiles,
    compression: Record | None,
    student: Comparison | None,
    grown: Mapping[int, Comparison],
) -> list[Record]:
    """Of each thing that the recipe's target names: `asked`; `found`, of the healed student, with its `ci95` where it
    has one; whether that is `reached`, to the interval's lower end; and `takes`, what else would.

    Sizes up to 1, and `found` of sizes then, are shares of the teacher's. What is `kept` is that of the benchmarks or,
    without any, of the last scores while it was trained. `student` is it beside its teacher, `grown` larger models.
    """
    asked = run.target or {}
    rows = []
    for name, key in _OF_TEACHER.items():
        if (wanted := asked.get(name)) is not None:
            found = _found(name, key, wanted, compression, run)
            at_least = name == "decode_speedup"
            done = None if found is None else (found >= wanted if at_least else found <= wanted)
            rows.append({"name": name, "asked": wanted, "found": found, "ci95": None, "reached": done, "takes": []})
    if (wanted := asked.get("kept")) is not None:
        share = _kept(run, student)
        done = None if share.ci95 is None else share.ci95[0] >= wanted
        takes = [] if done else [*_sizes(wanted, grown), *_tokens(run, wanted)]
        if share.note is not None:
            takes = [share.note]
        rows.append(
            {"name": "kept", "asked": wanted, "found": share.value, "ci95": share.ci95, "reached": done, "takes": takes}
        )
    return rows


def _found(name: str, key: str, wanted: float, compression: Record | None, run: RunFiles) -> float | None:
    if compression is None:
        return None
    share: float | None = compression[key]
    if name == "decode_speedup" or wanted <= 1:
        return share
    size = run.evals[compression["model"]].get(name)
    return None if size is None else float(size)


def _kept(run: RunFiles, student: Comparison | None) -> Estimate:
    if student is not None and (overall := student.overall) is not None:
        return Estimate(overall["chance_corrected"], overall["ci95"], overall["note"])
    steps = [row["step"] for row in run.abilities if row["of"] == "student"]
    return kept(run.abilities, max(steps)) if steps else Estimate(None, None, "it was not scored")


def _sizes(wanted: float, grown: Mapping[int, Comparison]) -> list[str]:
    """The smallest grown model that keeps so much."""
    for layers, comparison in sorted(grown.items()):
        share = comparison.overall
        if share is not None and share["ci95"] is not None and share["ci95"][0] >= wanted:
            return [f"the model grown to {layers} layers keeps {share['chance_corrected']:.0%}"]
    return ["no larger model that was grown keeps it"] if grown else []


def _tokens(run: RunFiles, wanted: float) -> list[str]:
    """Tokens until what is lacking is down to what may lack, by the scores while it was trained."""
    if run.distill is None:
        return []
    times = {row["step"]: row["tokens"] for row in run.abilities if row["of"] == "student"}
    shares = {step: kept(run.abilities, step).value for step in times}
    rows: list[dict[str, Any]] = [
        {"step": step, "tokens": times[step], "lacking": None if share is None else 1 - share}
        for step, share in shares.items()
    ]
    config = (run.distill.get("manifest") or {}).get("config") or {}
    try:
        fitted = fit_forecast(*full_rate_points(rows, "lacking", config, int(run.distill.get("steps") or 0)))
    except NoForecast as why:
        return [f"how many tokens it would take cannot be said: {why}"]
    value, low, high = fitted.tokens_to(1 - wanted)
    if math.isinf(value):
        return ["by the course of the scores, no number of tokens would do: more layers would"]
    ends = [f"{end:,.0f}" if math.isfinite(end) else "never" for end in (low, high)]
    return [f"by the course of the scores, {value:,.0f} tokens ({ends[0]} to {ends[1]})"]
