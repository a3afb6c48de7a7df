"""Whole commands from options and recipes drawn at random: valid, nearly valid, hostile.

A case is a number: the same one gives the same command in the same world. What must hold of each:

- it ends with an exit code of the contract
- no traceback, no "fault of the tool"
- no file that was there before is changed, but for results of ours that it was asked to write again
- what is refused is refused within `REFUSED_WITHIN_S`, start-up aside

`python tests/fuzz/commands_fuzz.py --first 0 --count 500` tries cases and prints those that fail.
"""

import argparse
import dataclasses
import json
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from commands import Outcome, warm
from early_checks import keys
from recipe_world import make_run_world

CODES = (0, 1, 2, 3, 75)
REFUSED_WITHIN_S = 5.0
BASE = {
    "eval.speed": "false", "eval.samples": "0", "eval.responses": "0", "eval.heldout_sequences": "2",
    "data.tokens": "2k", "data.heldout_sequences": "2", "distill.tokens": "1k", "eval.limit": "2",
}  # fmt: skip
"""What keeps a run short, unless it is drawn otherwise."""
HOSTILE = (
    "null", "true", "-1", "0", "1", "2", "3", "0.5", "1.0", "1e30", "-1e30", ".nan", ".inf", "1e-400", "9" * 40, "[]",
    "[1]", "{}", "{a: 1}", "..", "../up", "/etc/passwd", "/dev/null", "~", "'~'", "'*'", "' '", "é漢", "x" * 300,
    "hub:org/name", "org/name", "'hub:'", "cuda", "cuda:99", "gpu", "cpu", "meta", "5%", "100%", "4k", "12:30",
    "!!python/name:os.system", "&a [*a]", "'{{'", "a.b", "'#'",
    "64", "128", "512", "100000", "40M", "[a, b]", "alternate", "0-1", "'9'",
)  # fmt: skip
PLACES = (
    "{}/teacher",
    "{}/text.jsonl",
    "{}/hub",
    "{}/tasks",
    "{}/own/model",
    "{}/own/notes.txt",
    "{}/recipe.yaml",
    "{}",
    "{}/own",
)
NAMES = ("tiny_choice", "nope", "mmlu", "tiny_choice@2", "tiny_choice@x", "paper")
OWN_OPTIONS = {
    "prune": ["--keep", "--layers", "--by", "--rank-after", "--calibration", "--calibration-tokens", "--cast"],
    "distill": ["--student", "--teacher", "--data", "--tokens", "--alpha", "--temperature"],
    "eval": ["--teacher", "--tasks", "--num-fewshot", "--limit", "--datasets-root", "--text", "--price-per-hour"],
    "run": ["--redo", "--flops-per-s"],
    "compare": [],
    "report": [],
    "verify": ["--data"],
}
SWITCHES = {
    "prune": ["--preserve-pattern", "--repair", "--no-check", "--stream", "--dry-run", "--trust-remote-code"],
    "run": ["--dry-run"],
}
SECTIONS = {"prune": ("prune",), "distill": ("data", "distill"), "eval": ("eval",), "run": ("",)}


@dataclasses.dataclass(frozen=True)
class Case:
    """A command, and where it may write."""

    words: list[str]
    out: str


def make_world(folder: Path) -> Path:
    """A teacher, text, a benchmark, a recipe and a run of it; and, in `own/`, things of the user's."""
    world = make_run_world(folder)
    shutil.copytree(world / "teacher", world / "own" / "model")
    (world / "own" / "notes.txt").write_text("mine\n")
    sets = [f"--set={key}={value}" for key, value in BASE.items()]
    done = warm().run((), "run", str(world / "recipe.yaml"), "--out", str(world / "run"), *sets, cwd=world)
    assert done.returncode == 0, done.stderr
    return world


def draw(number: int, world: Path, out: Path) -> Case:
    """The command of a case; what it is asked to write lies below `out`, or where it must not write."""
    rng = random.Random(number)
    command = rng.choices(list(OWN_OPTIONS), weights=[3, 3, 4, 6, 1, 1, 1])[0]
    place = str(out / "out") if rng.random() < 0.8 else _placed(rng.choice(PLACES), world)
    words = [command, *_arguments(rng, command, world, place)]
    options = [option for option in OWN_OPTIONS[command] if rng.random() < 0.25]
    words += [f"{option}={_value(rng, option, str, world)}" for option in options]
    words += [switch for switch in SWITCHES.get(command, []) if rng.random() < 0.15]
    if command in SECTIONS:
        drawn = _assignments(rng, SECTIONS[command], world)
        words += [f"--set={key}={value}" for key, value in drawn.items()]
    return Case(words, place)


def _arguments(rng: random.Random, command: str, world: Path, out: str) -> list[str]:
    """What the command must be given, nearly always what it wants."""

    def good(value: str) -> str:
        return value if rng.random() < 0.9 else _placed(rng.choice([*PLACES, "org/name", "/nowhere", "é"]), world)

    if command == "prune":
        return [good(f"{world}/teacher"), out]
    if command == "distill":
        models = [f"--student={good(f'{world}/teacher')}", f"--teacher={good(f'{world}/teacher')}"]
        return [*models, f"--data={good(f'{world}/text.jsonl')}", f"--out={out}"]
    if command == "eval":
        root, tasks = good(f"{world}/hub"), good(f"{world}/tasks")
        return [
            good(f"{world}/teacher"),
            f"--out={out}.json",
            f"--datasets-root={root}",
            f"--set=eval.task_folder={tasks}",
        ]
    if command == "run":
        return [good(f"{world}/recipe.yaml"), f"--out={out}"]
    if command == "compare":
        return [good(f"{world}/run"), good(f"{world}/run/eval/student.json"), f"--out={out}"]
    return [good(f"{world}/run")]


def _assignments(rng: random.Random, sections: tuple[str, ...], world: Path) -> dict[str, str]:
    known = [(key, hint) for key, hint in keys() if any(key.startswith(section) for section in sections)]
    found = {key: value for key, value in BASE.items() if any(key.startswith(section) for section in sections)}
    for key, hint in rng.sample(known, k=min(len(known), rng.choice([0, 1, 1, 2, 3]))):
        found[key] = _value(rng, key, hint, world)
    return found


def _value(rng: random.Random, key: str, hint: Any, world: Path) -> str:
    """Of the kind that the annotation asks for two times in three, and else anything."""
    if rng.random() < 0.15:
        return _placed(rng.choice([*HOSTILE, *PLACES]), world) if rng.random() < 0.9 else json.dumps(rng.random())
    if get_origin(hint) in (list, tuple) and "tasks" not in key:
        return f"[{', '.join(_value(rng, key, get_args(hint)[0], world) for _ in range(rng.randint(0, 2)))}]"
    hints = [hint, *get_args(hint), *(part for each in get_args(hint) for part in get_args(each))]
    choices = [str(value) for each in hints if get_origin(each) is Literal for value in get_args(each)]
    if choices:
        return rng.choice(choices)
    if "tasks" in key:
        return f"[{', '.join(rng.sample(NAMES, k=rng.randint(1, 2)))}]" if "." in key else rng.choice(NAMES)
    if bool in hints:
        return rng.choice(["true", "false"])
    if int in hints or float in hints or key.startswith("--"):
        return rng.choice(
            ["1", "2", "3", "4", "8", "16", "60", "64", "65", "100", "256", "257", "1k", "3000", "0.1", "0.9", "1"]
        )
    return _placed(rng.choice(["text", "alternate", "1::2", "0,3", "uniform:2", "cpu", "taylor", *PLACES]), world)


def _placed(value: str, world: Path) -> str:
    return value.replace("{}", str(world)) if value in PLACES else value


def what_is_there(folder: Path) -> dict[str, tuple[int, int, str]]:
    """Size, time of change and target of all below a folder."""
    found = {}
    for root, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(root, name)
            stat = path.lstat()
            link = os.readlink(path) if path.is_symlink() else ""
            found[str(path)] = (0, 0, link) if path.is_dir() else (stat.st_size, stat.st_mtime_ns, link)
    return found


def attempt(number: int, world: Path, scratch: Path) -> tuple[Outcome, float, list[str]]:
    """Run a case; its outcome, its seconds, and what does not hold of it."""
    out = scratch / f"case-{number}"
    out.mkdir()
    case, before = draw(number, world, out), what_is_there(world)
    started = time.monotonic()
    done = warm().run((), *case.words, cwd=out)
    seconds = done.ended - started
    faults = []
    if done.returncode not in CODES:
        faults.append(f"exit code {done.returncode}")
    faults += [words for words in ("Traceback", "fault of the tool") if words in done.stderr]
    after = what_is_there(world)
    changed = [
        path for path, state in before.items() if after.get(path) != state and not _may_change(path, case, world)
    ]
    stray = [
        path for path in after.keys() - before.keys() if not path.startswith(case.out) and "__pycache__" not in path
    ]
    if changed or stray:
        faults.append(f"changed {changed[:3]}, strays {stray[:3]}")
    for path in sorted(after.keys() - before.keys(), reverse=True):
        Path(path).rmdir() if Path(path).is_dir() and not Path(path).is_symlink() else Path(path).unlink()
    if done.returncode in (2, 3) and seconds > REFUSED_WITHIN_S and not _worked(done):
        faults.append(f"refused after {seconds:.1f} s")
    shutil.rmtree(out, ignore_errors=True)
    return done, seconds, faults


def _worked(done: Outcome) -> bool:
    """Whether a step had begun: what only the work can tell may be said later."""
    said = ("tuning", "prune: ", "data: ", "Speed", "Samples", "Scoring", "measuring", "ranking", "What prompts share")
    return any(words in done.stderr for words in said)


def _may_change(path: str, case: Case, world: Path) -> bool:
    """The report of the run, which `report` writes again."""
    return case.words[0] == "report" and path.startswith((f"{world}/run/report.", f"{world}/run/flips."))


def main() -> int:
    """Try cases, print those that fail."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=100)
    options = parser.parse_args()
    failed = codes = 0
    tally: dict[int, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        world = make_world(Path(folder, "world"))
        for number in range(options.first, options.first + options.count):
            done, _, faults = attempt(number, world, Path(folder))
            tally[done.returncode] = tally.get(done.returncode, 0) + 1
            codes += 1
            if faults:
                failed += 1
                words = " ".join(draw(number, world, Path("OUT")).words).replace(str(world), "W")
                print(number, faults, words)  # noqa: T201
                print("   ", done.stderr.strip().splitlines()[-1:] or "nothing on stderr", flush=True)  # noqa: T201
    print(codes, "cases, by exit code:", dict(sorted(tally.items())), "failed:", failed)  # noqa: T201
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
