"""Everything a run holds before its first step: checked inputs, models, optimizer, and where it continues from."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from compress.base.config import to_dict
from compress.base.currency import Inputs, input_changes, inputs_now, setting_changes
from compress.base.disk import sha256_json
from compress.base.errors import UsageError
from compress.base.processes import on_main
from compress.base.progress import say
from compress.data.alignment import Retelling
from compress.data.store.pictures import PictureReader
from compress.distill.config import DistillConfig
from compress.distill.loop import checkpoint
from compress.distill.loop.ability import Ability
from compress.distill.loop.accelerator import make_accelerator, prepare_model
from compress.distill.loop.optimizer import StudentOptimizer, make_optimizer
from compress.distill.loop.progress import Progress, other_version, read_progress
from compress.distill.loop.step import Losses, StudentWithLoss
from compress.distill.objective.objective import Objective, make_objective
from compress.distill.objective.part import Pair
from compress.distill.objective.schedules import Setting
from compress.distill.objective.signals import Needs
from compress.distill.resources.auto import Here, resolve
from compress.distill.resources.flops import (
    PeakFlops,
    measuring_flops_per_token,
    peak_flops,
    training_flops_per_token,
)
from compress.distill.resources.schedule import Budget, budget, heldout_rows, heldout_steps
from compress.distill.rollouts.state import Rollouts
from compress.distill.rollouts.writing import Writer
from compress.distill.rows.batch import Batch
from compress.distill.rows.masking import Masking
from compress.distill.rows.selection import Selection
from compress.distill.rows.source import RowSource, StoreRows
from compress.distill.students.parts import sketch
from compress.distill.students.student import Student, WithLearned, load_student
from compress.distill.teachers.cache import TeacherCache
from compress.distill.teachers.cached import CachedTeacher, check_vocabulary
from compress.distill.teachers.other_tokenizer import measure_alignment
from compress.distill.teachers.several import SeveralTeachers, other_inputs
from compress.distill.teachers.shared import SharedTeacher
from compress.distill.teachers.source import OpenedTeacher, open_teacher
from compress.inference.decoding import end_tokens
from compress.model.cuts import cuts_of, kept_layers
from compress.model.files import model_fingerprint
from compress.model.kinds import kind_of
from compress.model.load import load_config, load_tokenizer
from compress.model.vision import load_processor
from compress.model.vocabulary import check_data, shared_ids


@dataclasses.dataclass
class Session:
    """A run, ready for its first or next step."""

    config: DistillConfig
    inputs: dict[str, Any]
    """Hashes of what it is made from; see `fingerprints`."""
    accelerator: Any
    student: Student
    model: Any
    """The student with its objective, as accelerate prepared it or split over the processes."""
    optimizer: StudentOptimizer
    objective: Objective
    guide: OpenedTeacher
    losses: Losses
    writer: Writer | None
    """Lets the student write in on-policy steps; None where there are none."""
    rows: RowSource
    heldout: Batch
    """Held-out rows to measure on."""
    measured: frozenset[int]
    """The steps after which that is done, beside the start."""
    budget: Budget
    flops_per_token: float
    peak: PeakFlops
    """Of one process's device."""
    progress: Progress
    ability: Ability | None
    """What it is scored on in between; None where it is not."""
    notes: dict[str, Any]
    """Fields of distill.json: what was decided for this machine, and the quantised teacher's KL."""
    outlook: str = ""
    """What the held-out measure is expected to be at the end, in words, for the progress line."""

    @property
    def tokens(self) -> int:
        """Tokens of the data read so far."""
        return self.progress.position * self.rows.seq_len

    @property
    def learned_tokens(self) -> int:
        """Tokens that went through the models to be learned from so far: those of the data or, in on-policy steps, of
        prompts and rollouts in place of the rows."""
        own = self.progress.rollouts
        return self.tokens + (0 if own is None else own.prompt_tokens + own.tokens - own.rows * self.rows.seq_len)

    def setting(self) -> Setting:
        """What the options say of the next step; after the last one, of that."""
        return self.objective.at(self.progress.step / self.budget.steps, self.progress.levels)


def fingerprints(
    student: Path,
    teacher: Path | None,
    store: Any,
    cache: TeacherCache | None = None,
    others: Sequence[Path] = (),
    until: Inputs = MappingProxyType({}),
) -> dict[str, str | None]:
    """One hash for each input; what a checkpoint and a finished student are checked against."""
    return {
        "student": sha256_json(model_fingerprint(student)),
        "teacher": None if teacher is None else sha256_json(model_fingerprint(teacher)),
        "data": store.fingerprint,
        "cache": None if cache is None else cache.fingerprint,
        **inputs_now({**other_inputs([functools.partial(Path, folder) for folder in others]), **until}),
    }


def open_session(
    config: DistillConfig,
    *,
    student: Path,
    teacher: Path | None,
    store: Any,
    cache: TeacherCache | None = None,
    others: Sequence[Path] = (),
    retelling: Retelling | None = None,
    selection: Selection | None,
    inputs: dict[str, Any],
    work: Path,
    guide: OpenedTeacher | None = None,
    beside: Needs | None = None,
    ability: Ability | None = None,
) -> Session:
    """Check everything that can be checked, load the models, and continue from the last checkpoint if there is one.

    With a `cache` the teacher is not loaded, nor with a `guide`, which another session has opened: how much is
    measured, and how, is as if it were. The `others` are those of the options' mixture. With `beside`, which is what
    the objectives of other sessions need of the teacher, it is opened for all of them. With a `retelling` the teacher
    has another tokenizer.

    Raises:
        UsageError: a budget the store cannot fill, a missing tracker, or a checkpoint of another run in `work`.
        InputError: models, tokenizers and data that do not belong together, or a model that cannot be saved again.
    """
    # What needs no model in memory: is there enough text, do tokenizers and data fit, is a checkpoint of this run?
    extent = budget(config, num_rows=store.num_rows, seq_len=store.seq_len)
    compared = (teacher if retelling is None else None, *others)
    vocabulary = min(shared_ids(student, each) for each in compared)
    check_data(store, student, vocabulary)
    accelerator = make_accelerator(config, work)
    found = on_main(lambda: checkpoint.latest(work / "checkpoints"))
    if found is not None:
        _check_same_run(found[1], config, inputs, found[0])

    # Both models, as the objective needs them and as this machine can have them.
    source = None if teacher is None else load_config(teacher)
    guides = tuple(map(load_config, others))
    kept = kept_layers(cuts_of(student), source)
    pair = Pair(load_config(student), source, kept, guides, retold=retelling is not None)
    aligned = None if retelling is None else measure_alignment(retelling, store)
    if aligned is not None:
        say(aligned.describe())
    ratio = 1.0 if aligned is None else aligned.teacher_tokens
    learning = sketch(config, pair, bf16=False)
    per_token = training_flops_per_token(learning, pair.teacher, store.seq_len, guides, teacher_tokens=ratio)
    here = resolve(
        config,
        accelerator.device,
        processes=accelerator.num_processes,
        seq_len=store.seq_len,
        flops=per_token * extent.rows * store.seq_len,
        documents_apart=config.document_mask or store.apart,
    )
    if store.pictured:  # what is given of images has other shapes each time
        here = here._replace(compiled=False)
    measuring = measuring_flops_per_token(pair.student, pair.teacher, store.seq_len, guides, teacher_tokens=ratio)
    of_row = measuring / (per_token * extent.rows)
    masking = None
    if kind_of(pair.student) == "masked":
        masking = Masking.of(load_tokenizer(student), vocabulary, config.seed)
    reader = PictureReader(load_processor(teacher or student), store.path) if store.pictured else None
    rows = _rows(config if found is None else _as_begun(config, found[1]), store, selection, masking, reader, of_row)
    heldout, once = rows.heldout(), rows.num_heldout * of_row
    measured = heldout_steps(config, extent.steps, once)
    if len(heldout):
        say(_when_measured(len(heldout), len(measured), extent.steps, once))
    objective = make_objective(config, pair)
    learner = WithLearned(load_student(config, student, here, pair), objective.learned)
    runs_teacher = guide is None and cache is None
    taught = () if guide is not None else guides
    if guide is None:
        needs = objective.needs if beside is None else objective.needs | beside
        told: Any = {"vocabulary": vocabulary, "heldout": heldout, "retelling": retelling}
        guide = _guide(config, teacher, cache, others, here, needs=needs, **told)
        if guide.source is not None and beside is not None:
            guide = guide._replace(source=SharedTeacher(guide.source))

    if ability is not None and here.sharding != "none":
        raise UsageError(
            "Scores of the student while it is trained (eval.during) need its weights whole on each process: set "
            "distill.shard to none, or leave them out."
        )

    # The student and its loss are one module; the optimizer and a checkpoint's tensors need it split already.
    model: Any = StudentWithLoss(learner.model, objective, vocabulary)
    if here.sharding != "none":
        learner.shard(model, here)
    optimizer = make_optimizer(learner.model, config, objective.learned.parameters())
    progress = Progress(best_by="heldout_hard" if teacher is None or pair.retold else "heldout_kl")
    if found is not None:
        checkpoint.restore(found[0], learner, optimizer)
        progress = read_progress(found[1], found[0])
        say(f"Continuing from {found[0]}: {progress.step} of {extent.steps} steps are done.")
    model.train()
    if here.sharding == "none":
        model = prepare_model(accelerator, model)
    writer = None
    if config.on_policy is not None:
        progress.rollouts = progress.rollouts or Rollouts(limit=config.on_policy.first_tokens)
        writer = Writer(
            config.on_policy,
            student=learner.model,
            accelerator=accelerator,
            ends=end_tokens(learner.model, load_tokenizer(student)) | {store.eos_id},
            vocabulary=vocabulary,
            seed=config.seed,
            micro_batch_rows=here.micro_batch_rows,
        )
    return Session(
        config=config,
        inputs=inputs,
        accelerator=accelerator,
        student=learner,
        model=model,
        optimizer=optimizer,
        objective=objective,
        guide=guide,
        losses=Losses(accelerator, model, objective, guide.source, here.micro_batch_rows),
        writer=writer,
        rows=rows,
        heldout=heldout,
        measured=measured,
        budget=extent,
        flops_per_token=per_token if runs_teacher else training_flops_per_token(learning, None, store.seq_len, taught),
        peak=peak_flops(accelerator.device, here.precision),
        progress=progress,
        ability=ability,
        notes={
            "precision": here.precision,
            "micro_batch_rows": here.micro_batch_rows,
            "processes": accelerator.num_processes,
            "shard": here.sharding,
            "compiled": here.compiled,
            "attention": learner.model.config._attn_implementation,
            "teacher_kl": guide.kl,
            "cache": None if cache is None else cache.describe(),
            "aligned": None if aligned is None else aligned._asdict(),
            "selection": None if selection is None else dict(selection.facts),
        },
    )


def _guide(
    config: DistillConfig,
    teacher: Path | None,
    cache: TeacherCache | None,
    others: Sequence[Path],
    here: Here,
    *,
    needs: Needs,
    vocabulary: int,
    heldout: Batch,
    retelling: Retelling | None,
) -> OpenedTeacher:
    """The teacher, if there is one, or what a cache has of it, and with others a mixture of all; of several that are
    quantised, what that changed most."""
    if teacher is None:
        return OpenedTeacher()
    opened = functools.partial(open_teacher, config, here=here, vocabulary=vocabulary, heldout=heldout)
    if cache is not None:
        check_vocabulary(cache, vocabulary)
        first = OpenedTeacher(CachedTeacher(cache, here.device, vocabulary), cache.teacher_kl)
    else:
        first = opened(teacher, needs=needs, retelling=retelling)
    if config.mixture is None:
        return first
    found = [first, *(opened(other, needs=Needs(autograd=needs.autograd)) for other in others)]
    sources = [each.source for each in found if each.source is not None]
    source = SeveralTeachers(config.mixture, sources, blocks=bool(needs.teacher_blocks))
    return OpenedTeacher(source, max((each.kl for each in found if each.kl is not None), default=None))


def _when_measured(rows: int, count: int, steps: int, once: float) -> str:
    """How often held-out rows are measured, in words, and what share of the training's FLOPs that adds."""
    share = (count + 1) * once
    fewer = "; fewer distill.heldout_sequences take less" if share > 0.1 else ""
    return (
        f"{rows} held-out rows are measured at the start and after {count} of {steps} steps, which adds {share:.1%} to "
        f"the FLOPs of the training (distill.heldout_every{fewer})."
    )


def _as_begun(config: DistillConfig, state: dict[str, Any]) -> DistillConfig:
    """The same, with the held-out rows that a checkpoint's run was begun with: its measures are compared."""
    return dataclasses.replace(config, heldout_sequences=state["config"]["heldout_sequences"])


def _rows(
    config: DistillConfig,
    store: Any,
    selection: Selection | None,
    masking: Masking | None,
    reader: PictureReader | None,
    cost: float,
) -> StoreRows:
    return StoreRows(
        store=store,
        seed=config.seed,
        epochs=config.epochs,
        num_heldout=heldout_rows(config, store.num_heldout, cost),
        apart=config.document_mask or store.apart,
        selection=selection,
        masking=masking,
        reader=reader,
    )


def _check_same_run(state: dict[str, Any], config: DistillConfig, inputs: dict[str, Any], path: Path) -> None:
    """Refuse to continue a checkpoint with options or inputs that would make another model of it."""
    for key in ("config", "inputs"):
        if not isinstance(state.get(key), dict):
            raise other_version(path, f"it has no {key}")
    changes = setting_changes(DistillConfig, state["config"], to_dict(config)) + input_changes(state["inputs"], inputs)
    if changes:
        raise UsageError(
            f"{path} was made otherwise ({'; '.join(changes)}), so the run cannot be continued. "
            f"Go back to what it was made with, name another output, or remove {path.parent} to start anew."
        )
