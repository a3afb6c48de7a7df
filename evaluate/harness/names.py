"""Finding tasks by name: lm-eval's own, ours, and the user's folder of YAMLs."""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import lm_eval.tasks
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from compress.base.errors import Faults, UsageError, reason_of
from compress.evaluate.presets import PRESETS

LM_EVAL = Path(lm_eval.tasks.__file__).parent
_WORD = re.compile(r"\w[\w.\-+@/()]*")
_NAMED = re.compile(r"^\s*-?\s*(?:task|group|tag)\s*:\s*[\"']?([\w.\-+]+)", re.MULTILINE)
OWN_TASKS = Path(__file__).parent.parent / "tasks"


def find_tasks(names: Sequence[str], task_folder: str | None) -> Any:
    """The `TaskManager` that knows all `names`.

    Raises:
        UsageError: an unknown name, or as `manager_for`.
    """
    manager, faults = manager_for(names, task_folder), Faults()
    for name in names:
        faults.of(lambda name=name: require_known(name, manager, task_folder))  # type: ignore[misc]
    faults.refuse()
    return manager


def manager_for(names: Sequence[str], task_folder: str | None) -> Any:
    """The `TaskManager` that knows all those `names` that there are.

    Indexing lm-eval's 14,000 tasks takes seconds: it is done once a process, and only when neither our tasks and
    `task_folder` nor the folders of lm-eval that are called as the names begin hold all that is asked for.

    Raises:
        UsageError: a task folder that does not exist, or has a definition that cannot be read.
    """
    folders: tuple[str, ...] = (str(OWN_TASKS),)
    if task_folder is not None:
        if not Path(task_folder).is_dir():
            raise UsageError(f"The task folder {task_folder} does not exist; it holds lm-eval task YAMLs.")
        if broken := list(_broken_definitions(Path(task_folder))):
            raise UsageError(
                f"Definitions that cannot be read: {'; '.join(broken[:3])}. Mend them, or take them out of the task "
                "folder: lm-eval passes over them in silence."
            )
        folders += (task_folder,)
    for more in ((), nearby_folders(names)):
        small = _manager((*more, *folders), include_defaults=False)
        try:
            for name in names:
                list(leaf_tasks(small.task_index, name))
        except KeyError:
            continue
        if not more or all(small.task_index[name].kind.name != "TAG" for name in names):  # tags span folders
            return small
    written = names_written((str(LM_EVAL), *folders)).words
    known = [name for name in names if name in written]  # a name that stands nowhere is no task's
    return _manager(folders, include_defaults=True) if len(known) == len(names) else manager_for(known, task_folder)


class _Written(NamedTuple):
    """What the files of task definitions say, read as plain text: a fraction of the time of an index."""

    words: frozenset[str]
    """All words in them: every name of a task, a group or a tag is one, as far as nobody builds it at run time."""
    names: frozenset[str]
    """Those that seem to be such names."""


@cache
def names_written(folders: tuple[str, ...]) -> _Written:
    """What stands in the definitions of these folders."""
    words: set[str] = set()
    names: set[str] = set()
    for folder in folders:
        for path in Path(folder).rglob("*"):
            if (path.suffix in ("", ".py") or "yaml" in path.name) and path.is_file():
                text = path.read_text(encoding="utf-8", errors="replace")
                words.update(_WORD.findall(text))
                names.update(_NAMED.findall(text))
    return _Written(frozenset(words), frozenset(names))


def require_known(name: str, manager: Any, task_folder: str | None) -> None:
    """Refuse a name that `manager_for` did not find.

    Raises:
        UsageError: it is no task, group or tag; the nearest names are told.
    """
    if name not in manager.task_index:
        folders = (str(LM_EVAL), str(OWN_TASKS), *([] if task_folder is None else [task_folder]))
        similar = difflib.get_close_matches(name, [*PRESETS, *names_written(folders).names], n=3)
        hint = f"did you mean {' or '.join(similar)}?" if similar else "`lm-eval ls tasks` lists what there is."
        raise UsageError(f"There is no task {name!r}; {hint}")


def _broken_definitions(folder: Path) -> Iterator[str]:
    """Which of a folder's YAMLs lm-eval passes over in silence, and why."""
    for path in sorted(folder.rglob("*.yaml")):
        try:
            load_yaml(path, resolve_func=False)
        except Exception as error:  # whatever a file of the user's makes lm-eval's reader raise
            mark = getattr(error, "problem_mark", None)
            where = path if mark is None else f"{path}, line {mark.line + 1}"
            yield f"{where} ({reason_of(getattr(error, 'problem', None) or error)})"


def nearby_folders(names: Sequence[str]) -> tuple[str, ...]:
    """lm-eval's folders with the names' first words for names: `mmlu` for `mmlu_anatomy`."""
    words = [name.split("_") for name in names]
    starts = ["_".join(each[:count]) for each in words for count in range(1, len(each) + 1)]
    folders = (LM_EVAL / start for start in dict.fromkeys(starts) if start.isidentifier())
    return tuple(str(folder) for folder in folders if folder.is_dir())


@cache
def _manager(folders: tuple[str, ...], include_defaults: bool) -> Any:
    return TaskManager(include_path=list(folders), include_defaults=include_defaults)


def leaf_tasks(index: Mapping[str, Any], name: str) -> Iterator[tuple[str, str | None]]:
    """(task, hub id of its data set or None when only its Python class knows) of each task a name stands for.

    Raises:
        KeyError: the name, or a member of the group, is not in the index.
    """
    entry = index[name]
    if entry.kind.name == "TAG":
        for member in sorted(entry.tags):
            yield from leaf_tasks(index, member)
    elif entry.kind.name == "GROUP":
        yield from _group_members(index, entry.cfg.get("task") or [])
    else:
        yield name, entry.cfg.get("dataset_path")


def _group_members(index: Mapping[str, Any], members: str | Sequence[Any]) -> Iterator[tuple[str, str | None]]:
    for member in [members] if isinstance(members, str) else members:
        if isinstance(member, str):
            yield from leaf_tasks(index, member)
            continue
        name = member.get("group") or member["task"]
        if isinstance(name, str) and name in index:
            yield from leaf_tasks(index, name)
        elif "group" in member:
            yield from _group_members(index, member.get("task") or [])
        elif "dataset_path" in member:
            yield name, member["dataset_path"]
        else:
            raise KeyError(name)
