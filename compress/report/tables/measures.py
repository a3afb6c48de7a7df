"""Tables of what was measured beside the tasks: held-out text, nearness to the teacher, size and speed."""

from collections.abc import Iterator

from compress.base.units import format_bytes
from compress.report.cells import NONE, cell, fixed, percent, with_error
from compress.report.run_files import Record
from compress.report.tables.table import Table, labels, retold

_CLASSES = {"by_token": "what it is", "by_frequency": "how often it occurs", "by_position": "place in the row"}

_EXTENT = {"bits_per_byte": 3, "tokens": 0, "documents": 0}


def text(report: Record) -> Table:
    """Loss on held-out text, and on other text."""
    rows = []
    for name, held in _on_texts(report, "heldout"):
        cells = [with_error(held, "loss_nats", fixed(3)), cell(held, "perplexity", fixed(2))]
        rows.append([name, *cells, *(cell(held, extent, fixed(digits)) for extent, digits in _EXTENT.items())])
    columns = ["Model", "Loss, nats/token", "Perplexity", "Bits/byte", "Tokens", "Documents"]
    note = "Loss ± one standard error over documents, whose tokens depend on each other." + _other(report)
    if retold(report):
        note += " The teacher has another tokenizer: only bits per byte compare it with the others."
    return Table(title="Held-out text", note=note, columns=columns, rows=rows)


def _on_texts(report: Record, part: str) -> Iterator[tuple[str, Record]]:
    """What a row is called, and `part` of what was measured: of each model on held-out text, on that of each source of
    a blend, then on other text."""
    for key, label in labels(report).items():
        for name, measured in ((label, report[key]), (f"{label}, other text", report[key].get("other_text"))):
            if found := (measured or {}).get(part):
                yield name, found
                yield from ((f"{label}, {source}", of_it) for source, of_it in (found.get("by_source") or {}).items())


def _other(report: Record) -> str:
    """What the other text is, where there is one."""
    sources = dict.fromkeys(other["source"] for key in labels(report) if (other := report[key].get("other_text")))
    return f" The other text is {', '.join(sources)}." if sources else ""


def nearness(report: Record) -> Table:
    """Fidelity to the teacher on held-out text, on other text, response by response, and as its draft."""
    drafts = {label: (report.get("draft") or {}).get(key) for key, label in labels(report).items()}
    rows = []
    for name, near in _on_texts(report, "fidelity"):
        responses, sampled = near.get("responses"), (drafts.get(name) or {}).get("sampled")
        gain = NONE if sampled is None else f"{sampled['speedup']:.2f}× at {sampled['draft_tokens']}"
        rows.append(
            [
                name,
                with_error(near, "kl_nats", fixed(4)),
                cell(near, "js_nats", fixed(4)),
                cell(near, "top1_agreement", percent),
                cell(near, "top5_agreement", percent),
                with_error(near, "acceptance_rate", percent),
                gain,
                with_error(responses, "rouge_l", percent),
                cell(responses, "common_prefix", percent),
            ]
        )
    columns = [
        "Model",
        "KL, nats/token",
        "JS, nats/token",
        "Same top token, %",
        "Of its top five, %",
        "Accepted draft, %",
        "Draft speed-up",
        "Responses: ROUGE-L, %",
        "same start, %",
    ]
    note = (
        "Divergence from the teacher's next-token distribution on held-out text ± one standard error over documents; "
        "how often the teacher would accept the model's token as a draft, and what drafting that many a step would "
        "gain it by theory; how much of greedy continuations of the same prompts is shared."
    ) + _other(report)
    return Table(title="Nearness to the teacher", note=note, columns=columns, rows=rows)


def classes(report: Record) -> Table:
    """KL and agreement by class of the predicted token."""
    keys = [key for key in labels(report) if (report[key].get("fidelity") or {}).get("by_token")]
    rows = []
    for field, what in _CLASSES.items():
        found = [report[key]["fidelity"][field] for key in keys]
        for name in dict.fromkeys(name for each in found for name in each):
            cells = []
            for each in found:
                cells += [cell(each.get(name), "kl_nats", fixed(4)), cell(each.get(name), "top1_agreement", percent)]
            tokens = next(cell(each[name], "tokens", fixed(0)) for each in found if name in each)
            rows.append([what, name.replace("_", " "), tokens, *cells])
    names = [labels(report)[key].capitalize() for key in keys]
    columns = ["Token by", "Class", "Tokens", *(f"{n}: {what}" for n in names for what in ("KL, nats", "same top, %"))]
    note = "The same divergence, over the tokens of each class; a token counts where it is predicted."
    return Table(
        title="Where it differs from its teacher", note=note, columns=columns, rows=rows, text_columns=2, folded=True
    )


def speed(report: Record) -> Table:
    """Size, speed, latency, peak memory and cost at each number of sequences, with the device they were measured on."""
    priced = any("decode_cost_per_million_tokens" in (report[key].get("speed") or {}) for key in labels(report))
    rows = []
    for key, label in labels(report).items():
        fast = report[key].get("speed")
        size = [cell(report[key], "params", fixed(0)), cell(report[key], "bytes", format_bytes)]
        where = ", ".join(str(fast[name]) for name in ("device", "dtype") if fast.get(name)) if fast else NONE
        for shape in (fast or {}).get("shapes") or [fast]:
            cells = [cell(shape, "batch", fixed(0)), *(_rate(shape, name) for name in ("prefill", "decode"))]
            cells += [cell(shape, name, fixed(1)) for name in ("latency_ms_p50", "latency_ms_p95")]
            cells.append(cell(shape, "peak_gib", memory))
            if priced:
                cells += [cell(shape, f"{name}_cost_per_million_tokens", fixed(4)) for name in ("prefill", "decode")]
            rows.append([label, *size, *cells, where])
            label, size, where = "", ["", ""], ""
    columns = [
        "Model",
        "Parameters",
        "On disk",
        "Batch",
        "Prefill, tok/s",
        "Decode, tok/s",
        "Latency p50, ms",
        "p95, ms",
    ]
    columns += ["Peak memory", *(["Price of 1M prompt tokens", "of 1M decoded"] if priced else []), "Measured on"]
    note = (
        "Medians over rounds in which the models take turns, with quartiles in brackets, on the device named in the "
        "last column; batch is the number of sequences side by side."
    )
    return Table(title="Size and speed", note=note, columns=columns, rows=rows)


def _rate(shape: Record | None, what: str) -> str:
    """`601 [590, 612]`: tokens a second with the quartiles over rounds."""
    shown = cell(shape, f"{what}_tokens_per_s", fixed(0))
    quartiles = (shape or {}).get(f"{what}_tokens_per_s_quartiles")
    return shown if not quartiles else f"{shown} [{quartiles[0]:,.0f}, {quartiles[1]:,.0f}]"


def memory(value: float) -> str:
    """GiB as text."""
    return format_bytes(value * 2**30)
