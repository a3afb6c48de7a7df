"""What is there is ours by its content, for every kind of output; what an earlier version left is, too."""

import json
import os
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from earlier_runs import unpack
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compress.base.errors import Faults, UsageError
from compress.base.outputs import Output, check_outputs, require_outputs
from compress.data import store_outputs
from compress.distill import student_output, training_output
from compress.evaluate import evaluation_outputs
from compress.prune.record import student_output as cut_output
from compress.report import report_outputs
from compress.report.outputs import COMPARISON, page_outputs
from compress.run.layout import Layout
from compress.run.pipeline import resolve_paths
from compress.run.rank_after import ranking_output
from compress.run.recipe import load_recipe, recipe_output
from compress.run.recipe_steps import steps_of

ARCHIVES = ("evaluating", "finished", "killed", "preparing", "ranked", "ranking", "scratch", "stopped")


def all_outputs(folder: Path) -> list[Output]:
    """One of every kind of output, at paths that are not there."""
    return [
        *evaluation_outputs(folder / "r.json"),
        *report_outputs(folder),
        *page_outputs(folder, "compare", "a comparison", COMPARISON),
        *store_outputs(folder / "data"),
        recipe_output(folder / "recipe.yaml"),
        training_output(folder / "train"),
        student_output(folder / "student"),
        cut_output(folder / "cut"),
        ranking_output(folder / "ranking"),
    ]


KINDS = range(len(all_outputs(Path())))


def is_refused(output: Output) -> bool:
    faults = Faults()
    check_outputs([output], faults)
    return bool(faults.found)


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
_named = st.dictionaries(
    st.sampled_from(["model", "tasks", "manifest", "task", "metrics", "step", "identity", "name", "config"]),
    _values,
    max_size=4,
)
contents = st.one_of(
    st.binary(min_size=1),
    st.text(min_size=1).map(lambda text: text.encode(errors="replace")),
    (_values | _named).map(lambda value: json.dumps(value).encode()),
    _named.map(lambda value: f"{json.dumps(value)}\n".encode() * 2),
)
names = st.text(string.ascii_letters + string.digits + "._-", min_size=1, max_size=12).filter(
    lambda name: name.strip(".")
)
own_names = st.sampled_from(["index.json", "state.json", "metrics.jsonl", "header.json", "0.jsonl", "distill.json"])


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(KINDS), name=names | own_names, content=contents)
def test_whatever_a_user_may_have_is_refused(
    tmp_path_factory: pytest.TempPathFactory, kind: int, name: str, content: bytes
) -> None:
    output = all_outputs(tmp_path_factory.mktemp("place"))[kind]
    place = output.path / name if output.folder else output.path
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(content)
    assert is_refused(output)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_and_what_is_empty_is_free(tmp_path: Path, kind: int) -> None:
    for output in (all_outputs(tmp_path / "absent" / "deep")[kind], all_outputs(tmp_path)[kind]):
        require_outputs(output)
    output = all_outputs(tmp_path)[kind]
    output.path.mkdir() if output.folder else output.path.touch()
    require_outputs(output)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_no_folder_and_a_folder_no_file(tmp_path: Path, kind: int) -> None:
    output = all_outputs(tmp_path)[kind]
    output.path.touch() if output.folder else output.path.mkdir()
    with pytest.raises(UsageError, match="is a file" if output.folder else "is a folder"):
        require_outputs(output)


@pytest.mark.parametrize("name", ARCHIVES)
def test_all_that_an_earlier_version_left_is_ours(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(unpack(name, tmp_path))
    layout = Layout(Path("run"))
    assert (layout.run / "recipe.yaml").read_text() != Path("recipe.yaml").read_text()
    steps = steps_of(resolve_paths(load_recipe("recipe.yaml"), layout.run), layout, lambda *_: Path("teacher"))
    own = [output for step in steps for output in step.outputs]
    own += [recipe_output(layout.recipe), ranking_output(layout.ranking), *report_outputs(layout.run)]
    require_outputs(*own)
    covered = {output.path for output in own}
    files = [path for path in layout.run.rglob("*") if path.is_file()]
    assert [path for path in files if covered.isdisjoint((path, *path.parents))] == []
    assert is_refused(recipe_output(Path("recipe.yaml")))


def test_where_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "notes").touch()
    (tmp_path / "dangling").symlink_to("absent")
    for name, what in (("notes", "a file"), ("dangling", "a link to nothing")):
        with pytest.raises(UsageError, match=f"{name} is {what}"):
            require_outputs(evaluation_outputs(tmp_path / name / "deep" / "r.json")[-1])
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path and allowed(path, mode))
    for output in all_outputs(tmp_path):
        with pytest.raises(UsageError, match=f"no permission in {tmp_path}"):
            require_outputs(output)


def edited(change: Callable[[dict[str, Any]], object]) -> Callable[[str], str]:
    def edit(text: str) -> str:
        content = json.loads(text)
        change(content)
        return json.dumps(content)

    return edit


@pytest.mark.parametrize(
    ("path", "edit"),
    [
        ("recipe.yaml", lambda text: f"# mine\n{text}"),
        ("recipe.yaml", lambda text: text.replace("  seed: 0\n", "", 1)),
        ("recipe.yaml", lambda text: text.replace("alternate", "'alternate'")),
        ("report.md", lambda text: text.replace("# tiny", "# My notes on tiny", 1)),
        ("report.html", lambda text: text.replace("compress report", "my report", 1)),
        ("eval/teacher.json", edited(lambda content: content.pop("manifest"))),
        ("eval/teacher.json", edited(lambda content: content["manifest"].pop("config"))),
        ("student/distill.json", edited(lambda content: content.pop("manifest"))),
        ("data/index.json", edited(lambda content: content.pop("fingerprint"))),
    ],
)
def test_what_is_nearly_ours_is_not(tmp_path: Path, path: str, edit: Callable[[str], str]) -> None:
    run = unpack("finished", tmp_path) / "run"
    place = run / path
    whole = {
        "recipe.yaml": recipe_output(place), "report.md": report_outputs(run)[2], "report.html": report_outputs(run)[3],
        "eval/teacher.json": evaluation_outputs(place)[-1], "student/distill.json": student_output(place.parent),
        "data/index.json": store_outputs(place.parent)[-1],
    }[path]  # fmt: skip
    require_outputs(whole)
    text = place.read_text()
    place.write_text(edit(text))
    assert place.read_text() != text
    assert is_refused(whole)
