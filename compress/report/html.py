"""report.html: one self-contained page, pictures first. No request leaves it; everything from the run is escaped."""

from collections.abc import Callable, Sequence
from html import escape
from importlib.resources import files

from compress.report import svg
from compress.report.build import LABELS
from compress.report.cells import share_kept
from compress.report.extracts import manifest_blocks, sample_rows
from compress.report.figures import layers_figure, loss_figure, loss_panels, marker, scores_figure
from compress.report.importance import importance_figure, measures, score_unit
from compress.report.ranked import candidates_figure
from compress.report.run_files import Record, RunFiles, number
from compress.report.tables import Table, all_tables, models
from compress.units import format_bytes, format_count, format_seconds

_MEANING = {
    "teacher": "the full model",
    "student_init": "layers dropped, not trained",
    "student": "trained on its teacher",
}


def html_page(report: Record, run: RunFiles) -> str:
    """The whole page as text."""
    style = files("compress.report").joinpath("page.css").read_text(encoding="utf-8")
    sections = [_header(report), _scores(report), _losses(report, run), _sizes(report), _tables(report)]
    sections += [_samples(report), _layers(report), _candidates(report), _importance(report), _manifest(report, run)]
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(report['name'])} · compress report</title><style>{style}</style>"
    )
    body = "\n".join(section for section in sections if section)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body><main>\n{body}\n</main></body></html>\n'


def _header(report: Record) -> str:
    keys = "".join(f'<li class="{key}">{_chip(key)}<b>{LABELS[key]}</b> {_MEANING[key]}</li>' for key in models(report))
    tiles = "".join(
        f"<li><strong>{a}</strong><span>{escape(b)}</span><small>{escape(c)}</small></li>" for a, b, c in _tiles(report)
    )
    teacher = f'<p class="origin">Teacher: {escape(str(report["teacher"]["model"]))}</p>' if report["teacher"] else ""
    return (
        f'<header><p class="eyebrow">compress report</p><h1>{escape(report["name"])}</h1>'
        f'<p class="lead">{escape(report["headline"])}</p>{teacher}'
        f'<ul class="tiles">{tiles}</ul><ul class="key">{keys}</ul></header>'
    )


def _chip(key: str) -> str:
    return svg.element("svg", marker(key, 7, 7, f"mark {key}"), viewBox="0 0 14 14", class_="chip", aria_hidden="true")


def _tiles(report: Record) -> list[tuple[str, str, str]]:
    """(number, what it is, detail) for the few numbers that matter most; only what was measured."""
    found = []
    compression = report["compression"] or {}
    model = str(compression.get("model"))
    if share := compression.get("params"):
        sizes = (format_count(report[key]["params"]) for key in (model, "teacher"))
        found.append((f"{share:.0%}", "of the parameters", " of ".join(sizes)))
    overall = report["overall"].get(model) or {}
    if overall.get("chance_corrected") is not None:
        low_high = overall["ci95"]
        detail = f"95% interval {100 * low_high[0]:.0f} to {100 * low_high[1]:.0f}%, " if low_high else ""
        tasks = f"{overall['num_tasks']} task{'s' if overall['num_tasks'] > 1 else ''}"
        found.append((share_kept(overall["chance_corrected"]), "kept above chance", detail + tasks))
    if faster := compression.get("speedup_decode"):
        rates = [report[key]["speed"]["decode_tokens_per_s"] for key in (model, "teacher")]
        found.append((f"{faster:.1f}×", "decoding speed", f"{rates[0]:,.0f} against {rates[1]:,.0f} tokens/s"))
    train = report["train"] or {}
    if tokens := number(train.get("tokens")):
        seconds = number(train.get("seconds"))
        found.append((format_count(tokens), "tokens of healing", format_seconds(seconds) if seconds else ""))
    return found


def _figure(title: str, caption: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2><p class='caption'>{escape(caption)}</p>{body}</section>"


def _scores(report: Record) -> str:
    picture = scores_figure(report)
    caption = (
        "Percent, with 95% intervals. The dashed line is what guessing scores; "
        "a hollow mark cannot be told from guessing, or lies below it."
    )
    return _figure("What it can do", caption, f'<div class="wide">{picture}</div>') if picture else ""


def _losses(report: Record, run: RunFiles) -> str:
    panels = loss_panels(report, run)
    if not panels:
        return ""
    pictures = "".join(
        f"<figure><figcaption>{escape(panel.title)}</figcaption>{loss_figure(panel)}</figure>" for panel in panels
    )
    caption = "Loss of the student in nats a token, on training batches and on held-out text."
    return _figure("How it healed", caption, f'<div class="pair">{pictures}</div>')


_SIZES: tuple[tuple[str, str, bool, Callable[[float], str]], ...] = (
    ("Parameters", "params", False, format_count),
    ("On disk", "bytes", False, format_bytes),
    ("Peak memory", "peak_gib", True, lambda gib: format_bytes(gib * 2**30)),
    ("Prefill, tokens/s", "prefill_tokens_per_s", True, lambda v: f"{v:,.0f}"),
    ("Decode, tokens/s", "decode_tokens_per_s", True, lambda v: f"{v:,.0f}"),
    ("Latency, median", "latency_ms_p50", True, lambda v: f"{v:,.1f} ms"),
)


def _sizes(report: Record) -> str:
    """Bars of teacher and smallest student for each size and speed that both have."""
    compression = report["compression"]
    if compression is None:
        return ""
    keys = ["teacher", compression["model"]]
    speeds = [report[key].get("speed") or {} for key in keys]
    devices = dict.fromkeys(f"{speed.get('device')}, {speed.get('dtype')}" for speed in speeds if speed)
    cards = []
    for title, field, is_speed, show in _SIZES:
        records = speeds if is_speed else [report[key] for key in keys]
        values = [number(record.get(field)) for record in records]
        pairs = [(key, value) for key, value in zip(keys, values, strict=True) if value is not None and value > 0]
        if len(pairs) == len(keys) and not (is_speed and len(devices) > 1):
            cards.append(f"<div><h3>{title}</h3>{_bars(pairs, show)}</div>")
    caption = f"Speed and memory measured on {' and on '.join(devices)}." if devices else "Speed was not measured."
    return _figure("What it costs to use", caption, f'<div class="cards">{"".join(cards)}</div>')


def _bars(pairs: list[tuple[str, float]], show: Callable[[float], str]) -> str:
    longest = max(value for _, value in pairs)
    return "".join(
        f'<div class="bar {key}"><span>{LABELS[key]}</span>'
        f'<i style="--share:{value / longest:.4f}"></i><b>{show(value)}</b></div>'
        for key, value in pairs
    )


def _tables(report: Record) -> str:
    return "\n".join(_table(table) for table in all_tables(report))


def _table(table: Table) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        kinds = [' class="words"' if left else "" for left in table.words]
        made = (f"<{tag}{kind}>{escape(text)}</{tag}>" for text, kind in zip(cells, kinds, strict=True))
        return f"<tr>{''.join(made)}</tr>"

    rows = "".join(row(cells, "td") for cells in table.rows)
    narrow = ' class="narrow"' if len(table.columns) == 2 else ""
    grid = (
        f'<div class="wide"><table{narrow}><thead>{row(table.columns, "th")}</thead><tbody>{rows}</tbody></table></div>'
    )
    if table.folded:
        grid = f"<details><summary>{len(table.rows)} rows</summary>{grid}</details>"
    return _figure(table.title, table.note, grid)


def _samples(report: Record) -> str:
    rows = sample_rows(report)
    if not rows:
        return ""
    cards = []
    for prompt, texts in rows:
        columns = "".join(
            f'<div class="{key}"><h4>{_chip(key)}{LABELS[key]}</h4><p>{escape(texts[key].strip())}</p></div>'
            for key in models(report)
            if key in texts
        )
        cards.append(f'<article><p class="prompt">{escape(prompt)}</p><div class="columns">{columns}</div></article>')
    return _figure("How it writes", "The same prompts, continued by each model.", "".join(cards))


def _layers(report: Record) -> str:
    picture = layers_figure(report["prune"]) if report["prune"] else ""
    if not picture:
        return ""
    kept, dropped = (len(report["prune"][key]) for key in ("kept_layers", "dropped_layers"))
    caption = f"{kept} of {kept + dropped} transformer layers stay, in their order; the dashed ones were dropped."
    return _figure("Which layers stay", caption, f'<div class="wide">{picture}</div>')


def _candidates(report: Record) -> str:
    picture = candidates_figure(report["prune"]) if report["prune"] else ""
    if not picture:
        return ""
    tokens = number(report["prune"]["ranking"].get("rank_after_tokens"))
    healed = f"{format_count(tokens)} tokens" if tokens else "a short heal"
    caption = (
        f"Every cut was healed on the same {healed}; the best, on top, was chosen. Hollow: as it was cut; filled: "
        "after that heal."
    )
    return _figure("Which cut heals best", caption, f'<div class="wide">{picture}</div>')


def _importance(report: Record) -> str:
    pictures = []
    for measure in measures(report["prune"]):
        text = (measure.get("ranking") or {}).get("calibration")
        measured = f" over {text['tokens']:,} tokens" if text else ""
        told = f"By {measure['method']}{measured}: {score_unit(measure)}."
        pictures.append(f'<p class="caption">{escape(told)}</p><div class="wide">{importance_figure(measure)}</div>')
    if not pictures:
        return ""
    chooses = "were dropped" if len(pictures) == 1 else "would be dropped by that measure"
    caption = f"Filled layers stay, dashed ones {chooses}. The last layer always stays."
    return _figure("How much each layer matters", caption, "".join(pictures))


def _manifest(report: Record, run: RunFiles) -> str:
    lines = "".join(f"<li>{escape(line)}</li>" for line in report["left_out"])
    missing = f"<h3>Not in this report</h3><ul>{lines}</ul>" if lines else ""
    blocks = "".join(
        f"<details><summary>{escape(title)}</summary><pre>{escape(body)}</pre></details>"
        for title, body, _ in manifest_blocks(run)
    )
    return _figure("How it was made", "Recipe, versions, hardware, commit and hashes of every step.", missing + blocks)
