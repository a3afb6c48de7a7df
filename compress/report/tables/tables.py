"""The report's tables, made once; html.py and markdown.py only lay them out."""

from typing import Any

from compress.report.cells import NONE, percent, plus_minus
from compress.report.judge.prompting import common_prompting
from compress.report.judge.scores import metric_names
from compress.report.run_files import Record, number
from compress.report.tables.branches import branches
from compress.report.tables.documents import documents
from compress.report.tables.drafts import drafted
from compress.report.tables.exports import exports
from compress.report.tables.habits import habits
from compress.report.tables.identity import identity
from compress.report.tables.making import importance, ranking, selection, stages, training
from compress.report.tables.measures import classes, nearness, speed, text
from compress.report.tables.recovery import recovery
from compress.report.tables.retention import retention
from compress.report.tables.sizes import sizes
from compress.report.tables.table import Table, labels, main_tasks
from compress.report.tables.target import target
from compress.report.tables.trainings import trained_pairs, trainings
from compress.report.tables.worth import worth

_LONGEST = 160


def all_tables(report: Record) -> list[Table]:
    """The tables of a report, in reading order; a table without rows is left out."""
    judged = (target(report), documents(report), verdicts(report))
    made = (trainings(report), scores(report), retention(report), trained_pairs(report))
    rest = (
        trained_pairs(report),
        flips(report),
        nearness(report),
        drafted(report),
        classes(report),
        habits(report),
        identity(report),
        text(report),
        speed(report),
        sizes(report),
        exports(report),
    )
    making = (
        stages(report),
        branches(report),
        training(report),
        recovery(report),
        worth(report),
        selection(report),
        ranking(report),
        importance(report),
    )
    return [table for table in (*judged, *made, *rest, *making, every_metric(report)) if table.rows]


def verdicts(report: Record) -> Table:
    """What each score means, in words; the scores that must not be read as ability first."""
    ranks = {"alarm": 0, "caution": 1, "fine": 2}
    words = {"alarm": "misleads", "caution": "says little", "fine": "above chance"}
    ordered = sorted(report["verdicts"], key=lambda verdict: ranks[verdict["level"]])
    rows = [[v["task"], labels(report)[v["model"]], words[v["level"]], v["text"]] for v in ordered]
    note = (
        "Whether a score is above guessing, an answer given to everything, or as sure as it is right, and whether its "
        "difference is more than noise: paired tests over the same items, adjusted for the number of tasks (Holm)."
    )
    columns = ["Task", "Model", "Reading", "What it says"]
    return Table(title="What the scores mean", note=note, columns=columns, rows=rows, text_columns=3)


def scores(report: Record) -> Table:
    """Primary metric of each task, +- one standard error, with what cannot be told from guessing."""
    rows = []
    for name, entry in main_tasks(report).items():
        found = [key for key in labels(report) if key in entry]
        sample = [entry[key] for key in found]
        shots, items = (_one_or_all([s[field] for s in sample]) for field in ("num_fewshot", "n"))
        cells = [plus_minus(entry.get(key), entry["metric"]) for key in labels(report)]
        at_chance = _at_chance(entry, found, report)
        rows.append([name, entry["metric"] or NONE, shots, items, percent(entry["chance"]), *cells, at_chance])
        macros = {key: entry[key]["macro"] for key in found if "macro" in entry[key]}
        if macros:
            chance = percent(next(iter(macros.values()))["chance"])
            cells = [plus_minus(macros.get(key), entry["metric"]) for key in labels(report)]
            rows.append(["– mean over its tasks (macro)", "", "", "", chance, *cells, ""])
    names = [label.capitalize() for label in labels(report).values()]
    columns = ["Task", "Metric", "Shots", "Items", "Chance", *names]
    if any(row[-1] for row in rows):
        columns.append("Not above chance")
    else:
        rows = [row[:-1] for row in rows]
    note = (
        "Percent ± one standard error; of a group, the mean over items (micro). A model is not above chance when its "
        "95% interval reaches down to guessing."
    )
    if how := common_prompting({key: report[key] for key in labels(report)}):
        note += f" {how[0].upper()}{how[1:]}."
    return Table(title="Scores", note=note, columns=columns, rows=rows, text_columns=2)


def _at_chance(entry: Record, keys: list[str], report: Record) -> str:
    said = {"same": "", "below": " (below)"}
    return ", ".join(labels(report)[k] + said[v] for k in keys if (v := entry[k]["versus_chance"]) in said)


def _one_or_all(values: list[Any]) -> str:
    texts = [NONE if value is None else f"{value:,}" for value in values]
    return " / ".join(texts if len(set(texts)) > 1 else texts[:1])


def flips(report: Record) -> Table:
    """Items whose score differs between the last model and the reference: of each task a few lost and a few gained."""
    shown = report["flips"]["examples"]
    rows = []
    for flip in shown:
        said = [_cut(flip[key]) for key in ("question", "gold", "first", "second")]
        rows.append([flip["task"], flip["change"], *said])
    names = [labels(report)[key].capitalize() for key in report["flips"]["models"]]
    columns = ["Task", "Change", "Question", "Right", *names]
    lost, gained = report["flips"]["lost"], report["flips"]["gained"]
    note = (
        f"Of {lost:,} items lost and {gained:,} gained, the clearest of each task; flips.jsonl beside this page has "
        "all, with their whole text."
    )
    return Table(
        title="Items whose score changed", note=note, columns=columns, rows=rows, text_columns=len(columns), folded=True
    )


def _cut(text: str | None) -> str:
    """The end of a long text, where a question stands."""
    if text is None:
        return NONE
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else "…" + line[1 - _LONGEST :]


def every_metric(report: Record) -> Table:
    """All metrics of all tasks and of the parts of groups."""
    tasks = [report[key]["tasks"] for key in labels(report)]
    names = dict.fromkeys(
        (name, metric) for scored in tasks for name in scored for metric in metric_names(scored[name])
    )
    rows = []
    for name, metric in names:
        found = [scored.get(name, {}) for scored in tasks]
        pairs = [(number(task.get(metric)), number(task.get(f"{metric}_stderr"))) for task in found]
        rows.append(
            [name, metric, *(plus_minus({"value": value, "stderr": stderr}, metric) for value, stderr in pairs)]
        )
    columns = ["Task", "Metric", *(label.capitalize() for label in labels(report).values())]
    return Table(
        title="Every metric",
        note="All metrics, parts of groups too; percent ± one standard error.",
        columns=columns,
        rows=rows,
        text_columns=2,
        folded=True,
    )
