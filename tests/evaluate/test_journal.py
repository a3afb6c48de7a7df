"""A measurement cut anywhere goes on where it was, measures nothing twice, and ends with the same numbers."""

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compress.base import signals
from compress.base.disk import owned, read_json
from compress.base.errors import InputError, UsageError
from compress.base.journal import Batch, Journal, open_journal
from compress.evaluate import EvalConfig, evaluate_model

TASKS = ["quiz", "quiz_sampled", "quiz_rolling"]
Measure = Callable[..., dict[str, Any]]


@pytest.fixture
def measure(world: dict[str, Path], teacher: Path) -> Measure:
    """Everything but the speed, in many small batches."""
    spans = world["root"] / "acme" / "spans" / "validation.jsonl"

    def run(out: Path, text: Path = spans, **options: Any) -> dict[str, Any]:
        fields = {"speed": False, "device": "cpu", "batch_tokens": 250, "heldout_seq_len": 50, "sample_tokens": 3}
        places = {"datasets_root": str(world["root"]), "task_folder": str(world["tasks"])}
        config = EvalConfig(**{**fields, **places, "tasks": TASKS, "heldout_sequences": 12, **options})
        return evaluate_model(world["model"], config, teacher=teacher, text=text, out=out)

    return run


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], list[int]]:
    """`cut(n)`: raise KeyboardInterrupt instead of measuring one more than n batches; the list holds their number."""
    real = Journal._measure

    def after(limit: int | None) -> list[int]:
        measured = [0]

        def counted(self: Journal, *arguments: Any) -> None:
            if measured[0] == limit:
                raise KeyboardInterrupt
            real(self, *arguments)
            measured[0] += 1

        monkeypatch.setattr(Journal, "_measure", counted)
        return measured

    return after


def numbers(out: Path) -> tuple[dict[str, Any], str]:
    """All that was measured, and every item; not when and how."""
    result = {key: value for key, value in read_json(out).items() if key not in ("seconds", "manifest")}
    return result, out.with_name(f"{out.stem}.items.jsonl").read_text()


def test_cut_twice_anywhere_it_measures_each_batch_once(
    measure: Measure,
    cut: Callable[[int | None], list[int]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A torn last line, one that is none, and the file of a process that is no longer there are dealt with."""
    counted = cut(None)
    measure(tmp_path / "whole.json")
    total = counted[0]
    seed = random.SystemRandom().randrange(2**32)
    rng = random.Random(seed)
    first, second = sorted(rng.sample(range(2, total), 2))
    sys.stdout.write(f"seed {seed}: {total} batches, cut after {first} and {second}\n")
    out, journal = tmp_path / "cut.json", tmp_path / "cut.json.journal"
    cut(first)
    with pytest.raises(KeyboardInterrupt):
        measure(out)
    lines = (journal / "0.jsonl").read_text().splitlines(keepends=True)
    assert len(lines) == first
    (journal / "5.jsonl").write_text("".join([*lines[: first // 2], "[1, 2]\n", "\0\0\n"]))
    (journal / "0.jsonl").write_text("".join(lines[first // 2 :]) + lines[0][:40])
    cut(second - first)
    with pytest.raises(KeyboardInterrupt):
        measure(out)
    assert not out.exists()
    assert "Continuing" in capsys.readouterr().err
    counted = cut(None)
    measure(out)
    assert counted[0] == total - second
    assert numbers(out) == numbers(tmp_path / "whole.json")
    assert not list(tmp_path.glob("*.journal"))


def test_other_settings_start_anew_and_are_named(
    measure: Measure,
    cut: Callable[[int | None], list[int]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "m.json"
    options = {"tasks": ["quiz"], "limit": 5}
    cut(4)
    with pytest.raises(KeyboardInterrupt):
        measure(out, **options, seed=1)
    counted = cut(None)
    measure(out, **options, seed=2)
    said = " ".join(capsys.readouterr().err.split())
    assert "was begun with another config.seed: starting anew" in said
    assert "Continuing" not in said
    cut(None)
    fresh = tmp_path / "fresh.json"
    measure(fresh, **options, seed=2)
    assert numbers(out) == numbers(fresh)
    assert counted[0] > 4


def test_two_texts_that_begin_alike_are_not_mixed(
    measure: Measure, cut: Callable[[int | None], list[int]], world: dict[str, Path], tmp_path: Path
) -> None:
    """Their first batches are the same rows; which tokens of them are frequent, all the rows of a text say."""
    lines = (world["root"] / "acme" / "spans" / "validation.jsonl").read_text().splitlines()
    other = tmp_path / "other.jsonl"
    other.write_text("\n".join([*lines[:12], *(json.dumps({"text": f"{i} zz " * 40}) for i in range(30))]))
    options: dict[str, Any] = {"tasks": [], "samples": 0, "responses": 0, "heldout_sequences": 30}
    cut(None)
    alone = measure(tmp_path / "alone.json", **options, text=other)
    counted = cut(None)
    whole = measure(tmp_path / "whole.json", **options, other_text=str(other))
    total, out = counted[0], tmp_path / "cut.json"
    assert whole["other_text"]["heldout"] == alone["heldout"]
    assert whole["other_text"]["fidelity"] == {k: v for k, v in alone["fidelity"].items() if k != "responses"}
    for before in (total // 3, total // 3):
        cut(before)
        with pytest.raises(KeyboardInterrupt):
            measure(out, **options, other_text=str(other))
    rows = [json.loads(line) for line in (tmp_path / "cut.json.journal" / "0.jsonl").read_text().splitlines()]
    assert {row["stage"] for row in rows} == {"Held-out text", "Other text"}
    counted = cut(None)
    assert measure(out, **options, other_text=str(other))["other_text"] == whole["other_text"]
    assert counted[0] == total - 2 * (total // 3)


def test_another_process_on_the_same_output_is_refused(measure: Measure, tmp_path: Path) -> None:
    with owned(tmp_path / "m.json.journal"), pytest.raises(UsageError, match=r"Another process.*m\.json\.journal"):
        measure(tmp_path / "m.json")


def test_what_measured_nothing_leaves_nothing(measure: Measure, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="exam"):
        measure(tmp_path / "m.json", tasks=["quiz_split"])
    assert not list(tmp_path.iterdir())


def test_results_come_back_as_they_were(tmp_path: Path) -> None:
    """Every float bit for bit, from the disk and from this process alike."""
    rng = random.Random(0)
    values = [[rng.uniform(-1, 1) * 10 ** rng.randint(-300, 300), float("-inf"), True, "é\n\ud800"] for _ in range(50)]
    batches = [Batch(i) for i in range(50)]
    header = {"config": {"seed": 1}}
    with open_journal(tmp_path / "m.json", header) as journal:
        assert journal.measure("Numbers", batches, lambda i: values[i]) == values
    with open_journal(tmp_path / "m.json", header) as journal:
        assert journal.measure("Numbers", batches, lambda i: pytest.fail("measured twice")) == values


def test_a_batch_is_known_by_header_stage_number_and_content(tmp_path: Path) -> None:
    def measured(header: int, stage: str, contents: list[int]) -> list[int]:
        asked: list[int] = []
        with open_journal(tmp_path / "m.json", {"config": {"seed": header}}) as journal:
            journal.measure(stage, [Batch(content) for content in contents], asked.append)
        return asked

    assert measured(1, "A", [7, 8]) == [0, 1]
    assert measured(1, "A", [7, 8]) == []
    assert measured(1, "B", [7, 8]) == [0, 1]
    assert measured(1, "A", [8, 8, 9]) == [0, 2]
    assert measured(2, "A", [7]) == [0]
    assert measured(1, "A", [7]) == [0]


def test_a_signal_that_something_swallowed_stops_at_the_next_batch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def compute(number: int) -> int:
        if number == 1:
            monkeypatch.setattr(signals, "_asked_at", 1.0)
        return number

    with pytest.raises(KeyboardInterrupt), open_journal(tmp_path / "m.json", {}) as journal:
        journal.measure("Numbers", [Batch(i) for i in range(4)], compute)
    lines = (tmp_path / "m.json.journal" / "0.jsonl").read_text().splitlines()
    assert [json.loads(line)["result"] for line in lines] == [0, 1]
