"""`compress prune`: teacher checkpoint in, student checkpoints out, each complete and checked or absent.

The copy starts before the model is known: headers and config.json nearly always tell which tensors a student keeps.
Torch and transformers are imported, the plan is made and the teacher is checked while the disk is at work, and a copy
that turns out to be of other tensors than planned is made again.
"""

import re
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from compress.base.disk import staged_folder
from compress.base.errors import Faults, UsageError
from compress.base.outputs import check_outputs
from compress.model.cuts import cuts_of
from compress.model.files import check_weight_files, model_fingerprint
from compress.prune.choose.candidates import Chosen
from compress.prune.config import How
from compress.prune.parts import ExpertsConfig, RepairConfig, StorageConfig
from compress.prune.record import PruneResult, student_output
from compress.prune.student import Call, Keep, Planned, load_shapes, needs_all, plan_student
from compress.prune.under_way import WeightsUnderWay
from compress.weights.hub import HubTeacher, open_teacher, streams
from compress.weights.room import disk_errors


def prune(
    teacher: str | Path,
    out: str | Path,
    keep: Keep = "alternate",
    *,
    check: bool = True,
    repair: RepairConfig | None = None,
    storage: StorageConfig | None = None,
    experts: ExpertsConfig | None = None,
    healed_from: Path | None = None,
) -> PruneResult:
    """Write to `out` the model `teacher` (a folder or a hub id) with the layers `keep` only: a SPEC, a measure, or
    those that `compress.run.rank_after` chose by healing candidates.

    The weights are copied byte for byte, unless `storage` asks for a cast, and the tokenizer, generation config, chat
    template and licence as they are. With `check`, the student's logits are compared with the teacher's, dropped layers
    skipped, where its fp32 weights fit in memory. With `repair` the cut is then repaired by least squares (see
    `compress.prune.repair`). With `experts` each mixture-of-experts layer keeps those that matter most on the text (see
    `compress.prune.experts.reap`). `out/prune.json` says what was done; and of a teacher that is the cut in
    `healed_from`, or was healed from it, which layers of the model that this was cut from stay, the first of a chain.

    Raises:
        UsageError: `keep` is no SPEC or reaches outside the layers, `out` is not free, a measure lacks its text, or
            `check` is False for a model type that only the check can vouch for.
        InputError: the teacher cannot be loaded, its weights are damaged, its config cannot be cut, the text that
            its layers are measured on cannot be used, or a weight is too large for the dtype it is cast to.
        CompressError: the student differs from the teacher, or the disk is full. Nothing is left in `out`.
    """
    how = How(check=check, repair=repair, storage=storage or StorageConfig(), experts=experts)
    return _prune(str(teacher), [(Path(out), keep)], how, healed_from)[0]


def prune_family(
    teacher: str | Path,
    out: str | Path,
    keeps: Sequence[str],
    *,
    check: bool = True,
    repair: RepairConfig | None = None,
    storage: StorageConfig | None = None,
    experts: ExpertsConfig | None = None,
) -> list[PruneResult]:
    """Write several students of one teacher, one a SPEC, into folders of `out`, reading the teacher's weights once.

    Each is what `prune` makes of its SPEC; `student_name` names its folder. They appear when all are done.

    Raises: as `prune`, and
        UsageError: two of `keeps` would have the same folder.
    """
    asked = list(zip(family_folders(Path(out), keeps), keeps, strict=True))
    return _prune(
        str(teacher), asked, How(check=check, repair=repair, storage=storage or StorageConfig(), experts=experts)
    )


def family_folders(out: Path, keeps: Sequence[str]) -> list[Path]:
    """The folder of each student of a family.

    Raises:
        UsageError: two would have the same.
    """
    folders = [out / student_name(keep) for keep in keeps]
    if len(set(folders)) < len(keeps) or not keeps:
        raise UsageError(f"--keep {', '.join(keeps) or '(none)'}: give one SPEC or several different ones.")
    return folders


def student_name(keep: str) -> str:
    """Folder of a family's student: its SPEC without spaces, `_` for `:` (`uniform_4`, `1__2`, `0,2,5-9`)."""
    return re.sub(r"\s", "", keep).replace(":", "_")


def _prune(
    teacher: str,
    asked: Sequence[tuple[Path, Keep]],
    how: How,
    healed_from: Path | None = None,
) -> list[PruneResult]:
    """Write a student into each folder of `asked`, cut as the choice of layers beside it says."""
    keeps = [keep for _, keep in asked]
    _look_ahead(teacher, asked, how)
    with ExitStack() as stack:
        needed_by = needs_all(keeps, how["repair"], how["experts"])
        stream = streams(teacher, how["storage"].stream, check=how["check"], needed_by=needed_by)
        folder, hub = stack.enter_context(open_teacher(teacher, stream=stream))
        files = check_weight_files(folder)
        call = Call(
            teacher=teacher,
            folder=folder,
            files=files,
            hub=hub,
            fingerprint=stack.enter_context(_fingerprint(folder, hub)),
            cuts=() if healed_from is None else cuts_of(healed_from),
            **how,
        )
        stack.enter_context(disk_errors(asked[0][0]))
        staged = [stack.enter_context(staged_folder(out)) for out, _ in asked]
        weights = stack.enter_context(WeightsUnderWay(call, staged))
        weights.start_early(keeps)
        students = [plan_student(call, keep) for keep in keeps]
        load_shapes(folder)
        weights.start(students)
        for student, at in zip(students, staged, strict=True):
            student.write_small_files(at)
        places = zip(students, staged, weights.finish(), asked, strict=True)
        return [student.finish(at, sha256, out) for student, at, sha256, (out, _) in places]


def _look_ahead(teacher: str, asked: Sequence[tuple[Path, Keep]], how: How) -> None:
    """Refuse what is known to be impossible, all at once.

    A plain cut is planned while its copy is under way, and there is nothing to ask before; unless it is refused anyway.
    """
    faults = Faults()
    check_outputs([student_output(out) for out, _ in asked], faults)
    plain = (
        all(isinstance(keep, str | Planned | Chosen) for _, keep in asked)
        and how["repair"] is None
        and how["experts"] is None
    )
    if faults.found or not plain:
        from compress.prune.preflight import check_students

        choices = [keep.asked if isinstance(keep, Chosen) else keep for _, keep in asked]
        unknown = [keep for keep in choices if not isinstance(keep, Planned)]
        check_students(teacher, [], unknown, faults, **how)
    faults.refuse()


@contextmanager
def _fingerprint(folder: Path, hub: HubTeacher | None) -> Iterator[Future[dict[str, str]]]:
    """The teacher's fingerprint under way; all of its bytes are hashed, unless the hub knows their hashes."""
    stop = threading.Event()
    with ThreadPoolExecutor(1, "fingerprint") as background:
        try:
            yield background.submit(hub.fingerprint if hub else partial(model_fingerprint, folder, stop=stop))
        finally:
            stop.set()
