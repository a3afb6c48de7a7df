"""`compress prune`: teacher checkpoint in, student checkpoint out, complete and checked or not at all."""

import dataclasses
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field

from compress.artifacts import manifest, require_free, sha256_file, staged_folder, write_json
from compress.config import config, to_dict
from compress.errors import CompressError, InputError, UsageError
from compress.models import (
    WEIGHT_FILES,
    check_weight_files,
    copy_side_files,
    load_model,
    model_fingerprint,
    resolve_model,
)
from compress.prune.calibration import AtLeastOne, CalibrationConfig, calibration_fingerprint
from compress.prune.check import CheckResult, check_student, reason_to_skip
from compress.prune.fields import VERIFIED_TYPES
from compress.prune.plan import Derivation, PrunePlan, derive
from compress.prune.ranking import WITHOUT_TEXT, Method, Ranking, RankingConfig, Teacher, rank_layers
from compress.prune.repair import RepairConfig
from compress.prune.repair import repair as repair_student
from compress.prune.spec import PATTERN, check_spec, format_layers
from compress.prune.weights import MAX_SHARD_BYTES, StoredTensor, copy_weights, select_tensors
from compress.units import Count, format_bytes

RECORD = "prune.json"
_ASKED_NOT_TO = "asked not to"


@config
class PruneConfig(CalibrationConfig):
    """Which layers stay, by name (`keep`) or by measure (`layers` and `by`), and whether the student is compared with
    its teacher."""

    keep: str | None = None
    """SPEC: alternate | a slice 1::2 | a list 0,2,5-9 | uniform:N | contiguous:N (N layers stay), or pattern:SPEC.
    `alternate` when neither it nor `layers` is given."""
    preserve_pattern: bool = False
    """Keep as many layers as `keep` says, but of each type of layer (sliding or full attention, dense or sparse) its
    share, the last layer kept."""
    layers: AtLeastOne | None = None
    """How many layers stay, those that matter most `by` a measure."""
    by: Method | None = None
    """METHOD: block-influence | angular | perplexity | perplexity-greedy | taylor | magnitude | random."""
    seed: Count = 0
    """Of the draw, for `by: random`."""
    repair: bool = False
    """Change the block before each cut by least squares, so that it does some of what was dropped."""
    repair_ridge: Annotated[float, Field(gt=0)] = 1e-3
    """Pull of the repair towards no change, in mean squares of the input of the map that is changed."""
    check: bool = True
    """Compare the student's logits with the teacher's, dropped layers skipped (needs 5 bytes a teacher parameter)."""

    def __post_init__(self) -> None:
        if (self.layers is None) != (self.by is None):
            raise ValueError("`layers` (how many stay) and `by` (the METHOD that chooses them) go together")
        if self.keep is not None and self.by is not None:
            raise ValueError("`keep` names the layers and `by` measures them; write one of the two")
        if self.by is None:
            object.__setattr__(self, "keep", self.keep or "alternate")
            check_spec(str(self.choice))
        elif self.preserve_pattern:
            raise ValueError("`preserve_pattern` chooses layers by their type and `by` by a measure; write one of them")

    @property
    def choice(self) -> str | RankingConfig:
        """What `prune` takes as `keep`."""
        if self.layers is None or self.by is None:
            return f"{PATTERN}{self.keep}" if self.preserve_pattern else str(self.keep)
        return RankingConfig(**{name: getattr(self, name) for name in RankingConfig.__dataclass_fields__})

    @property
    def repairing(self) -> RepairConfig | None:
        """What `prune` takes as `repair`."""
        if not self.repair:
            return None
        return RepairConfig(**{name: getattr(self, name) for name in RepairConfig.__dataclass_fields__})


@dataclasses.dataclass(frozen=True, kw_only=True)
class PruneResult:
    """A student on disk. `record` is the content of its prune.json."""

    out: Path
    plan: PrunePlan
    check: CheckResult
    record: dict[str, Any]

    def describe(self) -> str:
        """The result for people, a few lines."""
        if self.check.skipped is not None:
            checked = f"not compared with the teacher: {self.check.skipped}"
        else:
            checked = (
                f"equals the teacher with dropped layers skipped: logits within {self.check.max_abs_difference:.2g}, "
                f"cached within {self.check.max_abs_difference_cached:.2g} (largest logit "
                f"{self.check.max_abs_logit:.3g})"
            )
            if self.check.teacher_cache_differs:
                checked += "; with a cache both write other text than without, the student as its teacher's"
        if repaired := self.record["repair"]:
            checked += (
                f"\nrepaired: loss {repaired['loss_nats_before']:.4f} -> {repaired['loss_nats_after']:.4f} nats a "
                f"token on text that was not fitted (teacher {repaired['loss_nats_teacher']:.4f})"
            )
        return f"{self.plan.describe()}\n{checked}\nwritten to {self.out}"


def prune(
    teacher: str | Path,
    out: str | Path,
    keep: str | RankingConfig = "alternate",
    *,
    check: bool = True,
    repair: RepairConfig | None = None,
) -> PruneResult:
    """Write to `out` the model `teacher` (a folder or a hub id) with the layers `keep` only: a SPEC, or a measure.

    The weights are copied byte for byte and the tokenizer, generation config, chat template and licence as they are.
    With `check`, the student's logits are compared with the teacher's, dropped layers skipped, where its fp32 weights
    fit in memory. With `repair` the cut is then repaired by least squares (see `compress.prune.repair`).
    `out/prune.json` says what was done.

    Raises:
        UsageError: `keep` is no SPEC or reaches outside the layers, `out` is not free, a measure lacks its text, or
            `check` is False for a model type that only the check can vouch for.
        InputError: the teacher cannot be loaded, its weights are damaged, its config cannot be cut, or the text that
            its layers are measured on cannot be used.
        CompressError: the student differs from the teacher, or the disk is full. Nothing is left in `out`.
    """
    started = time.monotonic()
    out = Path(out)
    require_free(out)
    folder = resolve_model(str(teacher))
    derivation = derive(str(teacher), folder, keep)
    skip = _reason_to_skip(derivation.plan, check)
    files = check_weight_files(folder)
    load_model(folder, dtype=torch.float32, device="meta", device_map="meta")
    inputs = prune_inputs(folder, keep, repair)
    ranking = None
    if isinstance(keep, RankingConfig):
        ranking = _rank(keep, str(teacher), folder, derivation)
        derivation = derive(str(teacher), folder, format_layers(ranking.kept_layers))
    plan = derivation.plan
    tensors = select_tensors(files, derivation.layer_prefixes, plan.kept_layers, plan.num_layers)
    _require_space(out, sum(tensor.num_bytes for _, tensor in tensors))
    with _disk_errors(out), staged_folder(out) as partial:
        sha256 = _write_student(folder, partial, tensors, derivation.student_json)
        result = CheckResult(passed=False, skipped=skip)
        if skip is None:
            result = check_student(folder, partial, plan.dropped_layers)
        repaired = None
        if repair is not None:
            repaired = repair_student(repair, folder, partial, plan.kept_layers, plan.num_layers)
            sha256 |= {path.name: sha256_file(path) for path in partial.glob(WEIGHT_FILES)}
        record = plan.to_dict() | {
            "method": "spec" if ranking is None else ranking.method,
            "scores": None if ranking is None else ranking.scores,
            "ranking": None if ranking is None else ranking.details,
            "repair": repaired,
            "bytes_before": sum(path.stat().st_size for path in files),
            "bytes_after": sum(path.stat().st_size for path in partial.glob(WEIGHT_FILES)),
            "sha256": sha256,
            "check": dataclasses.asdict(result),
            "manifest": manifest(
                config=prune_settings(keep, check=check, repair=repair),
                inputs=inputs,
                outputs=sha256,
                seconds=time.monotonic() - started,
            ),
        }
        write_json(partial / RECORD, record)
    return PruneResult(out=out, plan=plan, check=result, record=record)


def prune_settings(keep: str | RankingConfig, *, check: bool, repair: RepairConfig | None = None) -> dict[str, Any]:
    """What was asked of `prune`, for its manifest; which text it reads, `prune_inputs` says by content."""
    asked: dict[str, Any] = {"keep": keep} if isinstance(keep, str) else to_dict(keep)
    if repair is not None:
        asked |= {"repair": True, **to_dict(repair)}
    asked.pop("calibration", None)
    return {**asked, "check": check}


def prune_inputs(folder: Path, keep: str | RankingConfig, repair: RepairConfig | None = None) -> dict[str, Any]:
    """Fingerprints of what `prune` reads, for its manifest: the teacher, and the text it is measured or repaired on."""
    inputs: dict[str, Any] = {"teacher": model_fingerprint(folder)}
    if isinstance(keep, RankingConfig) and keep.by not in WITHOUT_TEXT:
        inputs["calibration"] = calibration_fingerprint(keep.calibration)
    if repair is not None:
        inputs["repair"] = calibration_fingerprint(repair.calibration)
    return inputs


def _rank(config: RankingConfig, name: str, folder: Path, derivation: Derivation) -> Ranking:
    subject = Teacher(
        name=name,
        folder=folder,
        num_layers=derivation.plan.num_layers,
        layer_prefixes=derivation.layer_prefixes,
        num_parameters=derivation.plan.params_before,
    )
    return rank_layers(config, subject)


def _write_student(
    folder: Path, out: Path, tensors: Sequence[tuple[str, StoredTensor]], config_json: dict[str, Any]
) -> dict[str, str]:
    """Write the student's files into `out`, load it strictly (shapes only) and return each file's SHA-256."""
    sha256 = copy_weights(tensors, out, MAX_SHARD_BYTES)
    write_json(out / "config.json", config_json)
    copy_side_files(folder, out)
    load_model(out, dtype=torch.float32, device="meta", device_map="meta")
    for path in (path for path in out.rglob("*") if path.is_file()):
        name = path.relative_to(out).as_posix()
        sha256[name] = sha256.get(name) or sha256_file(path)
    return dict(sorted(sha256.items()))


def _reason_to_skip(plan: PrunePlan, check: bool) -> str | None:
    """Why the comparison with the teacher will not run; a type we have not verified must have it."""
    reason = reason_to_skip(plan.params_before) if check else _ASKED_NOT_TO
    if reason is None or plan.model_type in VERIFIED_TYPES:
        return reason
    refusal = (
        f"{plan.model_type} is not among the model types whose every config field this tool has verified "
        f"({', '.join(sorted(VERIFIED_TYPES))}), so the student must be compared with its teacher"
    )
    if not check:
        raise UsageError(f"{refusal}. Leave the check on.")
    raise InputError(f"{refusal}, but {reason}. Run it on a machine with more memory.")


def _require_space(out: Path, needed: int) -> None:
    parent = next(path for path in out.absolute().parents if path.is_dir())
    free = shutil.disk_usage(parent).free
    if needed > free:
        raise CompressError(
            f"{out} needs {format_bytes(needed)} and {format_bytes(free)} are free in {parent}. Make room, or write "
            "the student to another disk."
        )


@contextmanager
def _disk_errors(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CompressError(
            f"{out} could not be written ({error.strerror or error}); what was there of it is removed. Make room on "
            "the disk, or write the student elsewhere."
        ) from error
