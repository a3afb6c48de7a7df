"""The table of what more tokens of healing would give."""

from compress.base.units import format_count
from compress.report.cells import NONE
from compress.report.judge.recovery import SHARES, TIMES
from compress.report.run_files import Record
from compress.report.tables.table import Table


def recovery(report: Record) -> Table:
    """What held-out measures are expected to be after more tokens, with 90% intervals."""
    rows = []
    for entry in report.get("forecast") or []:
        if entry["refused"] is None:
            expected = [f"{each['value']:.4f} [{each['low']:.4f}, {each['high']:.4f}]" for each in entry["expects"]]
            rows.append([entry["name"], *expected, *_tokens(entry)])
    columns = ["Held-out", *(f"{times}× the tokens" if times > 1 else "At the end" for times in TIMES)]
    columns += [f"Tokens to {share:.0%} of the teacher" for share in SHARES]
    note = (
        "A power law with an offset, fitted to the measures at the full learning rate and carried on at that rate; 90% "
        "intervals, nats a token. X% of the teacher: X% of the cut's KL from it are gone."
    )
    return Table(title="What more healing would give", note=note, columns=columns, rows=rows)


def _tokens(entry: Record) -> list[str]:
    if "tokens" not in entry:
        return [NONE] * len(SHARES)
    return [
        f"{_count(each['value'])} [{_count(each['low'])}, {_count(each['high'])}]" if each["low"] else "never"
        for each in entry["tokens"]
    ]


def _count(tokens: float | None) -> str:
    return "never" if tokens is None else format_count(tokens)
