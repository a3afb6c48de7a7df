"""Numbers as the report writes them: percent, intervals, a dash for what is absent, a true minus sign."""

from collections.abc import Callable, Sequence

from compress.report.run_files import Record, lower_is_better, number

NONE = "–"
_MINUS = "−"


def percent(value: float | None, digits: int = 1) -> str:
    """0.4831 -> `48.3`."""
    return NONE if value is None else f"{100 * value:.{digits}f}"


def listed(words: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def short(name: str, longest: int) -> str:
    """A name of a user's own, its end left out where it is longer."""
    return name if len(name) <= longest else name[: longest - 1] + "…"


def ratio_with_interval(value: float | None, interval: Sequence[float] | None) -> str:
    """0.873 in (0.84, 0.90) -> `87% [84, 90]`."""
    if value is None:
        return NONE
    shown = f"{value:.0%}" + (f" [{100 * interval[0]:.0f}, {100 * interval[1]:.0f}]" if interval else "")
    return shown.replace("-", _MINUS)


def share_kept(value: float | None) -> str:
    """Retention above chance in a word: `53%`, `none` at or below chance, a dash when it is undefined."""
    return NONE if value is None else "none" if value <= 0 else f"{value:.0%}"


def plus_minus(score: Record | None, metric: str | None) -> str:
    """A score with its standard error, in percent: `48.3 ± 0.5`; perplexities and scores above 1 as they are."""
    if score is None or score["value"] is None:
        return NONE
    value, stderr = score["value"], score["stderr"]
    plain = value > 1 or lower_is_better(metric)
    show = fixed(3) if plain else percent
    return show(value) + (f" ± {show(stderr)}" if stderr is not None else "")


def points(value: float | None, interval: Sequence[float] | None) -> str:
    """A difference of scores in percentage points: -0.109 in (-0.12, -0.098) -> `−10.9 [−12.0, −9.8]`."""
    if value is None:
        return NONE
    shown = f"{100 * value:+.1f}" + (f" [{100 * interval[0]:+.1f}, {100 * interval[1]:+.1f}]" if interval else "")
    return shown.replace("-", _MINUS)


def nats(value: float | None, stderr: float | None) -> str:
    """A loss with its standard error: `0.5321 ± 0.0101`."""
    return NONE if value is None else f"{value:.4f}" + (f" ± {stderr:.4f}" if stderr is not None else "")


def more_nats(beside: Record | None) -> tuple[str, str]:
    """A paired difference of losses with its interval, `+0.0321 [+0.0101, +0.0541]`, and its p."""
    if beside is None:
        return NONE, NONE
    low, high = beside["ci95"]
    shown = f"{beside['difference']:+.4f} [{low:+.4f}, {high:+.4f}]".replace("-", _MINUS)
    return shown, f"{beside['p_holm']:.2g}"


def fixed(digits: int) -> Callable[[float], str]:
    """A way to show a number: thousands separated, `digits` decimals."""
    return lambda value: f"{value:,.{digits}f}"


def cell(record: Record | None, key: str, show: Callable[[float], str]) -> str:
    """A number of a record as text, or a dash where the record or the number is absent."""
    value = number((record or {}).get(key))
    return NONE if value is None else show(value)


def with_error(record: Record | None, key: str, show: Callable[[float], str]) -> str:
    """A number of a record with its standard error, where there is one: `0.53 ± 0.01`."""
    error = number((record or {}).get(f"{key}_stderr"))
    return cell(record, key, show) + (f" ± {show(error)}" if error is not None else "")


def layer_ranges(layers: Sequence[int]) -> str:
    """[0, 2, 5, 6, 7] -> `0, 2, 5-7`."""
    parts: list[list[int]] = []
    for layer in sorted(layers):
        if parts and layer == parts[-1][-1] + 1:
            parts[-1].append(layer)
        else:
            parts.append([layer])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in parts)
