"""The summary that the command prints when a run ends."""

from collections.abc import Callable

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from compress.base.units import format_bytes, format_count
from compress.report.cells import fixed, plus_minus, points, share_kept, short, with_error
from compress.report.judge.prompting import common_prompting
from compress.report.judge.verdicts import SIGNIFICANT, alarm_lines
from compress.report.run_files import Record
from compress.report.tables.table import compared, labels, main_tasks, retold

_ALARMS = 4
_MARKS = {"same": " ≈", "below": " ↓"}
_OTHER = "other_text"
_LONGEST_SOURCE = 24
Fact = tuple[str, tuple[str, ...], str, Callable[[float], str]]
"""What a row is called, where its numbers lie, their name there, and how they are shown."""
_FACTS: tuple[Fact, ...] = (
    ("parameters", (), "params", format_count),
    ("on disk", (), "bytes", format_bytes),
    ("held-out loss", ("heldout",), "loss_nats", fixed(3)),
    ("loss, other text", (_OTHER, "heldout"), "loss_nats", fixed(3)),
    ("KL to teacher", ("fidelity",), "kl_nats", fixed(4)),
    ("KL, other text", (_OTHER, "fidelity"), "kl_nats", fixed(4)),
    ("decode tokens/s", ("speed",), "decode_tokens_per_s", fixed(0)),
)
_FILLED_IN: Fact = ("filled in right", ("heldout",), "top1_accuracy", lambda share: f"{100 * share:.1f}%")
"""Of masked language models."""
_BITS: tuple[Fact, ...] = (
    ("bits per byte", ("heldout",), "bits_per_byte", fixed(3)),
    ("other text", (_OTHER, "heldout"), "bits_per_byte", fixed(3)),
    ("of its teacher", ("teacher_heldout",), "bits_per_byte", fixed(3)),
)


def summary(report: Record) -> Group:
    """A column for each model; rows: scores in percent +- one standard error, size, held-out loss and KL (and on other
    text, where it was measured), decode speed.

    The last column is what the student keeps above chance. `report` is the content of report.json. `≈` marks a score
    that cannot be told from chance, `↓` one below it; under the table stand the scores that mislead, and why.
    Of a comparison (`compress compare`) the cells have the difference from the first model, in points, below the score.
    """
    keys = labels(report)
    tables = compared(report)
    side_by_side = "compared" in report
    kept = {} if side_by_side else next(reversed(tables.values()), {})
    tasks = main_tasks(report)
    verdicts = {task[key]["versus_chance"] for task in tasks.values() for key in keys if key in task}
    marks = "; ≈ not above chance, ↓ below chance" if verdicts & _MARKS.keys() else ""
    how = common_prompting({key: report[key] for key in keys})
    caption = Text(f"scores in percent, ± a standard error{marks}{f'; {how}' if how else ''}", "table.caption")
    table = Table(title=Text(report["headline"]), caption=caption, box=SIMPLE_HEAD)
    table.add_column("", overflow="fold")
    for name in [*keys.values(), *(["kept"] if kept else [])]:
        table.add_column(Text(name), justify="right", no_wrap=True)
    for name, entry in tasks.items():
        scores = [entry.get(key) for key in keys]
        cells = [
            plus_minus(score, entry["metric"]) + _MARKS.get((score or {}).get("versus_chance") or "", "")
            for score in scores
        ]
        if side_by_side:
            cells = [
                f"{shown}{_difference(tables.get(key, {}).get(name))}" for key, shown in zip(keys, cells, strict=True)
            ]
        share = kept.get(name, {})
        last = [share_kept(share.get("chance_corrected"))] if kept else []
        table.add_row(*map(Text, [name, *cells, *last]))
    table.add_section()
    for label, place, field, show in [*_facts(report), *_of_sources(report)]:
        parts = [_part(report[key], place) for key in keys]
        if any(parts) or _OTHER not in place:
            table.add_row(*map(Text, [label, *(with_error(part, field, show) for part in parts)]))
    alarms = alarm_lines(report)
    shown = [Text(f"! {line}") for line in alarms[:_ALARMS]]
    more = [Text(f"! and {len(alarms) - _ALARMS} more.")] if len(alarms) > _ALARMS else []
    return Group(table, *shown, *more)


def _facts(report: Record) -> tuple[Fact, ...]:
    """What is told of each model; of masked ones what they fill in, and no decoding; where tokenizers differ, bits a
    byte in place of what is by the token."""
    if any("top1_accuracy" in (report[key].get("heldout") or {}) for key in labels(report)):
        return (*_FACTS[:3], _FILLED_IN, *_FACTS[3:-1])
    if not retold(report):
        return _FACTS
    sizes = tuple(fact for fact in _FACTS if fact[2] not in ("loss_nats", "kl_nats"))
    return (*sizes[:2], *(_BITS if len(labels(report)) == 1 else _BITS[:2]), *sizes[2:])


def _of_sources(report: Record) -> list[Fact]:
    """The facts of each source of a blend."""
    found = [((report[key].get("fidelity") or {}).get("by_source") or {}) for key in labels(report)]
    names = dict.fromkeys(name for sources in found for name in sources)
    return [
        (f"KL, {short(name, _LONGEST_SOURCE)}", ("fidelity", "by_source", name), "kl_nats", fixed(4)) for name in names
    ]


def _part(record: Record | None, place: tuple[str, ...]) -> Record | None:
    """What lies in a record under these keys, one in the other."""
    for key in place:
        record = (record or {}).get(key)
    return record


def _difference(entry: Record | None) -> str:
    """A second line: the difference from the first model in points with its interval, and whether it is noise."""
    if entry is None or entry["difference"] is None:
        return f"\n{entry['note']}" if entry and entry["note"] else ""
    p_value = entry["p_value"] if entry["p_holm"] is None else entry["p_holm"]
    noise = " noise" if p_value is not None and p_value >= SIGNIFICANT else ""
    return f"\n{points(entry['difference'], entry['difference_ci95'])}{noise}"
