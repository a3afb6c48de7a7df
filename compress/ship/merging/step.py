"""`compress merge`: several models in, one out, complete or absent; a tensor of each is in memory at a time."""

import dataclasses
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from compress.base.config import to_dict
from compress.base.disk import sha256_tree, staged_folder, write_json
from compress.base.errors import InputError
from compress.base.progress import progress_bar
from compress.base.records import manifest
from compress.base.units import format_bytes, format_count
from compress.model.files import copy_side_files, model_fingerprint, resolve_model
from compress.model.load import load_model
from compress.ship.merging.config import RECORD, MergeConfig
from compress.ship.merging.methods import Merge, merging
from compress.ship.merging.plan import MergePlan, plan_merge
from compress.weights.headers import FLOATS, StoredTensor
from compress.weights.room import disk_errors, require_space
from compress.weights.shards import StudentTensor, index_json, split

_INDEX = "model.safetensors.index.json"
_MAX_SHARD_BYTES = 5 * 10**9


@dataclasses.dataclass(frozen=True, kw_only=True)
class MergeResult:
    """A merged model on disk. `record` is the content of its merge.json."""

    out: Path
    record: dict[str, Any]

    def describe(self) -> str:
        """The result for people, a few lines."""
        record = self.record
        base = "" if record["base"] is None else f" on {record['base']}"
        return (
            f"{', '.join(record['models'])} merged by {record['method']}{base}: {format_count(record['params'])} "
            f"parameters, {format_bytes(record['bytes'])}\nwritten to {self.out}"
        )


def merge(models: Sequence[str | Path], out: str | Path, config: MergeConfig) -> MergeResult:
    """Write to `out` the model whose weights are those of several `models`, folders or hub ids of one architecture, put
    together by `config.method` (see `compress.ship.merging.methods`).

    Each tensor is merged in float32 and rounded to the dtype that the first model stores it in; tokenizer, config and
    generation config are the first's. `out/merge.json` says what was merged.

    Raises:
        UsageError: too few or too many models, or `out` is not free.
        InputError: a model cannot be used, is not like the first, or the result is not finite.
        CompressError: the disk is full. Nothing is left in `out`.
    """
    started, out, names = time.monotonic(), Path(out), [str(model) for model in models]
    for name in (*names, *([config.base] if config.base is not None else [])):
        resolve_model(name)  # what lies on the hub comes whole
    plan = plan_merge(names, out, config)
    prints = [model_fingerprint(model.side) for model in plan.models]
    with disk_errors(out), staged_folder(out) as staged:
        _write(plan, merging(config, plan.num_models), staged)
        shutil.copyfile(plan.models[0].side / "config.json", staged / "config.json")
        copy_side_files(plan.models[0].side, staged)
        load_model(staged, dtype=torch.float32, device="meta", device_map="meta")
        sha256 = sha256_tree(staged)
        record: dict[str, Any] = {
            **to_dict(config),
            "models": names,
            "params": plan.parameters,
            "bytes": sum(path.stat().st_size for path in staged.glob("*.safetensors")),
            "sha256": sha256,
        }
        inputs = {"models": prints[: plan.num_models], "base": prints[plan.num_models :] or None}
        seconds = time.monotonic() - started
        record["manifest"] = manifest(config=to_dict(config), inputs=inputs, outputs=sha256, seconds=seconds)
        write_json(staged / RECORD, record)
    return MergeResult(out=out, record=record)


def _write(plan: MergePlan, method: Merge, out: Path) -> None:
    """Write the merged weights, in files as the first model's are."""
    first = plan.tensors[0]
    shards = split([StudentTensor.same(name, tensor) for name, tensor in first.items()], _MAX_SHARD_BYTES)
    require_space(out, sum(shard.num_bytes for shard in shards))
    if len(shards) > 1:
        write_json(out / _INDEX, index_json(shards))
    with progress_bar("merging weights", len(first), unit="tensors") as bar:
        for shard in shards:
            with (out / shard.name).open("wb") as file:
                file.write(shard.start())
                for tensor in shard.tensors:
                    file.write(_merged(plan, method, tensor.name).view(torch.uint8).numpy().data)
                    bar.advance()


def _merged(plan: MergePlan, method: Merge, name: str) -> Tensor:
    """The bytes of a merged tensor; one that holds no real numbers must be the same in all models.

    Raises:
        InputError: it is not, or a number of the result is not finite.
    """
    stored = [its[name] for its in plan.tensors]
    values = [_read(tensor) for tensor in stored]
    if stored[0].dtype not in FLOATS:
        if not all(torch.equal(values[0], value) for value in values[1:]):
            raise InputError(f"The tensor {name} holds integers, and not the same in all models: it cannot be merged.")
        return values[0].flatten()
    numbers = [value.float() for value in values]
    models, base = numbers[: plan.num_models], next(iter(numbers[plan.num_models :]), None)
    merged = method(models, base).to(values[0].dtype).flatten()
    if not merged.isfinite().all():
        raise InputError(
            f"The merged tensor {name} holds numbers that are not finite: one of the models does too ("
            f"{', '.join(str(tensor.path) for tensor in stored)}), or they are too large for {FLOATS[stored[0].dtype]}."
        )
    return merged


def _read(tensor: StoredTensor) -> Tensor:
    with safe_open(tensor.path, framework="pt") as file:
        value: Tensor = file.get_tensor(tensor.name)
    return value
