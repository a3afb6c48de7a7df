"""One student of a call: planned, written, compared with its teacher, repaired, recorded."""

import dataclasses
import time
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.base.disk import sha256_file, write_json
from compress.base.errors import InputError, UsageError
from compress.base.records import manifest
from compress.model.cuts import Cut
from compress.model.files import WEIGHT_FILES, copy_side_files
from compress.prune.choose.candidates import Chosen, RankAfterConfig
from compress.prune.choose.spec import format_layers
from compress.prune.config import How
from compress.prune.parts import ExpertsConfig, RankingConfig, RepairConfig, StorageConfig
from compress.prune.record import RECORD, PruneResult, prune_inputs, prune_settings
from compress.prune.rules.fields import VERIFIED_TYPES
from compress.weights.hub import HubTeacher

if TYPE_CHECKING:
    from compress.prune.choose.ranking import RankedModel, Ranking
    from compress.prune.experts.reap import ExpertChoice
    from compress.prune.plan import Derivation, PrunePlan

_ASKED_NOT_TO = "asked not to"
_STREAMED = "of the teacher, only what the student keeps was read"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Planned:
    """Layers by their SPEC, with the plan of the cut."""

    keep: str
    derivation: "Derivation"


Keep = str | RankingConfig | Chosen | Planned
"""A SPEC, a measure that is to choose, layers that were chosen, or a cut that is planned already."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Call:
    """What all students of one call share."""

    teacher: str
    """What the user calls it."""
    folder: Path
    files: Sequence[Path]
    hub: HubTeacher | None
    """Where the weights come from when `folder` has only their headers."""
    fingerprint: Future[dict[str, str]]
    """Of the teacher, under way."""
    check: bool
    repair: RepairConfig | None
    storage: StorageConfig
    experts: ExpertsConfig | None = None
    cuts: tuple[Cut, ...]
    """Of the cut that the teacher was healed from."""
    started: float = dataclasses.field(default_factory=time.monotonic)

    @property
    def how(self) -> How:
        """How its students are made, whichever layers stay."""
        return How(check=self.check, repair=self.repair, storage=self.storage, experts=self.experts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Student:
    """A student that is planned; `at` is the folder it is made in."""

    call: Call
    keep: str | RankingConfig | RankAfterConfig
    """What was asked for."""
    derivation: "Derivation"
    ranking: "Ranking | None"
    experts: "ExpertChoice | None"
    """Which experts stay; None where all do."""
    skip: str | None
    """Why it will not be compared with its teacher."""

    def write_small_files(self, at: Path) -> None:
        """Write all but the weights, and load the student for its shapes, which needs the headers of those only."""
        write_json(at / "config.json", self.derivation.student_json)
        copy_side_files(self.call.folder, at)
        load_shapes(at)

    def finish(self, at: Path, sha256: dict[str, str], out: Path) -> PruneResult:
        """Check, repair and record; `sha256` is of the weights, `out` where the folder will be.

        Raises: as `prune`.
        """
        from compress.prune.check import CheckResult, check_student

        call, plan = self.call, self.derivation.plan
        names = {path.relative_to(at).as_posix(): path for path in at.rglob("*") if path.is_file()}
        sha256 = {name: sha256.get(name) or sha256_file(path) for name, path in sorted(names.items())}
        checked = CheckResult(passed=False, skipped=self.skip)
        if self.skip is None:
            checked = check_student(call.folder, at, plan.dropped_layers, call.storage.cast, self._mask)
        repaired = None
        if call.repair is not None:
            from compress.prune.repair import repair

            repaired = repair(call.repair, call.folder, at, plan.kept_layers, plan.num_layers)
            sha256 |= {path.name: sha256_file(path) for path in at.glob(WEIGHT_FILES)}
        inputs = prune_inputs(call.fingerprint.result, self.keep, call.repair, call.experts)
        record = plan.to_dict() | {
            **self._original(),
            "method": "spec" if self.ranking is None else self.ranking.method,
            "scores": None if self.ranking is None else self.ranking.scores or None,
            "ranking": None if self.ranking is None else self.ranking.details,
            "experts": None if self.experts is None else self.experts.to_dict(),
            "repair": repaired,
            "streamed": call.hub.to_dict() if call.hub else None,
            "bytes_before": sum(path.stat().st_size for path in call.files),
            "bytes_after": sum(path.stat().st_size for path in at.glob(WEIGHT_FILES)),
            "sha256": sha256,
            "check": dataclasses.asdict(checked),
            "manifest": manifest(
                config=prune_settings(self.keep, **call.how),
                inputs={role: find() for role, find in inputs.items()},
                outputs=sha256,
                seconds=time.monotonic() - call.started,
            ),
        }
        write_json(at / RECORD, record)
        return PruneResult(out=out, plan=plan, check=checked, record=record)

    def _mask(self, teacher: Any) -> None:
        """Let the teacher give nothing to the experts that are dropped."""
        if self.experts is not None:
            from compress.prune.experts.masked import mask_experts

            mask_experts(teacher, self.experts.kept)

    def _original(self) -> dict[str, Any]:
        """Of a later cut of a chain, the layers of the first model that stay."""
        if not self.call.cuts:
            return {}
        plan = self.derivation.plan
        return {"original": Cut(plan.kept_layers, plan.num_layers).of(self.call.cuts[-1]).to_dict()}


def needs_all(
    keeps: Sequence[Keep | RankAfterConfig], repair: RepairConfig | None, experts: ExpertsConfig | None
) -> str | None:
    """What, beside the check, reads weights that the student does not keep."""
    if experts is not None:
        return "measuring experts"
    if not all(isinstance(keep, str | Planned) for keep in keeps):
        return "measuring layers"
    return "the repair" if repair is not None else None


def plan_student(call: Call, keep: Keep) -> Student:
    """Derive the student's config, from layers that are measured first if that is asked for.

    Raises: as `prune`.
    """
    from compress.prune.plan import cast_derivation, derive

    asked: str | RankingConfig | RankAfterConfig
    ranking = None
    if isinstance(keep, Planned):
        asked, derivation = keep.keep, keep.derivation
    else:
        asked, ranking = (keep.asked, keep.ranking) if isinstance(keep, Chosen) else (keep, None)
        derivation = derive(call.teacher, call.folder, asked, call.experts)
    skip = why_unchecked(derivation.plan, check=call.check, streamed=call.hub is not None)
    if isinstance(keep, RankingConfig):
        ranking = _rank(keep, call.teacher, call.folder, derivation)
    if ranking is not None:
        derivation = derive(call.teacher, call.folder, format_layers(ranking.kept_layers), call.experts)
    derivation = cast_derivation(derivation, call.storage.cast)
    experts = None if call.experts is None else _experts(call.experts, call, derivation)
    return Student(call=call, keep=asked, derivation=derivation, ranking=ranking, experts=experts, skip=skip)


def measure_layers(teacher: str, folder: Path, config: RankingConfig) -> "Ranking":
    """Score the layers of the model in `folder`, which the user calls `teacher`; raises as `prune` does."""
    from compress.prune.plan import derive

    return _rank(config, teacher, folder, derive(teacher, folder, config))


def load_shapes(folder: Path) -> None:
    """Load a model strictly, but for its numbers.

    Raises:
        InputError: a key is missing, unexpected or of another shape; the message names it.
    """
    import torch

    from compress.model.load import load_model

    load_model(folder, dtype=torch.float32, device="meta", device_map="meta")


def _rank(config: RankingConfig, name: str, folder: Path, derivation: "Derivation") -> "Ranking":
    from compress.prune.choose.ranking import rank_layers

    return rank_layers(config, _subject(name, folder, derivation))


def _experts(config: ExpertsConfig, call: Call, derivation: "Derivation") -> "ExpertChoice":
    from compress.prune.experts.reap import choose_experts

    plan = derivation.plan
    assert plan.experts_before is not None
    assert plan.experts_after is not None
    subject = _subject(call.teacher, call.folder, derivation)
    return choose_experts(config, subject, plan.experts_before, plan.experts_after)


def _subject(name: str, folder: Path, derivation: "Derivation") -> "RankedModel":
    from compress.prune.choose.ranking import RankedModel

    return RankedModel(
        name=name,
        folder=folder,
        num_layers=derivation.plan.num_layers,
        layer_prefixes=derivation.layer_prefixes,
        num_parameters=derivation.plan.params_before,
    )


def why_unchecked(plan: "PrunePlan", *, check: bool, streamed: bool) -> str | None:
    """Why the comparison with the teacher will not run; a type we have not verified must have it.

    Raises:
        UsageError: it must, and was asked not to.
        InputError: it must, and there is too little memory.
    """
    from compress.prune.check import reason_to_skip

    reason = reason_to_skip(plan.params_before) if check else _ASKED_NOT_TO
    if streamed:
        reason = _STREAMED
    if reason is None or plan.model_type in VERIFIED_TYPES:
        return reason
    refusal = (
        f"{plan.model_type} is not among the {len(VERIFIED_TYPES)} model types whose code was read for this "
        "(VERIFIED_TYPES in compress.prune.rules.fields), so the student must be compared with its teacher"
    )
    if not check or streamed:
        raise UsageError(f"{refusal}. Leave the check on{', and streaming out' if streamed else ''}.")
    raise InputError(f"{refusal}, but {reason}. Run it on a machine with more memory.")
