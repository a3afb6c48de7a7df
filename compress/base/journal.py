"""What an evaluation has measured so far, on disk: whatever ends the process, no batch is measured twice.

    FILE.json.journal/header.json   what decides the results, besides a batch itself
    FILE.json.journal/R.jsonl       the finished batches of process R, one JSON object a line, in the order of finishing

A batch is known by the header, its stage, its number there, and its content; its result is what was computed, since
Python's JSON gives back every float exactly. Lines reach the system one by one, so a killed process loses the batch
under way; a machine that fails loses what it had not yet written to the disk. The folder goes when the eval JSON is
there; one that was begun under another header is kept under another name. Under a launcher the batches that are left
are dealt out to the processes in turn.
"""

import contextlib
import dataclasses
import datetime
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from compress.base.disk import clear_folder, owned, read_json, sha256_json, write_json
from compress.base.errors import InputError
from compress.base.outputs import UNFINISHED, Output, beside, has_fields, has_only, has_rows
from compress.base.processes import all_gather, count, is_main, on_main, rank
from compress.base.progress import progress_bar, say
from compress.base.signals import check_interrupt

_HEADER = "header.json"
_LINES = "*.jsonl"
_NAMES = rf"header\.json{UNFINISHED}|[0-9]+\.jsonl"

Header = Mapping[str, Mapping[str, Any]]
"""Named parts, each a table of JSON data."""


@dataclasses.dataclass(frozen=True)
class Batch:
    """`content`: the JSON data that decides a batch's result. `size`: how far it moves the progress bar."""

    content: Any
    size: int = 1


class Journal:
    """Results of batches by key, `found` by earlier processes; without a folder, nothing is written."""

    def __init__(
        self, folder: Path | None = None, header: Header | None = None, found: Mapping[str, Any] | None = None
    ) -> None:
        self._folder = folder
        self._header = sha256_json(header)
        self._results = dict(found or {})

    def measure(
        self, stage: str, batches: Sequence[Batch], compute: Callable[[int], Any], *, visible: bool = True
    ) -> list[Any]:
        """The result of each batch, as JSON data: an earlier process's, this one's, or another's of this launch.

        `compute(i)` measures batch i; what it returns must depend on nothing but the header and the batch. Every
        process calls this with the same batches, and gets all results.
        """
        keys = [sha256_json([self._header, stage, i, batch.content]) for i, batch in enumerate(batches)]
        left = [i for i, key in enumerate(keys) if key not in self._results]
        if self._folder is not None and len(left) < len(batches):
            out = self._folder.with_suffix("")
            say(f"Continuing {out}: {stage}, {len(batches) - len(left)} of {len(batches)} batches are done.")
        own = left[rank() :: count()]
        done = sum(batch.size for batch in batches) - sum(batches[i].size for i in left)
        total = done + sum(batches[i].size for i in own)
        with progress_bar(stage, total, unit="items", done=done, visible=visible) as bar:
            for i in own:
                self._measure(stage, i, keys[i], compute)
                bar.advance(batches[i].size)
        mine = {keys[i]: self._results[keys[i]] for i in own}
        for part in all_gather(mine):
            self._results |= part
        for i in left:  # a task that builds its prompts in the order of a set has others in each process
            if keys[i] not in self._results:
                self._measure(stage, i, keys[i], compute)
        return [self._results[key] for key in keys]

    def remove(self) -> None:
        """Remove the journal: the result is written. For the main process, when all have measured their last batch."""
        if self._folder is not None:
            shutil.rmtree(self._folder)

    def _measure(self, stage: str, number: int, key: str, compute: Callable[[int], Any]) -> None:
        check_interrupt()
        line = json.dumps({"stage": stage, "batch": number, "key": key, "result": compute(number)})
        if self._folder is not None:
            with (self._folder / f"{rank()}.jsonl").open("ab") as file:
                file.write(line.encode() + b"\n")
        self._results[key] = json.loads(line)["result"]


@contextlib.contextmanager
def open_journal(out: Path | None, header: Header) -> Iterator[Journal]:
    """The journal of the eval JSON `out`, continued if it was begun under the same header, else begun anew.

    It belongs to this launch while the block runs; an empty one is removed. Without `out` nothing is written.

    Raises:
        UsageError: another process is measuring into `out`.
    """
    if out is None:
        yield Journal(header=header)
        return
    folder = journal_output(out).path
    with contextlib.ExitStack() as lock:
        on_main(lambda: lock.enter_context(owned(folder)))
        try:
            yield Journal(folder, header, on_main(lambda: _begin(folder, json.loads(json.dumps(header)))))
        finally:
            if is_main() and not any(folder.glob(_LINES)):
                shutil.rmtree(folder, ignore_errors=True)


def _begin(folder: Path, header: dict[str, Any]) -> dict[str, Any]:
    """The results in the folder by key; none, and an empty journal, if it was begun under another header."""
    try:
        begun = read_json(folder / _HEADER)
    except InputError:
        begun = None
    if begun == header:
        return {key: result for path in sorted(folder.glob(_LINES)) for key, result in _read(path).items()}
    if any(folder.glob(_LINES)):
        kept = _set_aside(folder)
        say(f"{folder} was begun with another {', '.join(_changes(begun, header))}: starting anew. It is in {kept}.")
    clear_folder(folder)
    write_json(folder / _HEADER, header)
    return {}


def journal_output(out: Path) -> Output:
    """The folder of the journal of the eval JSON `out`."""
    return Output(beside(out, f"{out.name}.journal"), "the journal of an evaluation", _is_journal, folder=True)


def _is_journal(folder: Path) -> bool:
    """Whether nothing in it is anyone else's, since it goes as a whole: names and content are ours."""
    header = has_fields("config", "inputs")(folder / _HEADER)
    lines = [has_rows("stage", "key", "result")(path) for path in folder.glob(_LINES)]
    return has_only(_NAMES)(folder) and (header or any(lines) or not (lines or (folder / _HEADER).exists()))


def _set_aside(folder: Path) -> Path:
    """Move what the journal holds into a folder of its own beside it; the journal's own is locked, and stays."""
    kept = folder.with_name(f"{folder.name}-{datetime.datetime.now():%Y-%m-%dT%H.%M.%S.%f}")
    kept.mkdir()
    for path in folder.iterdir():
        path.rename(kept / path.name)
    return kept


def _read(path: Path) -> dict[str, Any]:
    """The results in one process's file; a last line without an end is cut off, a line that is none is passed over."""
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)
    results = {}
    for text in content[:whole].splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            line = json.loads(text)
            results[line["key"]] = line["result"]
    return results


def _changes(begun: Any, header: dict[str, Any]) -> list[str]:
    """Dotted names of what a header says otherwise than the one begun with."""
    if not isinstance(begun, dict):
        return [_HEADER]
    old = {name: part if isinstance(part, dict) else {} for name, part in begun.items()}
    names = [(name, key) for name in header for key in {**header[name], **old.get(name, {})}]
    changed = [f"{name}.{key}" for name, key in names if old.get(name, {}).get(key) != header[name].get(key)]
    return changed or [_HEADER]
