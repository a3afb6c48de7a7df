"""`compress compare`: any number of evaluations in one table and plot, each against the first."""

import json
import re
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import CliRunner
from report_world import DEMO, make_run

from compress.base.errors import InputError
from compress.cli import cli
from compress.report.compare import compare_models


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two students of one teacher, as two runs."""
    folder = tmp_path_factory.mktemp("runs")
    better = {name: (*facts[:-1], facts[-1] + 0.03) for name, facts in DEMO.items()}
    return {"first": make_run(folder / "first", DEMO), "second": make_run(folder / "second", better)}


def eval_json(run: Path, stem: str = "student") -> str:
    return str(run / "eval" / f"{stem}.json")


def edited(source: str, target: Path, **task: Any) -> str:
    """A copy of an evaluation and its items, with fields of the task demo_choice replaced."""
    record = json.loads(Path(source).read_text())
    record["tasks"]["demo_choice"] |= task
    target.write_text(json.dumps(record))
    items = Path(source).with_name(f"{Path(source).stem}.items.jsonl").read_text()
    target.with_name(f"{target.stem}.items.jsonl").write_text(items)
    return str(target)


def accuracy(path: str) -> np.ndarray:
    lines = Path(path).with_name("student.items.jsonl").read_text().splitlines()
    return np.array([i["metrics"]["acc"] for i in map(json.loads, lines) if i["task"] == "demo_choice"])


def test_each_model_is_compared_with_the_first_over_the_same_items(runs: dict[str, Path], tmp_path: Path) -> None:
    paths = [eval_json(run) for run in runs.values()]
    report = compare_models([f"old={paths[0]}", f"new={paths[1]}"], tmp_path / "out")
    assert report["labels"] == {"m0": "old", "m1": "new"}
    entry = report["compared"]["m1"]["demo_choice"]
    old, new = (accuracy(path) for path in paths)
    assert entry["difference"] == pytest.approx((new - old).mean())
    assert entry["raw"] == pytest.approx(new.mean() / old.mean())
    assert (entry["lost"], entry["gained"]) == (int((new < old).sum()), int((new > old).sum()))
    assert entry["difference_ci95"][0] < entry["difference"] < entry["difference_ci95"][1]
    assert json.loads((tmp_path / "out" / "compare.json").read_text())["compared"]["m1"]["demo_choice"] == json.loads(
        json.dumps(entry)
    )
    flips = (tmp_path / "out" / "flips.jsonl").read_text().splitlines()
    assert len(flips) == report["flips"]["lost"] + report["flips"]["gained"]
    assert report["mismatches"] == []


def test_a_run_folder_is_its_models_and_a_teacher_of_two_runs_comes_once(runs: dict[str, Path]) -> None:
    report = compare_models([str(run) for run in runs.values()])
    assert list(report["labels"].values()) == [
        "first teacher", "first cut", "first healed", "second healed",
    ]  # fmt: skip
    assert set(report["compared"]) == {"m1", "m2", "m3"}
    named = compare_models([f"a={runs['first']}", eval_json(runs["second"])])
    assert list(named["labels"].values()) == ["a teacher", "a cut", "a healed", "second healed"]


def trained(run: Path, folder: Path, rows: str, inputs: dict[str, str], **config: Any) -> str:
    """A copy of a run whose student was trained so."""
    shutil.copytree(run, folder)
    path = folder / "student" / "distill.json"
    record = json.loads(path.read_text())
    record["manifest"] |= {"config": config, "inputs": inputs}
    path.write_text(json.dumps(record | {"trained_parameters": 10_000, "parameters": 2_000_000, "tokens": 4096}))
    with (folder / "train" / "metrics.jsonl").open("a") as log:
        log.write(json.dumps({"step": record["steps"], "loss": 1.0, "rows_sha256": rows}) + "\n")
    return str(folder)


def test_fine_tuning_and_distillation_on_the_same_rows_are_told_and_paired(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    lora = {"r": 4}
    same = {"student": "s", "teacher": "t", "data": "d"}
    sources = [
        trained(runs["first"], tmp_path / "sft", "ab", same, alpha=0.0, lora=lora, lr=1e-3),
        trained(runs["second"], tmp_path / "kd", "ab", same, alpha=0.75, lora=lora, lr=1e-3),
        trained(runs["second"], tmp_path / "other", "cd", {**same, "data": "e", "student": "x"}, alpha=1.0, lr=1e-4),
    ]
    for index, name in enumerate(("sft", "kd", "other")):  # so that none is taken for another's copy
        path = tmp_path / name / "eval" / "student.json"
        record = json.loads(path.read_text())
        record["heldout"]["loss_nats"] += index / 1000
        path.write_text(json.dumps(record))
    report = compare_models(sources, tmp_path / "out")
    names = {label: key for key, label in report["labels"].items()}
    told = {name: report["trainings"][names[f"{name} healed"]] for name in ("sft", "kd", "other")}
    assert told["sft"]["learns_from"] == "the text alone (supervised fine-tuning)"
    assert told["kd"]["learns_from"] == "0.75 the teacher, 0.25 the text"
    assert (told["kd"]["rows"], told["kd"]["others"], told["kd"]["changed"]) == ("the same", [], {"alpha": [0.0, 0.75]})
    assert told["other"]["rows"] == "of another text"
    assert told["other"]["others"] == ["student"]
    assert told["other"]["changed"] == {"alpha": [0.0, 1.0], "lr": [1e-3, 1e-4]}
    markdown = (tmp_path / "out" / "compare.md").read_text()
    row = "| kd healed | 0.75 the teacher, 0.25 the text | 10k of 2M | 4,096 | the same | alpha 0.75 (0.0) |"
    assert row in markdown

    entry = report["trained_pairs"][names["kd healed"]]["demo_choice"]
    sft, kd = (accuracy(eval_json(run)) for run in runs.values())
    assert entry["difference"] == pytest.approx((kd - sft).mean())
    assert (entry["lost"], entry["gained"]) == (int((kd < sft).sum()), int((kd > sft).sum()))
    assert "Trained models side by side" in markdown
    directly = compare_models([str(tmp_path / name / "eval" / "student.json") for name in ("sft", "kd")])
    assert directly["trained_pairs"] == {}
    assert directly["compared"]["m1"]["demo_choice"]["difference"] == entry["difference"]


def with_documents(run: Path, folder: Path, more: float, **inputs: str) -> str:
    """A copy of a run whose student has a loss and a KL of each of 40 documents of 10 tokens, `more` than another's."""
    shutil.copytree(run, folder)
    path = folder / "eval" / "student.json"
    record = json.loads(path.read_text())
    record["manifest"]["inputs"] |= {"text": "t", "teacher": "t", **inputs}
    rng = np.random.default_rng(list(folder.name.encode()))
    for part, name, level in (("heldout", "loss_nats", 3.0), ("fidelity", "kl_nats", 0.5)):
        values = level + more + rng.normal(0, 0.1, 40)
        by = {"tokens": [10] * 40, name: values.tolist()}
        record[part] |= {name: values.mean(), f"{name}_stderr": 0.02, "documents": 40, "by_document": by}
    path.write_text(json.dumps(record))
    return str(path)


def test_held_out_text_is_paired_by_document_and_the_winner_is_said(runs: dict[str, Path], tmp_path: Path) -> None:
    more = {"plain": 0.0, "worst": 0.2, "better": -0.05, "twin": -0.05001}
    paths = {name: with_documents(runs["first"], tmp_path / name, value) for name, value in more.items()}
    sources = [f"{name}={path}" for name, path in paths.items()]
    report = compare_models([*sources, eval_json(runs["first"], "teacher")], tmp_path / "out")
    kl, loss = report["documents"]
    assert (kl["measure"], kl["reference"], list(kl["models"])) == ("kl_nats", "m0", ["m0", "m1", "m2", "m3"])
    assert loss["models"]["m4"]["beside_first"] is None
    values = {
        n: np.array(json.loads(Path(p).read_text())["fidelity"]["by_document"]["kl_nats"]) for n, p in paths.items()
    }
    tests = {}
    for key, name in (("m1", "worst"), ("m2", "better"), ("m3", "twin")):
        difference = values[name] - values["plain"]
        entry = kl["models"][key]["beside_first"]
        assert entry["difference"] == pytest.approx(difference.mean())
        error = difference.std(ddof=1) / np.sqrt(40)
        assert entry["ci95"] == pytest.approx(
            [difference.mean() - 1.96 * error, difference.mean() + 1.96 * error], rel=1e-3
        )
        tests[key] = entry["p"]
    steps = [(3 - rank) * p for rank, p in enumerate(sorted(tests.values()))]
    adjusted = sorted(kl["models"][key]["beside_first"]["p_holm"] for key in tests)
    assert adjusted == np.maximum.accumulate(np.minimum(steps, 1.0)).tolist()
    best, next_best = sorted(("better", "twin"), key=lambda name: values[name].mean())
    assert f"{best} has the least KL from the teacher, {values[best].mean():.4f} nats a token" in report["headline"]
    lead = values[next_best].mean() - values[best].mean()
    assert f"Its lead on {next_best}, {lead:.4f}, may be noise" in report["headline"]
    shown = f"{values['worst'].mean() - values['plain'].mean():+.4f}"
    for kind in ("md", "html"):
        page = (tmp_path / "out" / f"compare.{kind}").read_text()
        assert shown in page
        assert "More than the plain" in page
        assert "may be noise" in page
    assert list(report["curves"]["Hard loss: next-token cross-entropy"]) == ["m0", "m1", "m2", "m3"]
    assert page.count('class="curve n2 bold"') == 1
    assert "curve n5" not in page

    alone = compare_models([*sources[:2], f"far={with_documents(runs['first'], tmp_path / 'far', 0.0, teacher='u')}"])
    assert [measure["measure"] for measure in alone["documents"]] == ["kl_nats", "loss_nats"]
    assert [list(measure["models"]) for measure in alone["documents"]] == [["m0", "m1"], ["m0", "m1", "m2"]]
    assert "is more than noise" in alone["headline"]


def test_other_text_alone_is_enough_in_common_and_must_be_the_same(runs: dict[str, Path], tmp_path: Path) -> None:
    def written(name: str, loss: float, content: str) -> str:
        record = json.loads(Path(eval_json(runs["first"])).read_text()) | {"tasks": {}, "heldout": None}
        record["other_text"] = {"source": f"{name}.txt", "heldout": {"loss_nats": loss}, "fidelity": None}
        record["manifest"]["inputs"]["other_text"] = {"files": content}
        (tmp_path / f"{name}.json").write_text(json.dumps(record))
        return str(tmp_path / f"{name}.json")

    first, second, third = written("a", 3.0, "x"), written("b", 3.1, "x"), written("c", 3.2, "y")
    report = compare_models([first, second], tmp_path / "out")
    assert report["mismatches"] == []
    markdown = (tmp_path / "out" / "compare.md").read_text()
    assert "| a, other text | 3.000 |" in markdown
    assert "| b, other text | 3.100 |" in markdown
    said = ["The other text of the c is another: their losses cannot be compared."]
    assert compare_models([first, third])["mismatches"] == said


@pytest.mark.parametrize("count", [1, 2, 9])
def test_pages_hold_every_model_and_ask_for_nothing(runs: dict[str, Path], tmp_path: Path, count: int) -> None:
    sources = []
    for index in range(count):
        path = edited(eval_json(runs["first"]), tmp_path / f"m{index}.json", acc_stderr=0.01 + index / 1000)
        sources.append(f"<b>{index}</b>={path}")
    compare_models(sources, tmp_path / "out")
    page = (tmp_path / "out" / "compare.html").read_text()
    assert not re.search(r"<script|<b>\d|https?:|src=|@import", page)
    (picture,) = [p for p in re.findall(r"<svg.*?</svg>", page, flags=re.S) if 'role="img"' in p]
    ElementTree.fromstring(picture)
    assert len(re.findall(r'class="mark m\d', picture)) == 2 * count
    markdown = (tmp_path / "out" / "compare.md").read_text()
    for index in range(count):
        assert f"&lt;b&gt;{index}&lt;/b&gt;" in page
        assert f"\\<b\\>{index}\\</b\\>" in markdown.lower()


@pytest.mark.parametrize(
    ("task", "said", "note"),
    [
        ({"num_fewshot": 5}, "demo_choice: the new was scored on 5 shots where the old has 0.", "0 and 5 shots"),
        ({"data_sha256": "b" * 64}, "demo_choice: the new was scored on other items than the old.", "other items"),
        ({"n": 200}, "demo_choice: the new was scored on 200 items where the old has 400.", None),
    ],
)
def test_what_was_not_measured_alike_is_flagged_and_not_compared(
    runs: dict[str, Path], tmp_path: Path, task: dict[str, Any], said: str, note: str | None
) -> None:
    old = edited(eval_json(runs["first"]), tmp_path / "old.json", data_sha256="a" * 64)
    new = edited(eval_json(runs["second"]), tmp_path / "new.json", **{"data_sha256": "a" * 64, **task})
    report = compare_models([old, new], tmp_path / "out")
    assert report["mismatches"] == [said]
    assert said in (tmp_path / "out" / "compare.md").read_text().replace("\\", "")
    assert said in (tmp_path / "out" / "compare.html").read_text()
    entry = report["compared"]["m1"]["demo_choice"]
    if note is not None:
        assert (entry["raw"], entry["p_value"], entry["difference"]) == (None, None, None)
        assert note in entry["note"]
    assert report["compared"]["m1"]["demo_completion"]["p_value"] is not None


def test_another_held_out_text_is_flagged(runs: dict[str, Path], tmp_path: Path) -> None:
    path = Path(edited(eval_json(runs["second"]), tmp_path / "new.json"))
    for source, text in ((Path(eval_json(runs["first"])), "one"), (path, "two")):
        record = json.loads(source.read_text())
        record["manifest"]["inputs"]["text"] = text
        (tmp_path / f"{text}.json").write_text(json.dumps(record))
    report = compare_models([str(tmp_path / "one.json"), str(tmp_path / "two.json")], tmp_path / "out")
    assert report["mismatches"] == ["The held-out text of the two is another: their losses cannot be compared."]
    assert report["left_out"] == [f"{name}: no per-item scores, so no paired intervals." for name in ("one", "two")]
    assert all(report["left_out"][1] in (tmp_path / "out" / f"compare.{kind}").read_text() for kind in ("md", "html"))


def test_what_cannot_be_compared_is_refused(runs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.json does not exist"):
        compare_models([eval_json(runs["first"]), "nowhere.json"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="has no evaluation"):
        compare_models([str(tmp_path / "empty")])
    (tmp_path / "not.json").write_text("[1]")
    with pytest.raises(InputError, match=r"not\.json"):
        compare_models([str(tmp_path / "not.json")])
    other = json.loads(Path(eval_json(runs["first"])).read_text())
    (tmp_path / "other.json").write_text(json.dumps({**other, "tasks": {}, "heldout": None}))
    with pytest.raises(InputError, match=r"nothing in common.*--tasks"):
        compare_models([eval_json(runs["first"]), str(tmp_path / "other.json")])


def test_a_name_that_comes_twice_gets_its_path(runs: dict[str, Path]) -> None:
    paths = [eval_json(run) for run in runs.values()]
    labels = compare_models([f"x={path}" for path in paths])["labels"]
    assert list(labels.values()) == ["x", f"x ({paths[1]})"]


def test_the_command_prints_a_table_or_json(runs: dict[str, Path], tmp_path: Path) -> None:
    sources = [f"old={eval_json(runs['first'])}", f"new={eval_json(runs['second'])}"]
    done = CliRunner().invoke(cli, ["compare", *sources, "--out", str(tmp_path / "out"), "--json"])
    assert done.exit_code == 0
    assert json.loads(done.stdout)["labels"] == {"m0": "old", "m1": "new"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "compare.json", "compare.md", "compare.html", "flips.jsonl",
    }  # fmt: skip
