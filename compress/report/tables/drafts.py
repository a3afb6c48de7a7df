"""The table of what models gave their teacher as drafts, measured beside what theory says."""

from compress.report.cells import cell, fixed, percent, with_error
from compress.report.run_files import Record
from compress.report.tables.table import Table, labels

_WAYS = {"greedy": "greedily", "sampled": "sampling"}


def drafted(report: Record) -> Table:
    """A row for each model whose drafts were measured, way to write and number of draft tokens."""
    rows, extents = [], set()
    for key, label in labels(report).items():
        measured = ((report[key].get("fidelity") or {}).get("draft") or {}).get("measured")
        if measured:
            extents.add(f"{measured['prompts']} prompts, {measured['new_tokens']} tokens each")
            for way, words in _WAYS.items():
                rows += [[label, words, *_cells(measured[way], entry)] for entry in measured[way]["by_draft_tokens"]]
    columns = [
        "Model",
        "Writing",
        "Draft tokens",
        "Accepted, %",
        "by theory",
        "Tokens a step",
        "Tokens/s",
        "without",
        "Speed-up",
        "by theory",
    ]
    note = (
        "The teacher writes with the model's drafts by transformers' assisted generation "
        f"({'; '.join(sorted(extents))}): accepted of the draft tokens that it tested ± one standard error over "
        "prompts, tokens it wrote a step, and its speed against its own without a draft, medians over prompts with "
        "quartiles in brackets. By theory: the chance that it accepts a draft token where it wrote alone, and the "
        "speed-up of that chance and of the two models' times."
    )
    return Table(title="As a draft of its teacher", note=note, columns=columns, rows=rows, text_columns=2)


def _cells(way: Record, entry: Record) -> list[str]:
    slow, fast = entry["speedup_quartiles"][:2]
    return [
        cell(entry, "draft_tokens", fixed(0)),
        with_error(entry, "acceptance", percent),
        with_error(way, "predicted_acceptance", percent),
        cell(entry, "tokens_per_step", fixed(2)),
        cell(entry, "tokens_per_s", fixed(1)),
        cell(way, "tokens_per_s", fixed(1)),
        f"{entry['speedup']:.2f}× [{slow:.2f}, {fast:.2f}]",
        cell(entry, "predicted_speedup", lambda value: f"{value:.2f}×"),
    ]
