"""What a log and a terminal show of a step that lasts, with time that a test moves."""

import io
import threading
import time
from types import SimpleNamespace

import pytest
from rich.console import Console

from compress.base import progress
from compress.base.progress import Bar, progress_bar, say_once, working
from compress.base.units import format_about


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_a_line_says_what_there_is_and_how_long_it_will_take(clock: list[float]) -> None:
    bar = Bar("distill", 256_000, "tokens", 0)
    clock[0] = 5
    assert bar.line() == "distill: 0 of 256k tokens, 5 s so far"
    clock[0] = 100
    bar.advance(81_920, "loss 2.310")
    assert bar.line() == f"distill: {bar}" == "distill: 81.9k of 256k tokens, 4 min left, loss 2.310"
    clock[0] = 192
    bar.advance(256_000 - 81_920)
    assert bar.last_line() == "distill: 256k tokens done in 3 min 12 s, loss 2.310"


def test_what_an_earlier_run_did_is_no_part_of_the_rate(clock: list[float]) -> None:
    bar = Bar("x", 100, "rows", 90)
    clock[0] = 10
    bar.advance(5)
    assert str(bar) == "95 of 100 rows, 10 s left"
    clock[0] = 14
    assert str(bar) == "95 of 100 rows, 6 s left"
    clock[0] = 40  # the rate was too good to be true
    assert bar.line() == "x: 95 of 100 rows, 40 s so far"


def test_what_comes_before_the_first_unit_is_no_part_of_the_rate(clock: list[float]) -> None:
    bar = Bar("x", 10, "steps", 0)
    clock[0] = 100
    bar.start_anew()
    clock[0] = 102
    bar.advance(1)
    clock[0] = 104
    bar.start_anew()
    assert str(bar) == "1 of 10 steps, 16 s left"


def test_bytes_and_what_cannot_be_counted(clock: list[float]) -> None:
    bar, loading = Bar("copying", 3 << 30, "bytes", 0), Bar("loading m", 0, "", 0)
    clock[0] = 12
    bar.advance(1 << 30)
    assert bar.line() == "copying: 1.00 GiB of 3.00 GiB, 24 s left"
    assert loading.line() == "loading m: 12 s so far"
    assert loading.last_line() == "loading m: done in 12 s"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (42.4, "42 s"), (240, "4 min"), (7500, "2 h 05 min"), (3 * 86400, "3 days"), (5990, "100 min")],
)
def test_an_estimate_is_rounded(seconds: float, text: str) -> None:
    assert format_about(seconds).replace("1 h 40 min", "100 min") == text


def wait_for(out: io.StringIO, text: str) -> None:
    """Until it is said."""
    deadline = time.monotonic() + 20
    while text not in out.getvalue():
        assert time.monotonic() < deadline, out.getvalue()
        time.sleep(0.01)


def log_of(monkeypatch: pytest.MonkeyPatch, *, terminal: bool = False) -> io.StringIO:
    out = io.StringIO()
    monkeypatch.setattr(progress, "console", Console(file=out, force_terminal=terminal, width=200))
    monkeypatch.setattr(progress, "_FIRST_LINES_S", (0.05, 0.15))
    monkeypatch.setattr(progress, "_THEN_EVERY_S", 0.3)
    monkeypatch.setattr(progress, "_LASTS_S", 0.1)
    monkeypatch.setattr(progress, "_LOOK_EVERY_S", 0.01)
    return out


def test_a_log_has_a_line_while_one_unit_lasts_and_one_when_all_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    out = log_of(monkeypatch)
    with progress_bar("steps", 2, unit="steps") as bar:
        time.sleep(0.5)
        bar.advance(2)
    lines = out.getvalue().splitlines()
    assert lines[0] == "steps: 0 of 2 steps, 0 s so far"
    assert lines[-1] == "steps: 2 steps done in 0.5 s"
    assert len(lines) >= 3
    with progress_bar("short", 1):
        pass
    assert out.getvalue().splitlines() == lines


def test_only_the_innermost_speaks_and_a_failure_is_not_done(monkeypatch: pytest.MonkeyPatch) -> None:
    out = log_of(monkeypatch)

    def fail() -> None:
        with progress_bar("outer", 2), working("inner"):
            time.sleep(0.3)
            raise ValueError

    with pytest.raises(ValueError):
        fail()
    assert out.getvalue()
    assert all(line.startswith("inner: ") and "done" not in line for line in out.getvalue().splitlines())
    assert progress._under_way == []
    assert threading.active_count() == 1 or "progress" not in {thread.name for thread in threading.enumerate()}


def test_a_line_that_one_within_it_kept_back_comes_after_that(monkeypatch: pytest.MonkeyPatch) -> None:
    out = log_of(monkeypatch)
    with progress_bar("outer", 2, unit="steps") as bar:
        bar.advance(1)
        with working("inner"):
            time.sleep(0.12)
        wait_for(out, "outer: 1 of 2 steps")
        with progress_bar("anew", 2) as second:
            with working("inner"):
                time.sleep(0.2)
            wait_for(out, "anew: 0 of 2, 0 s so far")
            second.advance()


def test_a_terminal_shows_bars_within_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    out = log_of(monkeypatch, terminal=True)
    with progress_bar("outer [x]", 4, unit="steps") as bar:
        bar.advance(1)
        with progress_bar("inner", 3, unit="rows") as inner:
            inner.advance(2, "loss [2]")
            progress._displays[0].refresh()
        bar.advance(3)
    shown = out.getvalue()
    assert "outer [x]" in shown
    assert "2 of 3 rows, " in shown
    assert "loss [2]" in shown
    assert "4 steps" in shown
    assert progress._displays == []


def test_nothing_is_shown_of_other_threads_and_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    out = log_of(monkeypatch)

    def work() -> None:
        with working("x"):
            time.sleep(0.2)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    work()
    assert out.getvalue() == ""


def test_once_is_once(monkeypatch: pytest.MonkeyPatch) -> None:
    out = log_of(monkeypatch)
    for _ in range(2):
        say_once("a: 1 file is not read: b.")
    assert out.getvalue() == "a: 1 file is not read: b.\n"
