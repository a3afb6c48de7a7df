"""`compress grow`: a student and its teacher in, models of sizes between out, each complete and checked or absent."""

import dataclasses
import functools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compress.base.config import to_dict
from compress.base.disk import sha256_file, staged_folder, write_json
from compress.base.errors import Faults, UsageError
from compress.base.records import manifest
from compress.model.files import copy_side_files, model_fingerprint, resolve_model
from compress.prune.check import CheckResult, check_student
from compress.prune.growth.blocks import Blocks, put_in
from compress.prune.growth.config import GrowConfig
from compress.prune.growth.order import Order, order_blocks
from compress.prune.growth.plan import Growth, plan_growth, require_teacher
from compress.prune.growth.preflight import check_growth
from compress.prune.growth.record import RECORD, GrownModel, GrowResult, grow_inputs
from compress.prune.plan import Derivation
from compress.prune.student import load_shapes, why_unchecked
from compress.weights.copying import Copying
from compress.weights.room import disk_errors, require_space
from compress.weights.shards import StudentTensor


def grow(student: str | Path, teacher: str | Path, out: str | Path, config: GrowConfig) -> GrowResult:
    """Write to `out` the model of `config.layers` layers (one number) between a `student` and the `teacher` that it was
    cut from, folders or local hub ids: what is outside the layers and the layers that stayed are the student's, those
    put back the teacher's, byte for byte.

    `out/grow.json` says which, and why.

    Raises:
        UsageError: the size does not lie between, `out` is not free, several sizes are asked for, or the order is to be
            measured and no text is named.
        InputError: a model cannot be loaded, they do not belong together, or the text cannot be used.
        CompressError: the model differs from the two together, or the disk is full. Nothing is left in `out`.
    """
    if len(config.layers) != 1:
        raise UsageError("grow.layers: one number is the size of one model; `grow_family` makes several.")
    return _grow(student, str(teacher), Path(out), config, family=False)


def grow_family(student: str | Path, teacher: str | Path, out: str | Path, config: GrowConfig) -> GrowResult:
    """Write a model of each size that is asked for to `out/SIZE`, and `out/grow.json` of all; as `grow` otherwise. Each
    larger one has the blocks of the smaller ones. They appear together, when all are done."""
    return _grow(student, str(teacher), Path(out), config, family=True)


def _grow(student: str | Path, teacher: str, out: Path, config: GrowConfig, *, family: bool) -> GrowResult:
    started, faults = time.monotonic(), Faults()
    check_growth(student, teacher, out, config, faults)
    faults.refuse()
    for name in (str(student), teacher):
        resolve_model(name)  # what lies on the hub comes whole
    growth = plan_growth(student, teacher, config)
    inputs = {
        role: find()
        for role, find in grow_inputs(
            lambda: model_fingerprint(growth.student), functools.partial(require_teacher, growth), config
        ).items()
    }
    order = order_blocks(config, growth, growth.derive(growth.layers(growth.sizes[-1], growth.stand_in())))
    with disk_errors(out), staged_folder(out) as staged:
        folders = [staged / str(size) if family else staged for size in growth.sizes]
        models = [_Model.planned(growth, order, size) for size in growth.sizes]
        hashes = _write(growth, models, folders)
        made = []
        for model, folder, sha256 in zip(models, folders, hashes, strict=True):
            record = model.finish(folder, sha256, config)
            record["manifest"] = _manifest(config, inputs, record["sha256"], started)
            write_json(folder / RECORD, record)
            made.append(GrownModel(out=out / folder.relative_to(staged), record=record))
        if family:
            record = _family_record(growth, order, made) | {
                "manifest": _manifest(config, inputs, _of_family(made, out), started)
            }
            write_json(staged / RECORD, record)
    return GrowResult(out=out, growth=growth, models=made, record=record)


def _write(growth: Growth, models: Sequence["_Model"], folders: Sequence[Path]) -> list[dict[str, str]]:
    """Write all files of the models but their records; SHA-256 of the weight files by name, for each."""
    blocks = Blocks(growth, models[0].derivation.layer_prefixes)
    tensors: list[list[StudentTensor]] = [blocks.tensors(model.layers) for model in models]
    for folder in folders:
        folder.mkdir(exist_ok=True)
    require_space(folders[0], sum(tensor.num_bytes for each in tensors for tensor in each))
    with Copying(list(zip(folders, tensors, strict=True))) as copying:
        for model, folder in zip(models, folders, strict=True):
            write_json(folder / "config.json", model.derivation.student_json)
            copy_side_files(growth.student, folder)
            load_shapes(folder)
        return copying.finish()


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Model:
    """A model to make."""

    growth: Growth
    order: Order
    layers: tuple[int, ...]
    derivation: Derivation

    @classmethod
    def planned(cls, growth: Growth, order: Order, size: int) -> "_Model":
        layers = growth.layers(size, order.layers)
        return cls(growth=growth, order=order, layers=layers, derivation=growth.derive(layers))

    def finish(self, at: Path, sha256: dict[str, str], config: GrowConfig) -> dict[str, Any]:
        """Check the model in the folder `at`; its record, without a manifest."""
        growth, plan = self.growth, self.derivation.plan
        names = sorted(path.relative_to(at).as_posix() for path in at.rglob("*") if path.is_file())
        skipped = why_unchecked(plan, check=config.check, streamed=False)
        checked = CheckResult(passed=False, skipped=skipped)
        if skipped is None:
            change = functools.partial(put_in, growth=growth)
            checked = check_student(growth.teacher, at, plan.dropped_layers, growth.rounds, change)
        put_back = [layer for layer in self.order.layers if layer in self.layers]
        return {
            **_models(growth),
            "kept_layers": self.layers,
            "dropped_layers": plan.dropped_layers,
            "put_back": put_back,
            "by": config.by,
            "order": self.order.details,
            "params": plan.params_after,
            "dtype": growth.dtype,
            "check": dataclasses.asdict(checked),
            "sha256": {name: sha256.get(name) or sha256_file(at / name) for name in names},
        }


def _models(growth: Growth) -> dict[str, Any]:
    return {"student": str(growth.student), "teacher": growth.name, "student_layers": growth.kept}


def _family_record(growth: Growth, order: Order, made: Sequence[GrownModel]) -> dict[str, Any]:
    sizes = {str(len(model.record["kept_layers"])): model.record["kept_layers"] for model in made}
    return {
        **_models(growth),
        "sizes": sizes,
        "put_back": order.layers,
        "by": made[0].record["by"],
        "order": order.details,
    }


def _of_family(made: Sequence[GrownModel], out: Path) -> dict[str, str]:
    """SHA-256 of the files of all models, by their paths in the family's folder."""
    return {
        f"{model.out.relative_to(out)}/{name}": sha for model in made for name, sha in model.record["sha256"].items()
    }


def _manifest(config: GrowConfig, inputs: dict[str, Any], outputs: dict[str, str], started: float) -> dict[str, Any]:
    return manifest(config=to_dict(config), inputs=inputs, outputs=outputs, seconds=time.monotonic() - started)
