"""The table of what a run cost and what it saves."""

from compress.base.units import format_count, format_seconds
from compress.report.run_files import Record
from compress.report.tables.table import Table


def worth(report: Record) -> Table:
    """The cost of the run, of a million tokens before and after, and the tokens from which on it has paid."""
    found = report.get("worth") or {}
    price = found.get("price_per_hour")

    def cost(seconds: float) -> str:
        return format_seconds(seconds) if price is None else f"{seconds / 3600 * price:,.4g}"

    rows = [
        [
            {"prefill": "read", "decode": "written"}[what],
            cost(found["seconds"]),
            *(cost(1e6 * found[what][when]) for when in ("before", "after")),
            "never" if found[what]["tokens"] is None else format_count(found[what]["tokens"]),
        ]
        for what in ("prefill", "decode")
        if what in found
    ]
    unit = "time of the device" if price is None else f"price, at {price:g} an hour"
    note = (
        f"In {unit}: what healing took, and what a million tokens take at the shape that was timed. The run has paid "
        "after so many tokens if the device that heals and the one that serves cost the same."
    )
    columns = ["Tokens", "Healing", "1M, teacher", "1M, student", "Pays from"]
    return Table(title="Is it worth it", note=note, columns=columns, rows=rows)
