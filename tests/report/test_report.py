"""report.json: the contract's fields, retention from the items, and runs that lack something."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compress.base.errors import InputError
from compress.report import write_report

Task = tuple[Any, ...]
CHOICE: dict[str, Task] = {"choice": ("acc", 0.25, 0, 300, 0.8, 0.3, 0.7)}


def report_of(run: Path) -> dict[str, Any]:
    assert write_report(run) == run / "report.html"
    report: dict[str, Any] = json.loads((run / "report.json").read_text())
    return report


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def items_of(run: Path, stem: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "eval" / f"{stem}.items.jsonl").read_text().splitlines()]


def write_items(run: Path, stem: str, items: list[dict[str, Any]]) -> None:
    (run / "eval" / f"{stem}.items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))


def test_contract_fields(fake_run: Callable[..., Path]) -> None:
    report = report_of(fake_run())
    for key, stem in (("teacher", "teacher"), ("student_init", "student-init"), ("student", "student")):
        assert report[key]["model"].endswith(stem) or key == "teacher"
    assert set(report["retention"]) == {"demo_choice", "demo_completion"}
    assert {"raw", "chance_corrected", "ci95"} <= set(report["retention"]["demo_choice"])
    assert report["compression"]["params"] == pytest.approx(749_242_368 / 1_235_814_400)
    assert report["compression"]["bytes"] == pytest.approx(1_498_492_984 / 2_471_645_608)
    assert report["compression"]["speedup_prefill"] == pytest.approx(72060 / 41250)
    assert report["compression"]["speedup_decode"] == pytest.approx(131.4 / 71.2)
    assert report["train"]["tokens"] == 2_200_000_000
    assert report["left_out"] == []


def test_retention_is_the_ratio_of_means_over_the_items(fake_run: Callable[..., Path]) -> None:
    run = fake_run()
    report = report_of(run)
    for name, metric, chance in (("demo_choice", "acc", 0.25), ("demo_completion", "completion", 0.0)):
        means = [
            np.mean([item["metrics"][metric] for item in items_of(run, stem) if item["task"] == name])
            for stem in ("teacher", "student-init", "student")
        ]
        for key, mean in (("retention_student_init", means[1]), ("retention", means[2])):
            entry = report[key][name]
            assert entry["raw"] == pytest.approx(mean / means[0])
            assert entry["chance_corrected"] == pytest.approx((mean - chance) / (means[0] - chance))
            assert entry["difference"] == pytest.approx(mean - means[0])
            for value, interval in (
                ("raw", "raw_ci95"),
                ("chance_corrected", "ci95"),
                ("difference", "difference_ci95"),
            ):
                assert entry[interval][0] <= entry[value] <= entry[interval][1]
    kept = [report["retention"][name]["chance_corrected"] for name in ("demo_choice", "demo_completion")]
    assert min(kept) <= report["overall"]["student"]["chance_corrected"] <= max(kept)


def test_items_are_matched_by_identity_not_by_order(fake_run: Callable[..., Path]) -> None:
    run = fake_run(CHOICE)
    before = report_of(run)["retention"]
    write_items(run, "student", items_of(run, "student")[::-1])
    assert report_of(run)["retention"] == before


def test_text_may_hold_any_character(fake_run: Callable[..., Path]) -> None:
    run = fake_run(CHOICE)
    before = report_of(run)["retention"]
    for stem in ("teacher", "student"):
        items = [{**item, "question": "a\x85b\u2028c\u2029d"} for item in items_of(run, stem)]  # MMLU has U+0085
        lines = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items)
        (run / "eval" / f"{stem}.items.jsonl").write_text(lines, encoding="utf-8")
    report = report_of(run)
    assert report["retention"] == before
    assert report["flips"]["examples"][0]["question"] == "a\x85b\u2028c\u2029d"


def test_only_shared_items_are_compared(fake_run: Callable[..., Path]) -> None:
    run = fake_run(CHOICE)
    items = items_of(run, "student")[:200]
    items[0]["doc_sha256"] = "another document under the same number"
    write_items(run, "student", items)
    edit(run / "eval" / "student.json", lambda record: record["tasks"]["choice"].update(n=200))
    entry = report_of(run)["retention"]["choice"]
    shared = [item["metrics"]["acc"] for item in items[1:]]
    teacher = [item["metrics"]["acc"] for item in items_of(run, "teacher")[1:200]]
    assert entry["paired_items"] == 199
    assert entry["raw"] == pytest.approx(sum(shared) / sum(teacher))
    (run / "eval" / "student.items.jsonl").unlink()
    entry = report_of(run)["retention"]["choice"]
    assert (entry["raw"], entry["chance_corrected"], entry["difference"]) == (None, None, None)
    assert entry["note"] == "not comparable: 300 and 200 items"


def test_groups_pool_their_members_and_count_once(fake_run: Callable[..., Path]) -> None:
    run = fake_run({"part_a": ("acc", 0.25, 0, 300, 0.8, 0.3, 0.7), "part_b": ("acc", 0.2, 0, 100, 0.6, 0.3, 0.3)})
    for stem in ("teacher", "student-init", "student"):
        items = items_of(run, stem)
        write_items(run, stem, [{**item, "groups": ["both"]} for item in items])
        mean = float(np.mean([item["metrics"]["acc"] for item in items]))
        both: dict[str, Any] = {
            "acc": mean,
            "acc_stderr": 0.02,
            "acc_macro": 0.5,
            "chance": 0.2375,
            "n": 400,
            "num_fewshot": 0,
        }
        both |= {"primary": "acc", "members": ["part_a", "part_b"]}
        path = run / "eval" / f"{stem}.json"
        record = json.loads(path.read_text())
        record["tasks"]["both"] = both
        path.write_text(json.dumps(record))
    report = report_of(run)
    assert {name: entry["part_of"] for name, entry in report["scores"].items()} == {
        "part_a": "both", "part_b": "both", "both": None,
    }  # fmt: skip
    assert report["retention"]["both"]["paired_items"] == 400
    assert report["retention"]["both"]["raw"] == pytest.approx((300 * 0.7 + 100 * 0.3) / (300 * 0.8 + 100 * 0.6))
    assert report["overall"]["student"]["num_tasks"] == 1
    expected = (0.6 - 0.2375) / (0.75 - 0.2375)
    assert report["overall"]["student"]["chance_corrected"] == pytest.approx(expected)


def test_what_cannot_be_compared_says_so(fake_run: Callable[..., Path]) -> None:
    run = fake_run(
        {
            **CHOICE,
            "hard": ("acc", 0.25, 0, 300, 0.26, 0.2, 0.24),
            "ppl": ("word_perplexity", None, 0, 50, 0.5, 0.5, 0.5),
        }
    )
    edit(run / "eval" / "student.json", lambda record: record["tasks"]["choice"].update(num_fewshot=5))
    report = report_of(run)
    shots, chance, perplexity = (report["retention"][name] for name in ("choice", "hard", "ppl"))
    assert shots["raw"] is None
    assert "0 and 5 shots" in shots["note"]
    assert chance["raw"] is not None
    assert chance["chance_corrected"] is None
    assert "teacher at chance" in chance["note"]
    assert perplexity["raw"] is None
    assert "lower is better" in perplexity["note"]
    assert "| ppl | word_perplexity | 0 | 50 | – | 0.500 ± 0.071 |" in (run / "report.md").read_text()
    assert report["scores"]["hard"]["student"]["versus_chance"] == "same"


def test_unknown_chance_has_raw_retention_only(fake_run: Callable[..., Path]) -> None:
    report = report_of(fake_run({"story": ("acc", None, 0, 100, 0.8, 0.3, 0.7)}))
    entry = report["retention"]["story"]
    assert entry["raw"] == pytest.approx(0.7 / 0.8)
    assert (entry["chance_corrected"], entry["note"]) == (None, "chance is not known")
    assert report["overall"]["student"] is None


def test_without_items_retention_has_no_interval(fake_run: Callable[..., Path]) -> None:
    run = fake_run(CHOICE)
    (run / "eval" / "student.items.jsonl").unlink()
    report = report_of(run)
    entry = report["retention"]["choice"]
    assert entry["raw"] == pytest.approx(0.7 / 0.8)
    assert entry["chance_corrected"] == pytest.approx(0.45 / 0.55)
    assert (entry["raw_ci95"], entry["ci95"]) == (None, None)
    assert any("per-item" in line for line in report["left_out"])


def test_items_that_do_not_make_up_the_score_give_no_interval(fake_run: Callable[..., Path]) -> None:
    run = fake_run(CHOICE)
    edit(run / "eval" / "student.json", lambda record: record["tasks"]["choice"].update(acc=0.65))
    entry = report_of(run)["retention"]["choice"]
    assert entry["ci95"] is None
    assert "no mean over its items" in entry["note"]


@pytest.mark.parametrize(
    ("absent", "said"),
    [
        (["student/distill.json"], "distill.json"),
        (["train/metrics.jsonl"], "metrics.jsonl"),
        (["student-init/prune.json"], "prune.json"),
        (["recipe.yaml"], None),
        (["eval/student-init.json"], "cut"),
        (["eval/student.json", "student/distill.json", "train/metrics.jsonl"], "healed"),
        (["eval/teacher.json"], "teacher"),
        (["eval/teacher.json", "eval/student-init.json"], "teacher"),
    ],
)
def test_partial_runs_are_reported(fake_run: Callable[..., Path], absent: list[str], said: str | None) -> None:
    run = fake_run(CHOICE)
    for name in absent:
        (run / name).unlink()
    report = report_of(run)
    assert said is None or any(said in line for line in report["left_out"])
    assert report["name"] == ("run" if "recipe.yaml" in absent else "a run")
    if "eval/teacher.json" in absent:
        assert report["retention"] == {}
        assert report["compression"] is None
    elif "eval/student.json" in absent:
        assert report["compression"]["model"] == "student_init"
        assert "cut student has 749M" in report["headline"]


ALIKE = {"device": "cpu", "dtype": "bfloat16", "threads": 2, "batch": 1, "prompt_tokens": 512, "decode_tokens": 64}


@pytest.mark.parametrize("other", [None, *ALIKE])
def test_only_speeds_that_were_measured_alike_are_compared(fake_run: Callable[..., Path], other: str | None) -> None:
    run = fake_run(CHOICE)
    for stem in ("teacher", "student"):
        edit(run / "eval" / f"{stem}.json", lambda record: record["speed"].update(ALIKE))
        edit(
            run / "eval" / f"{stem}.json",
            lambda record: record["fidelity"] and record["fidelity"].update(acceptance_rate=0.5),
        )
    if other is not None:
        edit(run / "eval" / "teacher.json", lambda record: record["speed"].update({other: "another"}))
    report = report_of(run)
    page = (run / "report.html").read_text()
    assert (report["compression"]["speedup_decode"] is None) == (other is not None)
    assert ("student" not in report["draft"]) == (other is not None)
    for shown in ("decodes 1.8×", "Decode, tokens/s", "131 against 71 tokens/s"):
        assert (shown not in page) == (other is not None)


def test_the_teachers_speed_is_the_one_measured_in_turns_with_the_students(fake_run: Callable[..., Path]) -> None:
    run = fake_run(CHOICE)
    beside = {**ALIKE, "decode_tokens_per_s": 32.85, "latency_ms_p50": 30.4, "peak_gib": 4.62}
    edit(run / "eval" / "student.json", lambda record: record["speed"].update(ALIKE, teacher=beside))
    edit(run / "eval" / "student.json", lambda record: record["fidelity"].update(acceptance_rate=0.5))
    report = report_of(run)
    assert report["compression"]["speedup_decode"] == pytest.approx(131.4 / 32.85)
    assert report["compression"]["peak_memory"] == pytest.approx(2.31 / 4.62)
    assert report["draft"]["student"]["cost_ratio"] == pytest.approx(7.6 / 30.4)
    page = (run / "report.html").read_text()
    assert "131 against 33 tokens/s" in page
    assert "30.4 ms" in page


def test_nothing_to_report_is_refused_and_writes_nothing(fake_run: Callable[..., Path]) -> None:
    run = fake_run(CHOICE)
    shutil.rmtree(run / "eval")
    with pytest.raises(InputError, match=r"teacher\.json.*compress eval"):
        write_report(run)
    assert not list(run.glob("report.*"))
    with pytest.raises(InputError, match="does not exist"):
        write_report(run / "elsewhere")


def test_broken_files_are_named(fake_run: Callable[..., Path]) -> None:
    run = fake_run(CHOICE)
    log = run / "train" / "metrics.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines) + '{"step": 801, "los')
    write_report(run)
    log.write_text("".join([*lines[:3], "not json\n", *lines[3:]]))
    with pytest.raises(InputError, match=r"metrics\.jsonl, line 4"):
        write_report(run)
    log.write_text("".join(lines))
    (run / "eval" / "teacher.json").write_text("[]")
    with pytest.raises(InputError, match=r"teacher\.json"):
        write_report(run)
    (run / "eval" / "teacher.json").write_text('{"model": "x"}')
    with pytest.raises(InputError, match=r"teacher\.json.*tasks"):
        write_report(run)


WRONG: dict[str, tuple[str, Any, str]] = {
    "a task that is a number": ("eval/teacher.json", {"tasks": {"quiz": 5}}, "tasks.quiz"),
    "a task without its metric": ("eval/teacher.json", {"tasks": {"quiz": {"acc": 0.5}}}, "tasks.quiz.primary"),
    "shots that are text": (
        "eval/teacher.json", {"tasks": {"quiz": {"primary": "acc", "num_fewshot": "5"}}}, "tasks.quiz.num_fewshot"
    ),
    "a speed that is a list": ("eval/student.json", {"tasks": {}, "speed": [1]}, "speed"),
    "a sample without its text": ("eval/student.json", {"tasks": {}, "samples": [{"prompt": "a"}]}, "samples.0"),
    "layers that are text": ("student-init/prune.json", {"kept_layers": "all"}, "kept_layers"),
    "a plan of words": ("student/distill.json", {"memory_plan": {"weights": "much"}}, "memory_plan.weights"),
    "an item without a task": ("eval/teacher.items.jsonl", {"metrics": {}}, "line 1: task"),
    "a step that is null": ("train/metrics.jsonl", {"step": None, "loss": 1.0}, "line 1: step"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_record_of_another_shape_is_named_with_its_field(name: str, fake_run: Callable[..., Path]) -> None:
    run = fake_run(CHOICE)
    path, value, field = WRONG[name]
    (run / path).write_text(json.dumps(value) + "\n")
    with pytest.raises(InputError, match=re.escape(f"{run / path}") + rf".*{field}.* is not as a step writes it"):
        write_report(run)


def test_bytes_that_are_no_text_are_refused(fake_run: Callable[..., Path]) -> None:
    run = fake_run(CHOICE)
    (run / "train" / "metrics.jsonl").write_bytes(b"\x80\n")
    with pytest.raises(InputError, match=r"metrics\.jsonl, line 1 is not JSON: 'utf-8'"):
        write_report(run)


def test_same_files_same_bytes(fake_run: Callable[..., Path]) -> None:
    run = fake_run()
    names = ("report.json", "report.md", "report.html")
    write_report(run)
    first = [(run / name).read_bytes() for name in names]
    for name in names:
        (run / name).unlink()
    write_report(run)
    assert [(run / name).read_bytes() for name in names] == first
