"""report.html: one self-contained page, pictures first. No request leaves it; everything from the run is escaped."""

from collections.abc import Callable
from dataclasses import replace
from html import escape

from compress.base.units import format_bytes, format_count, format_seconds
from compress.report.cells import share_kept
from compress.report.judge.choice import measures, score_unit
from compress.report.judge.selection import selection_of, selection_words
from compress.report.judge.speeds import speed_pair
from compress.report.pages.ability import ability_figure
from compress.report.pages.candidates import candidates_figure
from compress.report.pages.extracts import manifest_blocks, sample_rows
from compress.report.pages.figures import layers_figure, loss_figure, loss_panels
from compress.report.pages.importance import importance_figure
from compress.report.pages.layout import alarms, chip, left_out, page, scores_section, section, tables
from compress.report.pages.selection import selection_figure
from compress.report.pages.sizes import sizes_figure
from compress.report.run_files import Record, RunFiles, TrainingFiles, called, layers_of, number
from compress.report.tables.table import labels

_MEANING = {
    "teacher": "the full model",
    "teacher before": "as it was given",
    "cut": "layers dropped, not trained",
    "student before": "as it was given",
    "healed": "trained on its teacher",
    "distilled": "trained on its teacher",
}


def html_page(report: Record, run: RunFiles) -> str:
    """The whole page as text."""
    sections = [
        _header(report),
        scores_section(report),
        _losses(report, run),
        _abilities(report),
        _selection(report),
        _classes(report),
        _sizes(report),
    ]
    sections += [
        _between(report),
        tables(report),
        _samples(report),
        _layers(report),
        _candidates(report),
        _importance(report),
    ]
    sections.append(_manifest(report, run))
    return page(report["name"], sections)


def _header(report: Record) -> str:
    keys = "".join(
        f'<li class="{key}">{chip(key)}<b>{label}</b> {_MEANING[label]}</li>' for key, label in labels(report).items()
    )
    tiles = "".join(
        f"<li><strong>{a}</strong><span>{escape(b)}</span><small>{escape(c)}</small></li>" for a, b, c in _tiles(report)
    )
    teacher = f'<p class="origin">Teacher: {escape(str(report["teacher"]["model"]))}</p>' if report["teacher"] else ""
    return (
        f'<header><p class="eyebrow">compress report</p><h1>{escape(report["name"])}</h1>'
        f'<p class="lead">{escape(report["headline"])}</p>{teacher}'
        f'{alarms(report)}<ul class="tiles">{tiles}</ul><ul class="key">{keys}</ul></header>'
    )


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
        rates = [speed["decode_tokens_per_s"] for speed in speed_pair(report[model], report["teacher"]) or ()]
        found.append((f"{faster:.1f}×", "decoding speed", f"{rates[0]:,.0f} against {rates[1]:,.0f} tokens/s"))
    train = report["train"] or {}
    if tokens := number(train.get("tokens")):
        seconds = number(train.get("seconds"))
        found.append((format_count(tokens), "tokens of healing", format_seconds(seconds) if seconds else ""))
    return found


def _losses(report: Record, run: RunFiles) -> str:
    panels = loss_panels(report, run)
    parts: list[tuple[str, TrainingFiles]] = [
        (f"Stage {place}", stage) for place, stage in enumerate(run.stages[:-1], start=1)
    ]
    for name, part in reversed([*parts, *((branch.name, branch) for branch in run.branches)]):
        of_part = replace(run, train_rows=part.train_rows, heldout_rows=part.heldout_rows)
        panels = [*(replace(panel, title=f"{name}: {panel.title}") for panel in loss_panels(report, of_part)), *panels]
    if not panels:
        return ""
    pictures = "".join(
        f"<figure><figcaption>{escape(panel.title)}</figcaption>{loss_figure(panel)}</figure>" for panel in panels
    )
    caption = "Loss of the student in nats a token, on training batches and on held-out text."
    if any(panel.sources for panel in panels):
        caption += " Grey lines are the held-out text of each source."
    return section("How it healed", caption, f'<div class="pair">{pictures}</div>')


def _abilities(report: Record) -> str:
    """Scores of the student while it was trained."""
    shown = [entry for entry in report["abilities"] if entry["points"]]
    if not shown:
        return ""
    pictures = "".join(
        f"<figure><figcaption>{escape(entry['task'])}: {escape(entry['metric'])} on {entry['n']} items</figcaption>"
        f"{ability_figure(entry)}</figure>"
        for entry in shown
    )
    caption = "The student's score on the same few items each time, with 95% intervals; the line is its teacher's."
    return section("What it could do on the way", caption, f'<div class="pair">{pictures}</div>')


def _selection(report: Record) -> str:
    """How hard the text was, and what of it was learned from."""
    found = selection_of(report)
    if found is None:
        return ""
    return section(
        "What it learned from", f"{selection_words(found)}.", f'<div class="wide">{selection_figure(found)}</div>'
    )


def _classes(report: Record) -> str:
    """Bars of the smallest student's KL by what the token is, and by its place in the row."""
    key = next((key for key in ("student", "student_init") if (report[key] or {}).get("fidelity")), None)
    near = report[key]["fidelity"] if key else {}
    cards = []
    for title, field in (("By what the token is", "by_token"), ("By place in the row", "by_position")):
        groups = {name: number(entry.get("kl_nats")) for name, entry in (near.get(field) or {}).items()}
        pairs = [(name.replace("_", " "), kl) for name, kl in groups.items() if kl is not None and kl > 0]
        if pairs:
            bars = [(str(key), name, kl) for name, kl in pairs]
            cards.append(f"<div><h3>{title}</h3>{_bars(bars, lambda kl: f'{kl:.3f}')}</div>")
    if not cards:
        return ""
    student = called(labels(report)[str(key)])
    caption = f"KL divergence of the {student} from its teacher on held-out text, nats a token."
    return section("Where it differs from its teacher", caption, f'<div class="cards">{"".join(cards)}</div>')


_SIZES: tuple[tuple[str, str, bool, Callable[[float], str]], ...] = (
    ("Parameters", "params", False, format_count),
    ("On disk", "bytes", False, format_bytes),
    ("Peak memory", "peak_gib", True, lambda gib: format_bytes(gib * 2**30)),
    ("Prefill, tokens/s", "prefill_tokens_per_s", True, lambda v: f"{v:,.0f}"),
    ("Decode, tokens/s", "decode_tokens_per_s", True, lambda v: f"{v:,.0f}"),
    ("Latency, median", "latency_ms_p50", True, lambda v: f"{v:,.1f} ms"),
)


def _sizes(report: Record) -> str:
    """Bars of teacher and smallest student for each size that both have, and each speed that `speed_pair` has."""
    compression = report["compression"]
    if compression is None:
        return ""
    keys = ["teacher", compression["model"]]
    fast, slow = speed_pair(report[compression["model"]], report["teacher"]) or ({}, {})
    cards = []
    for title, field, is_speed, show in _SIZES:
        records = [slow, fast] if is_speed else [report[key] for key in keys]
        values = [number(record.get(field)) for record in records]
        pairs = [(key, value) for key, value in zip(keys, values, strict=True) if value is not None and value > 0]
        if len(pairs) == len(keys):
            bars = [(key, labels(report)[key], value) for key, value in pairs]
            cards.append(f"<div><h3>{title}</h3>{_bars(bars, show)}</div>")
    if fast:
        caption = f"Speed and memory measured on {fast.get('device')}, {fast.get('dtype')}."
    else:
        measured = all(report[key].get("speed") for key in keys)
        caption = "The speeds were not measured alike." if measured else "Speed was not measured."
    return section("What it costs to use", caption, f'<div class="cards">{"".join(cards)}</div>')


def _between(report: Record) -> str:
    """The curve of size against nearness, where models of sizes between were grown."""
    picture = sizes_figure(report.get("sizes") or [])
    if not picture:
        return ""
    caption = "KL from the teacher on held-out text, nats a token, of the healed student and with blocks put back."
    return section("Every size between", caption, f'<div class="wide">{picture}</div>')


def _bars(rows: list[tuple[str, str, float]], show: Callable[[float], str]) -> str:
    """A bar for each (model key, name, value)."""
    longest = max(value for *_, value in rows)
    return "".join(
        f'<div class="bar {key}"><span>{escape(name)}</span>'
        f'<i style="--share:{value / longest:.4f}"></i><b>{show(value)}</b></div>'
        for key, name, value in rows
    )


def _samples(report: Record) -> str:
    rows = sample_rows(report)
    if not rows:
        return ""
    cards = []
    for prompt, texts in rows:
        columns = "".join(
            f'<div class="{key}"><h4>{chip(key)}{label}</h4><p>{escape(texts[key].strip())}</p></div>'
            for key, label in labels(report).items()
            if key in texts
        )
        cards.append(f'<article><p class="prompt">{escape(prompt)}</p><div class="columns">{columns}</div></article>')
    return section("How it writes", "The same prompts, continued by each model.", "".join(cards))


def _layers(report: Record) -> str:
    picture = layers_figure(report["prune"]) if report["prune"] else ""
    if not picture:
        return ""
    kept, dropped = map(len, layers_of(report["prune"]))
    caption = f"{kept} of {kept + dropped} transformer layers stay, in their order; the dashed ones were dropped."
    return section("Which layers stay", caption, f'<div class="wide">{picture}</div>')


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
    return section("Which cut heals best", caption, f'<div class="wide">{picture}</div>')


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
    return section("How much each layer matters", caption, "".join(pictures))


def _manifest(report: Record, run: RunFiles) -> str:
    blocks = "".join(
        f"<details><summary>{escape(title)}</summary><pre>{escape(body)}</pre></details>"
        for title, body, _ in manifest_blocks(run)
    )
    return section(
        "How it was made", "Recipe, versions, hardware, commit and hashes of every step.", left_out(report) + blocks
    )
