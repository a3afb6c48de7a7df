"""Training checkpoints: RUN/train/checkpoints/step-N, complete or absent, checksummed, never a pickle.

A checkpoint is what training changes of the student (`model.safetensors`), the optimizer's state
(`optimizer.safetensors`) and `state.json`. Nothing else is state: the learning rate and the seed of dropout are
arithmetic on the step, and the position in the data is one integer. Weights that are split over processes are saved
whole, so a run may go on with any number of them.
"""

import contextlib
import json
import math
import re
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from compress.base.disk import publish_folder, read_json, sha256_file, sha256_tree, write_json
from compress.base.errors import CompressError, InputError
from compress.base.machine import yield_to_other_threads
from compress.base.processes import is_main
from compress.base.progress import say
from compress.distill.loop.optimizer import StudentOptimizer, flat_state
from compress.distill.students.sharding import part_of, whole
from compress.distill.students.student import Stored, Student

_NAME = re.compile(r"step-([0-9]+)")


Snapshot = dict[str, dict[str, Tensor]]
"""Tensors by name, by the file they go to."""


class Checkpointer:
    """Writes checkpoints into `folder`, on a thread if `background`; what a thread failed at is raised later.

    Every process calls `save`; the main one writes. Use it as a context: at its end the last checkpoint is complete.
    `done` is the step of the checkpoint that the run continues from: what was not yet deleted before it goes.
    """

    def __init__(self, folder: Path, *, keep: int, background: bool, done: int = 0) -> None:
        self._folder, self._keep, self._background, self._done = folder, keep, background, done
        self._writer = ThreadPoolExecutor(1, "checkpoint", initializer=yield_to_other_threads)
        self._pending: Future[None] | None = None
        self._copies: Snapshot | None = {} if background else None

    def save(self, state: Mapping[str, Any], student: Student, optimizer: StudentOptimizer) -> Path:
        """Save as `folder/step-N` (N = `state["step"]`), or see to it that it will be; returns that path.

        Raises:
            CompressError: this checkpoint, or the one before it, could not be written.
        """
        self.wait()
        tensors = snapshot(student, optimizer, into=self._copies)
        if is_main() and self._background:
            self._pending = self._writer.submit(write, self._folder, dict(state), tensors, self._keep)
        elif is_main():
            write(self._folder, state, tensors, self._keep)
        return self._folder / f"step-{state['step']}"

    def wait(self) -> None:
        """Return when the last checkpoint is complete; raises as `save`."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def __enter__(self) -> "Checkpointer":
        if is_main() and self._done:
            _rotate(self._folder, self._keep, self._done)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.shutdown()
        if error is None:
            self.wait()


def snapshot(student: Student, optimizer: StudentOptimizer, *, into: Snapshot | None = None) -> Snapshot:
    """A run's tensors in the host's memory.

    With `into` they are copies that training does not change, written over those of an earlier snapshot: fresh memory
    costs several times what the copying does. Every process must call it; where weights are split over processes, all
    but the main one get nothing.
    """
    groups = {"model.safetensors": student.kept(), "optimizer.safetensors": _optimizer_tensors(student, optimizer)}
    found: Snapshot = {file: {} for file in groups}
    for file, tensors in groups.items():
        for name, (part, like) in tensors.items():
            full = whole(part, like)
            if not is_main():
                continue
            if into is None:
                found[file][name] = full.to("cpu")
            else:
                copies = into.setdefault(file, {})
                if name not in copies:
                    copies[name] = torch.empty(full.shape, dtype=full.dtype, pin_memory=full.is_cuda)
                found[file][name] = copies[name].copy_(full)
    return found


def write(folder: Path, state: Mapping[str, Any], tensors: Snapshot, keep: int) -> None:
    """Write `folder/step-N` (N = `state["step"]`) as a whole, then delete all but the `keep` latest and the best.

    Raises:
        CompressError: it could not be written; earlier checkpoints are untouched.
    """
    final = folder / f"step-{state['step']}"
    partial = final.with_name(final.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        for file, content in tensors.items():
            save_file({name: tensor.contiguous() for name, tensor in content.items()}, partial / file)
        write_json(partial / "state.json", dict(state))
        write_json(partial / "manifest.json", {"sha256": sha256_tree(partial)})
        shutil.rmtree(final, ignore_errors=True)
        publish_folder(partial, final)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise CompressError(
            f"The checkpoint {final} could not be written ({error}). Checkpoints before it are untouched: free some "
            "space and run the same command again to continue from the last."
        ) from error
    _rotate(folder, keep, state["step"])


def latest(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The last whole checkpoint and its state; each later one that is half-written or damaged is named and skipped."""
    for partial in sorted(folder.glob("step-*.partial")):
        say(f"Skipping {partial}: it was never finished.")
        shutil.rmtree(partial)
    for path in sorted(_checkpoints(folder), key=_step, reverse=True):
        try:
            return path, _verified_state(path)
        except InputError as error:
            say(f"Skipping the checkpoint {path}: {error}")
    return None


def begun_with(folder: Path) -> dict[str, Any] | None:
    """The `config` and `inputs` of the training whose checkpoints are in `folder`; None where none says."""
    for path in sorted(_checkpoints(folder), key=_step, reverse=True):
        with contextlib.suppress(InputError):
            state = read_json(path / "state.json")
            if isinstance(state, dict) and all(isinstance(state.get(key), dict) for key in ("config", "inputs")):
                return state
    return None


def restore(path: Path, student: Student, optimizer: StudentOptimizer) -> None:
    """Put a checkpoint's tensors into a student and its optimizer.

    Raises:
        InputError: its tensors are not the student's.
    """
    try:
        _copy_into(student.kept(), path / "model.safetensors")
        _copy_into(_optimizer_tensors(student, optimizer), path / "optimizer.safetensors")
    except SafetensorError as error:
        raise InputError(
            f"The checkpoint {path} cannot be read ({error}); remove it to go on from an earlier."
        ) from error


def _copy_into(targets: Mapping[str, Stored], file: Path) -> None:
    """Overwrite `targets` by the tensors of a file, which must be the same by name and shape."""
    with safe_open(file, framework="pt") as tensors:
        if set(tensors.keys()) != targets.keys():
            raise _other_model(file)
        for name, (target, like) in targets.items():
            found = part_of(tensors.get_tensor(name), like)
            if found.shape != target.shape:
                raise _other_model(file)
            target.copy_(found)


def _other_model(file: Path) -> InputError:
    return InputError(f"The checkpoint {file.parent} is of another model; remove it, or use another run folder.")


def _verified_state(path: Path) -> dict[str, Any]:
    manifest = read_json(path / "manifest.json")
    hashes = manifest.get("sha256") if isinstance(manifest, dict) else None
    if not isinstance(hashes, dict) or set(hashes) != {"model.safetensors", "optimizer.safetensors", "state.json"}:
        raise InputError("its manifest does not name its three files.")
    for name, expected in hashes.items():
        if not (path / name).is_file() or sha256_file(path / name) != expected:
            raise InputError(f"{name} is missing or does not match its SHA-256.")
    state = read_json(path / "state.json")
    if not isinstance(state, dict) or state.get("step") != _step(path):
        raise InputError("its state.json is not that of its step.")
    return state


def _rotate(folder: Path, keep: int, step: int) -> None:
    """Delete old checkpoints; the `keep` latest stay, and the best: that of the least held-out measure.

    `step` is that of the last whole one. What lies beyond it is damaged, and counts for nothing. Its state says by
    which measure its run compares; one that does not say does so by the held-out value of what it minimises.
    """
    checkpoints = sorted((path for path in _checkpoints(folder) if _step(path) <= step), key=_step)
    states = {path: _state(path) for path in checkpoints}
    measure = states[checkpoints[-1]].get("best_by", "heldout_loss") if checkpoints else ""
    values = {path: state.get(measure) for path, state in states.items()}
    measured = {path: v for path, v in values.items() if isinstance(v, int | float) and math.isfinite(v)}
    best = min(measured, key=lambda path: (measured[path], -_step(path)), default=None)
    for path in checkpoints[:-keep]:
        if path != best:
            doomed = path.rename(path.with_name(path.name + ".partial"))
            shutil.rmtree(doomed)


def _state(path: Path) -> dict[str, Any]:
    """A checkpoint's state; empty where it holds none."""
    try:
        state = json.loads((path / "state.json").read_text())
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def _checkpoints(folder: Path) -> list[Path]:
    return [path for path in folder.glob("step-*") if _NAME.fullmatch(path.name)]


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _optimizer_tensors(student: Student, optimizer: StudentOptimizer) -> dict[str, Stored]:
    """The optimizer's state by `key/parameter`, e.g. `exp_avg/lm_head.weight`."""
    names = {parameter: name for name, parameter in student.trained().items()}
    return {
        f"{key}/{names[parameter]}": Stored(tensor, parameter)
        for parameter, state in optimizer.state.items()
        for key, tensor in flat_state(state).items()
    }
