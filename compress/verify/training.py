"""A training against its own log: checkpoints, the rows of metrics.jsonl, and the order in which the data was read."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from compress.base.config import build_from
from compress.base.currency import Missing
from compress.base.disk import read_json, read_rows
from compress.base.errors import InputError
from compress.data import TokenStore
from compress.data.store.order import START, extend
from compress.distill.config import DistillConfig
from compress.distill.publish import RECORD
from compress.distill.resources.schedule import Budget, budget
from compress.distill.rollouts.prompts import is_on_policy
from compress.distill.rows.selection import Selection, find_selection
from compress.distill.rows.source import row_ids
from compress.distill.select import rows_left
from compress.verify.checks import require, typed
from compress.verify.records import count_files, differing_files, read_record

_DECISIVE = ("tokens", "epochs", "batch_tokens", "seed", "select", "order", "on_policy")
_HASH = "rows_sha256"


class Claim(NamedTuple):
    """A hash of the data order that the run wrote down after `step` steps."""

    step: int
    where: str
    sha256: Any


@dataclasses.dataclass(frozen=True)
class Training:
    """Where a training leaves its student (`out`) and its log (`work`)."""

    out: Path
    work: Path

    @property
    def finished(self) -> bool:
        """Whether the student is there."""
        return (self.out / RECORD).is_file()

    def checkpoints(self) -> list[Path]:
        """Folders step-N, by N."""
        found = [path for path in self.work.glob("checkpoints/step-*") if path.name.removeprefix("step-").isdecimal()]
        return sorted(found, key=_step)

    def record(self) -> dict[str, Any]:
        """What distill.json says.

        Raises:
            Missing: the training is not finished.
        """
        if not self.finished:
            raise Missing("the training is not finished")
        return read_record(self.out / RECORD).data

    def config(self) -> DistillConfig:
        """The options that decide how much is read in which order, and in which steps; the others are defaults.

        Raises:
            Missing: neither a student nor a checkpoint says what they were.
        """
        made = self._made("config")
        return build_from(DistillConfig, {name: made[name] for name in _DECISIVE if name in made}, str(self.out))

    def _made(self, part: str) -> dict[str, Any]:
        """`config` or `inputs` of the student's manifest or, before there is one, of the latest checkpoint."""
        if self.finished:
            path, record = self.out / RECORD, self.record()["manifest"]
        elif states := self.checkpoints():
            path = states[-1] / "state.json"
            record = typed(read_json(path), dict, str(path))
        else:
            raise Missing("there is neither a student nor a checkpoint to say with which options")
        return typed(record.get(part), dict, f"{path}: {part}")

    def selection(self, store: TokenStore) -> Selection | None:
        """What was taken of the store, by the scores that are kept in it.

        Raises:
            Missing: as `config`, or the scores are not there.
        """
        try:
            return find_selection(self.config(), store, self._made("inputs"))
        except InputError as error:
            raise Missing(f"the scores that rows were selected by cannot be read ({error})") from error

    def extent(self, store: TokenStore) -> Budget:
        """The whole training in rows and steps; of one that ended at its target, up to there."""
        whole = budget(self.config(), num_rows=store.num_rows, seq_len=store.seq_len)
        if not self.finished or not (record := self.record()).get("reached"):
            return whole
        steps = typed(record.get("steps"), int, f"{RECORD}: steps")
        return Budget(whole.rows_per_step, min(steps * whole.rows_per_step, whole.rows), steps)

    def rows(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl; a last line that was cut short is left out.

        Raises:
            Missing: there is no such file.
            InputError: a line is no JSON object with a step.
        """
        path = self.work / "metrics.jsonl"
        if not path.is_file():
            raise Missing(f"{path} is not there")
        rows = read_rows(path, damaged="refused" if self.finished else "last left out")
        for number, row in enumerate(rows, 1):
            where = f"{path}, line {number}"
            typed(typed(row, dict, where).get("step"), int, f"{where}: step")
        return rows


def check_checkpoint(path: Path) -> str:
    """Compare a checkpoint's files with its manifest, and its state with its name."""
    hashes = typed(read_json(path / "manifest.json"), dict, f"{path}/manifest.json").get("sha256")
    outputs = typed(hashes, dict, f"{path}/manifest.json: sha256")
    require(
        [f"{path}/manifest.json does not name {name}" for name in _CHECKPOINT_FILES if name not in outputs]
        + differing_files(path, outputs)
    )
    step = _state(path).get("step")
    if step != _step(path):
        raise InputError(f"{path}/state.json is of step {step!r}.")
    return count_files(outputs)


_CHECKPOINT_FILES = ("model.safetensors", "optimizer.safetensors", "state.json")


def check_metrics(training: Training, store: TokenStore) -> str:
    """Whether the log has every step once and in order, and counts tokens as the config and the store do."""
    rows, extent, path = training.rows(), training.extent(store), training.work / "metrics.jsonl"
    faults = _on_policy_faults(training, rows, extent)
    before = {"loss": 0, "heldout_loss": -1, "scores": -1}
    last = 0
    for row in rows:
        kind = next((kind for kind in ("heldout_loss", "loss") if kind in row), "scores")
        step = row["step"]
        if step <= before[kind] or step < last:
            faults.append(f"step {step} comes after step {max(last, before[kind])} in {path}")
        elif step > extent.steps:
            faults.append(f"step {step} is beyond the {extent.steps} steps of the training")
        elif row.get("tokens") != (due := _position(extent, step) * store.seq_len):
            faults.append(f"step {step} says {row.get('tokens')!r} tokens and had read {due}")
        before[kind] = last = max(last, step)
    require(faults + (_against_record(training, rows, extent, store.seq_len) if training.finished else []))
    logged = sum("loss" in row for row in rows)
    return f"{logged} logged steps in order up to step {last} of {extent.steps}, tokens as counted"


def _on_policy_faults(training: Training, rows: list[dict[str, Any]], extent: Budget) -> list[str]:
    """Steps that the log, or distill.json, has on-policy otherwise than the seed decides."""
    config = training.config()
    if config.on_policy is None:
        return []
    due = [int(is_on_policy(config.on_policy, config.seed, step)) for step in range(extent.steps)]
    steps = [row for row in rows if "loss" in row and 0 < row["step"] <= extent.steps]
    faults = [
        f"step {row['step']} says on_policy = {row.get('on_policy')!r}, which by its seed is {due[row['step'] - 1]}"
        for row in steps
        if row.get("on_policy") != due[row["step"] - 1]
    ]
    if training.finished and (told := (training.record().get("on_policy") or {}).get("steps")) != sum(due):
        faults.append(f"{RECORD} says {told!r} on-policy steps, and by its seed there are {sum(due)}")
    return faults


def _against_record(training: Training, rows: list[dict[str, Any]], extent: Budget, seq_len: int) -> list[str]:
    """What differs between distill.json and the log of the training that it is the end of."""
    record = training.record()
    heldout = [row for row in rows if "heldout_loss" in row and row["step"] == extent.steps]
    last: dict[str, Any] = heldout[-1] if heldout else {}
    expected: dict[str, Any] = {
        "steps": extent.steps,
        "tokens": extent.rows * seq_len,
        "heldout_loss": last.get("heldout_loss"),
        # a record of an earlier version has no others
        **{name: last.get(name) for name in ("heldout_kl", "heldout_hard") if name in record},
    }
    faults = [
        f"{RECORD} says {name} = {record.get(name)!r}, and it was {value!r}"
        for name, value in expected.items()
        if record.get(name) != value
    ]
    if not any(row["step"] == extent.steps and "loss" in row for row in rows):
        faults.append(f"the last step, {extent.steps}, is not in the log")
    return faults


def check_order(training: Training, store: TokenStore) -> str:
    """Compute again which rows each step read, and compare the hashes of them that the run wrote down.

    Raises:
        Missing: the run wrote none down.
        InputError: a hash differs, a logged step lacks its hash though an earlier one has it.
    """
    claims = _claims(training)
    if not any(claim.sha256 is not None for claim in claims):
        raise Missing("the log has no hashes of the rows read")
    extent = training.extent(store)
    due: dict[int, list[Claim]] = {}
    for claim in claims:
        due.setdefault(claim.step, []).append(claim)
    faults = [
        f"{claim.where} is none of the {extent.steps} steps" for claim in claims if not 0 < claim.step <= extent.steps
    ]
    digest, compared = START, 0
    for step, ids in enumerate(_reads(training, store, extent, max(due)), 1):
        digest = extend(digest, ids)
        for claim in due.get(step, []):
            if claim.sha256 is None and compared:
                faults.append(f"{claim.where} has no {_HASH}, though steps before it have")
            elif claim.sha256 is not None:
                compared += 1
                if claim.sha256 != digest:
                    faults.append(f"{claim.where}: the {_HASH} is of other rows than those of the first {step} steps")
    require(faults)
    return f"{compared} hashes of the rows read, up to step {max(due)}, are those of the store's order"


def check_uses(training: Training, store: TokenStore) -> str:
    """Whether no row of the data was read twice within an epoch, and distill.json counts the tokens that were read."""
    extent, num_rows = training.extent(store), len(rows_left(training.config().select, store.num_rows))
    steps = extent.steps if training.finished else max((claim.step for claim in _claims(training)), default=0)
    if steps == 0:
        raise Missing("no step is finished")
    used = np.zeros(store.num_rows, dtype=bool)
    epoch = position = 0
    for ids in _reads(training, store, extent, steps):
        epochs = np.arange(position, position + len(ids)) // num_rows
        for number in np.unique(epochs):
            part = ids[epochs == number]
            if number != epoch:
                used[:], epoch = False, int(number)
            if used[part].any() or len(np.unique(part)) != len(part):
                raise InputError(f"a row is read twice in epoch {epoch} before row {position + len(ids)} of the run.")
            used[part] = True
        position += len(ids)
    tokens = position * store.seq_len
    if training.finished and training.record().get("tokens") != tokens:
        raise InputError(f"{RECORD} says {training.record().get('tokens')!r} tokens, and the steps read {tokens}.")
    return f"{position} rows ({tokens} tokens) of {num_rows} in {epoch + 1} epoch{'s' if epoch else ''}, none twice"


def _claims(training: Training) -> list[Claim]:
    """The hashes of logged steps and of checkpoints, None where a logged step has none."""
    rows = [row for row in training.rows() if "loss" in row and row["step"] > 0]
    claims = [Claim(row["step"], f"step {row['step']}", row.get(_HASH)) for row in rows]
    states = [(path.name, _state(path)) for path in training.checkpoints()]
    return claims + [
        Claim(typed(state.get("step"), int, f"{name}/state.json: step"), name, state[_HASH])
        for name, state in states
        if state.get(_HASH)
    ]


def _reads(training: Training, store: TokenStore, extent: Budget, steps: int) -> Iterator[NDArray[np.int64]]:
    """Row ids of each of the first `steps` steps."""
    config, selection = training.config(), training.selection(store)
    for position in range(0, _position(extent, steps), extent.rows_per_step):
        count = min(extent.rows_per_step, extent.rows - position)
        yield row_ids(store, selection, position, count, seed=config.seed, epochs=config.epochs)


def _position(extent: Budget, step: int) -> int:
    return min(step * extent.rows_per_step, extent.rows)


def _state(path: Path) -> dict[str, Any]:
    return typed(read_json(path / "state.json"), dict, f"{path}/state.json")


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))
