"""What a command writes is ours or free: it writes over nothing of the user's, and says so before it does anything."""

import json
import os
import shutil
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Outcome, warm
from earlier_runs import unpack
from fault_injection import FullDisk, Signal
from helpers import run_cli
from run_world import SMALL_STEPS, write_recipe

from compress.base.disk import sha256_file

EVAL = ("eval", "teacher", "--tasks", "tiny_choice", "--datasets-root", "hub", "--set", "eval.task_folder=tasks",
        "--set", "eval.speed=false", "--set", "eval.samples=0")  # fmt: skip
SMALL = ("--set", "data.seq_len=32", "--set", "data.heldout_sequences=4", "--set", "distill.batch_tokens=128")
DISTILL = ("distill", "--student", "teacher", "--teacher", "teacher", "--data", "text", *SMALL)
RUN = ("run", "recipe.yaml")
RANKED = ("--set", "prune.keep=null", "--set", "prune.layers=2", "--set", "prune.rank_after=2048")
COMPARE = ("compare", "finished/run/eval/teacher.json", "finished/run/eval/student.json")
REPORT = ("report", "finished/run")
OLD = ("run", "recipe.yaml", "--out", "run")
"""A run that is finished, in the folder `finished`."""


def state_of(folder: Path) -> dict[str, str]:
    """What stands at each path below a folder: its type, and a file's SHA-256 or a link's target."""
    found = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        content = os.readlink(path) if stat.S_ISLNK(mode) else sha256_file(path) if stat.S_ISREG(mode) else ""
        found[path.relative_to(folder).as_posix()] = f"{stat.S_IFMT(mode):o} {content}"
    return found


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("original")
    recipe = write_recipe(folder)
    recipe.write_text(recipe.read_text().replace(f"{folder}/", ""))  # so that the world can be copied
    unpack("finished", folder)
    return folder


@pytest.fixture
def world(original: Path, tmp_path: Path) -> Path:
    """A folder with a model, text, a benchmark, a recipe, and a finished run of another recipe."""
    return shutil.copytree(original, tmp_path / "world", symlinks=True)


def file(path: str, text: str = "years of work\n") -> Callable[[Path], None]:
    """A file of the user's."""

    def make(world: Path) -> None:
        (world / path).parent.mkdir(parents=True, exist_ok=True)
        (world / path).write_text(text)

    return make


def folder(path: str) -> Callable[[Path], None]:
    return file(f"{path}/thesis.txt")


def link(path: str, target: str) -> Callable[[Path], None]:
    return lambda world: (world / path).symlink_to(target)


def fifo(path: str) -> Callable[[Path], None]:
    return lambda world: os.mkfifo(world / path)


def bound(path: str) -> Callable[[Path], None]:
    """A socket, by a short name since sockets have one."""

    def make(world: Path) -> None:
        here = os.open(world, os.O_RDONLY)
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(f"/proc/self/fd/{here}/{path}")
        os.close(here)

    return make


def nothing(world: Path) -> None:
    return


def rows(path: str, **row: object) -> Callable[[Path], None]:
    """A file of JSON lines of the user's."""
    return file(path, f"{json.dumps(row)}\n" * 3)


Case = tuple[Callable[[Path], None], tuple[str, ...], str]
"""What the user has, the command, and the path that its refusal names."""

EVALUATIONS: dict[str, Case] = {
    "a model's config": (nothing, (*EVAL, "--out", "teacher/config.json"), "teacher/config.json"),
    "a model's weights": (nothing, (*EVAL, "--out", "teacher/model.safetensors"), "teacher/model.safetensors"),
    "a new file of a model": (nothing, (*EVAL, "--out", "teacher/new.json"), "teacher/new.json"),
    "a recipe": (nothing, (*EVAL, "--out", "recipe.yaml"), "recipe.yaml"),
    "a run's recipe": (nothing, (*EVAL, "--out", "finished/run/recipe.yaml"), "finished/run/recipe.yaml"),
    "a run's report": (nothing, (*EVAL, "--out", "finished/run/report.json"), "finished/run/report.json"),
    "a run's speeds": (nothing, (*EVAL, "--out", "finished/run/eval/speed.json"), "finished/run/eval/speed.json"),
    "text": (nothing, (*EVAL, "--out", "text/0.jsonl"), "text/0.jsonl"),
    "a JSON file": (file("r.json", '{"model": "mine"}'), (*EVAL, "--out", "r.json"), "r.json"),
    "a link to a model's file": (link("r.json", "teacher/config.json"), (*EVAL, "--out", "r.json"), "r.json"),
    "a link to nothing": (link("r.json", "absent.json"), (*EVAL, "--out", "r.json"), "r.json"),
    "a link to an evaluation": (
        link("r.json", "finished/run/eval/teacher.json"), (*EVAL, "--out", "r.json"), "r.json",
    ),
    "a link that leads to itself": (link("r.json", "r.json"), (*EVAL, "--out", "r.json"), "r.json"),
    "a pipe": (fifo("r.json"), (*EVAL, "--out", "r.json"), "r.json"),
    "a socket": (bound("r.json"), (*EVAL, "--out", "r.json"), "r.json"),
    "a device": (nothing, (*EVAL, "--out", "/dev/null"), "/dev/null"),
    "a folder": (folder("r.json"), (*EVAL, "--out", "r.json"), "r.json"),
    "this folder": (nothing, (*EVAL, "--out", "."), "."),
    "the folder above": (nothing, (*EVAL, "--out", ".."), ".."),
    "no name": (nothing, (*EVAL, "--out", ""), "."),
    "below a file": (file("notes.txt"), (*EVAL, "--out", "notes.txt/r.json"), "notes.txt"),
    "items": (rows("r.items.jsonl", task="shopping"), (*EVAL, "--out", "r.json"), "r.items.jsonl"),
    "a link for items": (link("r.items.jsonl", "text/0.jsonl"), (*EVAL, "--out", "r.json"), "r.items.jsonl"),
    "a journal": (folder("r.json.journal"), (*EVAL, "--out", "r.json"), "r.json.journal"),
    "a journal with rows": (rows("r.json.journal/0.jsonl", day=1), (*EVAL, "--out", "r.json"), "r.json.journal"),
    "a journal's header": (file("r.json.journal/header.json", "{}"), (*EVAL, "--out", "r.json"), "r.json.journal"),
    "a file for a journal": (file("r.json.journal"), (*EVAL, "--out", "r.json"), "r.json.journal"),
    "in the text": (nothing, (*EVAL, "--text", "text", "--out", "text/r.json"), "text/r.json"),
}  # fmt: skip
STUDENTS: dict[str, Case] = {
    "a folder": (folder("out"), ("prune", "teacher", "out"), "out"),
    "a file": (file("out"), ("prune", "teacher", "out"), "out"),
    "a link": (link("out", "teacher"), ("prune", "teacher", "out"), "out"),
    "the teacher": (nothing, ("prune", "teacher", "teacher"), "teacher"),
    "this folder": (nothing, ("prune", "teacher", "."), "."),
    "an export's folder": (folder("out"), ("export", "teacher", "out", "--format", "bf16"), "out"),
    "an export's model": (nothing, ("export", "teacher", "teacher", "--format", "bf16"), "teacher"),
    "a merge's folder": (folder("out"), ("merge", "teacher", "teacher", "out"), "out"),
    "one of a family": (folder("out/1__2"), ("prune", "teacher", "out", "--keep", "1::2", "--keep", "0,1"), "out/1__2"),
    "a ranking": (
        folder("out.ranking"),
        ("prune", "teacher", "out", "--layers", "2", "--rank-after", "2048", "--calibration", "text", *SMALL),
        "out.ranking",
    ),
}
COMPARISONS: dict[str, Case] = {
    **{
        name: (file(f"out/{name}"), (*COMPARE, "--out", "out"), f"out/{name}")
        for name in ("compare.json", "compare.md", "compare.html", "flips.jsonl")
    },
    "a page": (file("out/compare.html", "<title>mine</title>"), (*COMPARE, "--out", "out"), "out/compare.html"),
    "a report": (
        lambda world: (
            shutil.copytree(world / "finished/run", world / "out")
            and (world / "out/report.json").rename(world / "out/compare.json")
        ),
        (*COMPARE, "--out", "out"),
        "out/compare.json",
    ),
    "a file": (file("out"), (*COMPARE, "--out", "out"), "out"),
    "a link": (link("out", "text"), (*COMPARE, "--out", "out"), "out"),
    "a model": (nothing, (*COMPARE, "--out", "teacher"), "teacher"),
}
REPORTS: dict[str, Case] = {
    name: (file(f"finished/run/{name}"), REPORT, f"finished/run/{name}")
    for name in ("report.json", "report.md", "report.html", "flips.jsonl")
}
OUT = ("--out", "out")
RUNS: dict[str, Case] = {
    "its own folder": (nothing, (*RUN, "--out", "."), "recipe.yaml"),
    "a file": (file("out"), (*RUN, *OUT), "out"),
    "a link": (link("out", "finished/run"), (*RUN, *OUT), "out"),
    "a link to nothing": (link("out", "absent"), (*RUN, *OUT), "out"),
    "a pipe": (fifo("out"), (*RUN, *OUT), "out"),
    "a device": (nothing, (*RUN, "--out", "/dev/null"), "/dev/null"),
    "a model": (nothing, (*RUN, "--out", "teacher"), "teacher"),
    "in the text": (nothing, (*RUN, "--out", "text/run"), "text/run"),
    "another recipe's": (nothing, (*RUN, "--out", "finished/run", "--set", "name=other"), "finished/run"),
    **{
        name: (folder(f"out/{name}"), (*RUN, *OUT), f"out/{name}")
        for name in ("data", "data.partial", "student-init", "student", "train", "eval/teacher.json.journal")
    },
    **{
        name: (file(f"out/{name}"), (*RUN, *OUT), f"out/{name}")
        for name in (
            "recipe.yaml", "eval", "eval/teacher.json", "eval/student.items.jsonl", "eval/speed.json", "report.json",
            "report.md", "report.html", "flips.jsonl", "redo.json", "data", "old", "train",
        )
    },
    "a student with a record": (file("out/student/distill.json", "{}"), (*RUN, *OUT), "out/student"),
    "text under way": (file("out/data.partial/state.json", '{"mine": 1}'), (*RUN, *OUT), "out/data.partial"),
    "an index": (file("out/data/index.json", '{"mine": 1}'), (*RUN, *OUT), "out/data"),
    "a log": (rows("out/train/metrics.jsonl", day=1), (*RUN, *OUT), "out/train"),
    "notes as a log": (file("out/train/metrics.jsonl"), (*RUN, *OUT), "out/train"),
    "checkpoints": (folder("out/train/checkpoints/step-4.partial"), (*RUN, *OUT), "out/train"),
    "a file for checkpoints": (file("out/train/checkpoints"), (*RUN, *OUT), "out/train"),
    "a ranking": (folder("out/ranking"), (*RUN, *RANKED, *OUT), "out/ranking"),
    "a result to be done anew": (folder("out/student"), (*RUN, *OUT, "--redo", "distill"), "out/student"),
    "a world": (folder("out/world"), ("demo", *OUT), "out/world"),
    "a demo's data": (folder("out/data"), ("demo", *OUT), "out/data"),
}  # fmt: skip
TRAININGS: dict[str, Case] = {
    **{name: (folder(f"out/{name}"), (*DISTILL, *OUT), f"out/{name}") for name in ("data", "student", "train")},
    "a file": (file("out"), (*DISTILL, *OUT), "out"),
    "a link": (link("out", "text"), (*DISTILL, *OUT), "out"),
    "a model": (nothing, (*DISTILL, "--out", "teacher"), "teacher"),
    "in the text": (nothing, (*DISTILL, "--out", "text/run"), "text/run"),
}
INIT = ("init", "teacher", "--data", "text")
RECIPES: dict[str, Case] = {
    "a recipe": (nothing, (*INIT, "--out", "recipe.yaml"), "recipe.yaml"),
    "a recipe by default": (nothing, INIT, "recipe.yaml"),
    "a run's recipe": (nothing, (*INIT, "--out", "finished/run/recipe.yaml"), "finished/run/recipe.yaml"),
    "a link": (link("r.yaml", "recipe.yaml"), (*INIT, "--out", "r.yaml"), "r.yaml"),
    "a folder": (folder("r.yaml"), (*INIT, "--out", "r.yaml"), "r.yaml"),
    "a model": (nothing, (*INIT, "--out", "teacher/r.yaml"), "teacher/r.yaml"),
}
CASES = {
    f"{command}: {name}": case
    for command, cases in (
        ("eval", EVALUATIONS), ("prune", STUDENTS), ("compare", COMPARISONS), ("report", REPORTS), ("run", RUNS),
        ("distill", TRAININGS), ("init", RECIPES),
    )
    for name, case in cases.items()
}  # fmt: skip


def refused(world: Path, command: tuple[str, ...], path: str) -> Outcome:
    before = state_of(world)
    done = run_cli(*command, cwd=world)
    assert done.returncode == 2, done.stderr
    assert path in done.said
    assert "fault of the tool" not in done.said
    assert "Traceback" not in done.said
    assert state_of(world) == before
    return done


@pytest.mark.parametrize("case", CASES)
def test_nothing_of_the_users_is_written_over(world: Path, case: str) -> None:
    make, command, path = CASES[case]
    make(world)
    refused(world, command, path)
    if command[0] in ("run", "prune"):
        refused(world, (*command, "--dry-run"), path)


def test_what_is_wrong_is_said_of_all_paths_at_once(world: Path) -> None:
    for make in (folder("out/data"), file("out/report.md"), folder("out/student"), rows("r.items.jsonl", task="mine")):
        make(world)
    done = refused(world, (*RUN, *OUT), "out/data")
    assert all(path in done.said for path in ("out/report.md", "out/student"))
    folder("r.json.journal")(world)
    done = refused(world, (*EVAL, "--out", "r.json"), "r.items.jsonl")
    assert "r.json.journal" in done.said
    folder("out/r.json")(world)
    done = refused(world, (*RUN, "--out", "text/0.jsonl"), "text/0.jsonl")
    assert done.said.count("The output") == 1, "what lies in a folder that is none is not said again"


def test_an_output_in_the_way_does_not_hide_what_else_is_wrong(world: Path) -> None:
    folder("out")(world)
    done = refused(world, ("prune", "teacher", "out", "--keep", "9"), "out")
    assert "--keep 9" in done.said
    done = refused(world, (*RUN, "--out", "finished/run", "--set", "name=other"), "finished/run")
    assert "is the folder of a run of the recipe 'tiny', and this one is 'other'" in done.said


def test_a_refused_run_leaves_no_folders(world: Path) -> None:
    refused(world, (*RUN, "--out", "a/b/c", "--set", "prune.keep=9"), "--set prune.keep=9")


def test_names_beside_an_output_that_are_not_written_stay_the_users(world: Path) -> None:
    """Where a folder is made, and a file, have names that nobody else gives."""
    for make in (folder("out.partial"), file("r.json.partial"), file("r.json.probe"), folder("out2/.compress-partial")):
        make(world)
    before = state_of(world)
    assert run_cli("prune", "teacher", "out", cwd=world).returncode == 0
    assert run_cli(*EVAL, "--out", "r.json", cwd=world).returncode == 0
    new = {path: state for path, state in state_of(world).items() if path not in before}
    assert {path.partition("/")[0] for path in new} == {"out", "r.json", "r.items.jsonl"}
    assert {path: state for path, state in state_of(world).items() if path in before} == before


def test_a_link_where_something_is_written_first_is_not_followed(world: Path) -> None:
    (world / "r.json.compress-partial").symlink_to("recipe.yaml")
    (world / "out.compress-partial").symlink_to("text")
    before = state_of(world)
    assert run_cli(*EVAL, "--out", "r.json", cwd=world).returncode == 0
    assert run_cli("prune", "teacher", "out", cwd=world).returncode == 2
    after = state_of(world)
    assert all(after[path] == state for path, state in before.items() if path != "r.json.compress-partial")


TWICE = {
    "eval": (*EVAL, "--out", "r.json"),
    "eval of rows": (*EVAL, "--out", "r.jsonl"),
    "compare": (*COMPARE, "--out", "out"),
    "report": REPORT,
    "distill": (*DISTILL, *OUT),
    "run": (*RUN, *OUT),
    "run into a folder with other things": (*RUN, "--out", "mine"),
}


@pytest.mark.parametrize("name", TWICE)
def test_an_earlier_result_is_replaced_or_gone_on_with(world: Path, name: str) -> None:
    folder("mine")(world)
    before = state_of(world)
    for _ in range(2):
        done = run_cli(*TWICE[name], cwd=world)
        assert done.returncode == 0, done.stderr
    kept = {path: state for path, state in before.items() if not path.startswith("finished/run/report.")}
    assert kept.items() <= state_of(world).items()


def killed(world: Path, at: str, path: str, *command: str, after: bool = False) -> None:
    done = warm().run([*SMALL_STEPS, Signal(at=(at,), path=path, after=after)], *command, cwd=world)
    assert done.struck, done.stderr


def test_a_run_that_is_killed_in_each_write_goes_on(world: Path) -> None:
    """Nothing that it leaves on the way is taken for the user's."""
    writes = ("recipe.yaml", "data.partial/state.json", "data", "train/metrics.jsonl", "student", "header.json",
              "teacher.items.jsonl", "report.html")  # fmt: skip
    command = (*RUN, *OUT, "--set", "distill.trackers=[tensorboard]", "--set", "eval.speed=false")
    killed(world, "compress.distill.loop.metrics:write_text", "*", *command)
    assert [path.name for path in (world / "out" / "train").iterdir()] == ["compress"]
    shutil.rmtree(world / "out")
    for path in writes:
        killed(world, "os:replace", f"*{path}", *command)
    done = run_cli(*command, cwd=world)
    assert done.returncode == 0, done.stderr
    assert not list((world / "out").rglob("*compress-partial"))


PAGES = {"report": REPORT, "compare": (*COMPARE, "--out", "out")}


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("written", ["flips.jsonl", "{}.md", "{}.html", "{}.json"])
@pytest.mark.parametrize("name", PAGES)
def test_pages_that_are_killed_while_written_are_written_again(
    world: Path, name: str, written: str, after: bool
) -> None:
    """The report's are there from an earlier version, which wrote no marks into them."""
    killed(world, "os:replace", f"*{written.format(name)}", *PAGES[name], after=after)
    done = run_cli(*PAGES[name], cwd=world)
    assert done.returncode == 0, done.stderr


def test_a_first_row_that_the_disk_had_no_room_for_is_written_again(world: Path) -> None:
    full = FullDisk(file_bytes=20, at=("compress.distill.loop.metrics:Metrics.write",))
    done = warm().run([full], *DISTILL, *OUT, cwd=world)
    assert done.returncode == 1, done.stderr
    assert (world / "out/train/metrics.jsonl").read_text() == '{"step": 0, "tokens"'
    done = run_cli(*DISTILL, *OUT, cwd=world)
    assert done.returncode == 0, done.stderr


def test_a_finished_result_that_was_put_elsewhere_by_a_link_is_read(world: Path) -> None:
    for name in ("data", "train"):
        shutil.move(world / "finished/run" / name, world / f"big-{name}")
        (world / "finished/run" / name).symlink_to(world / f"big-{name}")
    before = state_of(world)
    done = run_cli(*OLD, cwd=world / "finished")
    assert done.returncode == 0, done.stderr
    after = state_of(world)
    assert all(after[path] == state for path, state in before.items() if not path.startswith("finished/run/report."))
