"""A training opened: everything that it holds before its first step, and where it continues from."""

import dataclasses
import functools
from pathlib import Path
from typing import Any, NamedTuple

from compress.base.config import to_dict
from compress.base.currency import input_changes, setting_changes
from compress.base.errors import UsageError
from compress.base.processes import on_main
from compress.base.progress import say
from compress.data.store.pictures import PictureReader
from compress.distill.asked import Checked
from compress.distill.config import DistillConfig
from compress.distill.loop import checkpoint
from compress.distill.loop.accelerator import make_accelerator, prepare_model
from compress.distill.loop.optimizer import make_optimizer
from compress.distill.loop.progress import Progress, other_version, read_progress
from compress.distill.loop.session import Session
from compress.distill.loop.step import Losses, StudentWithLoss
from compress.distill.objective.objective import make_objective
from compress.distill.objective.part import Pair
from compress.distill.objective.signals import Needs
from compress.distill.resources.auto import Here, resolve
from compress.distill.resources.flops import measuring_flops_per_token, peak_flops, training_flops_per_token
from compress.distill.resources.schedule import Budget, budget, heldout_rows, heldout_steps
from compress.distill.rollouts.state import Rollouts
from compress.distill.rollouts.writing import Writer
from compress.distill.rows.batch import Batch
from compress.distill.rows.masking import Masking
from compress.distill.rows.selection import Selection
from compress.distill.rows.source import StoreRows
from compress.distill.students.parts import sketch
from compress.distill.students.student import Student, WithLearned, load_student
from compress.distill.teachers.cached import CachedTeacher, check_vocabulary
from compress.distill.teachers.other_tokenizer import Aligned, measure_alignment
from compress.distill.teachers.several import SeveralTeachers
from compress.distill.teachers.shared import SharedTeacher
from compress.distill.teachers.source import OpenedTeacher, open_teacher
from compress.inference.decoding import end_tokens
from compress.model.cuts import cuts_of, kept_layers
from compress.model.kinds import kind_of
from compress.model.load import load_config, load_tokenizer
from compress.model.vocabulary import check_data, shared_ids

_Begun = tuple[Path, dict[str, Any]] | None
"""The checkpoint to continue from and its state; None at the start."""


class _Scale(NamedTuple):
    """How much there is to do, and what it is done with, known before a model is in memory."""

    extent: Budget
    vocabulary: int
    """Ids that the student shares with its teachers."""
    pair: Pair
    guides: tuple[Any, ...]
    """Configs of the teachers beside the first."""
    aligned: Aligned | None
    """Of a teacher with another tokenizer."""
    here: Here
    per_token: float
    """FLOPs of a token that is learned, the teacher's own among them."""
    of_row: float
    """What a held-out row costs, as a share of the training's FLOPs."""


def open_session(
    of: Checked, selection: Selection | None, *, guide: OpenedTeacher | None = None, beside: Needs | None = None
) -> Session:
    """Load the models of a training, and continue from its last checkpoint if there is one.

    With a `guide`, which another session has opened, the teacher is not loaded: how much is measured, and how, is as if
    it were. With `beside`, which is what the objectives of other sessions need of the teacher, it is opened for all of
    them.

    Raises:
        UsageError: a budget the store cannot fill, a missing tracker, or a checkpoint of another run.
        InputError: models, tokenizers and data that do not belong together, or a model that cannot be saved again.
    """
    config, ability = of.config, of.ability
    vocabulary = _shared_ids(of)
    accelerator = make_accelerator(config, of.asked.work)
    begun: _Begun = on_main(lambda: checkpoint.latest(of.asked.work / "checkpoints"))
    if begun is not None:
        _check_same_run(begun[1], config, of.inputs, begun[0])
    scale = _scale(of, vocabulary, accelerator)
    here, extent = scale.here, scale.extent
    rows = _rows(of, begun, selection, scale)
    heldout, once = rows.heldout(), rows.num_heldout * scale.of_row
    measured = heldout_steps(config, extent.steps, once)
    if len(heldout):
        say(_when_measured(len(heldout), len(measured), extent.steps, once))

    objective = make_objective(config, scale.pair)
    learner = WithLearned(load_student(config, of.start, here, scale.pair), objective.learned)
    per_token = scale.per_token
    if guide is not None or of.cache is not None:
        learning = sketch(config, scale.pair, bf16=False)
        taught = () if guide is not None else scale.guides
        per_token = training_flops_per_token(learning, None, of.store.seq_len, taught)
    if guide is None:
        needs = objective.needs if beside is None else objective.needs | beside
        guide = _guide(of, scale, heldout, needs)
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
    progress = Progress(best_by="heldout_hard" if of.teacher is None or scale.pair.retold else "heldout_kl")
    if begun is not None:
        checkpoint.restore(begun[0], learner, optimizer)
        progress = read_progress(begun[1], begun[0])
        say(f"Continuing from {begun[0]}: {progress.step} of {extent.steps} steps are done.")
    model.train()
    if here.sharding == "none":
        model = prepare_model(accelerator, model)
    return Session(
        config=config,
        inputs=of.inputs,
        accelerator=accelerator,
        student=learner,
        model=model,
        optimizer=optimizer,
        objective=objective,
        guide=guide,
        losses=Losses(accelerator, model, objective, guide.source, here.micro_batch_rows),
        writer=_writer(of, learner, accelerator, progress, scale),
        rows=rows,
        heldout=heldout,
        measured=measured,
        budget=extent,
        flops_per_token=per_token,
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
            "cache": None if of.cache is None else of.cache.describe(),
            "aligned": None if scale.aligned is None else scale.aligned._asdict(),
            "selection": None if selection is None else dict(selection.facts),
        },
    )


def _shared_ids(of: Checked) -> int:
    """Ids that the student shares with its teachers, once its data is known to fit; raises as `open_session`."""
    compared = (of.teacher if of.retelling is None else None, *of.others)
    vocabulary = min(shared_ids(of.start, each) for each in compared)
    check_data(of.store, of.start, vocabulary)
    return vocabulary


def _scale(of: Checked, vocabulary: int, accelerator: Any) -> _Scale:
    """How much there is to do, and what `auto` becomes on this machine."""
    config, store = of.config, of.store
    extent = budget(config, num_rows=store.num_rows, seq_len=store.seq_len)
    source = None if of.teacher is None else load_config(of.teacher)
    guides = tuple(map(load_config, of.others))
    kept = kept_layers(cuts_of(of.start), source)
    pair = Pair(load_config(of.start), source, kept, guides, retold=of.retelling is not None)
    aligned = None if of.retelling is None else measure_alignment(of.retelling, store)
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
    measuring = measuring_flops_per_token(pair.student, pair.teacher, store.seq_len, guides, teacher_tokens=ratio)
    of_row = measuring / (per_token * extent.rows)
    return _Scale(extent, vocabulary, pair, guides, aligned, here, per_token, of_row)


def _guide(of: Checked, scale: _Scale, heldout: Batch, needs: Needs) -> OpenedTeacher:
    """The teacher, if there is one, or what a cache has of it, and with others a mixture of all; of several that are
    quantised, what that changed most."""
    config, here, vocabulary = of.config, scale.here, scale.vocabulary
    if of.teacher is None:
        return OpenedTeacher()
    opened = functools.partial(open_teacher, config, here=here, vocabulary=vocabulary, heldout=heldout)
    if of.cache is not None:
        check_vocabulary(of.cache, vocabulary)
        first = OpenedTeacher(CachedTeacher(of.cache, here.device, vocabulary), of.cache.teacher_kl)
    else:
        first = opened(of.teacher, needs=needs, retelling=of.retelling)
    if config.mixture is None:
        return first
    found = [first, *(opened(other, needs=Needs(autograd=needs.autograd)) for other in of.others)]
    sources = [each.source for each in found if each.source is not None]
    source = SeveralTeachers(config.mixture, sources, blocks=bool(needs.teacher_blocks))
    return OpenedTeacher(source, max((each.kl for each in found if each.kl is not None), default=None))


def _writer(of: Checked, learner: Student, accelerator: Any, progress: Progress, scale: _Scale) -> Writer | None:
    """What lets the student write in on-policy steps; what it wrote is counted in its progress."""
    options = of.config.on_policy
    if options is None:
        return None
    progress.rollouts = progress.rollouts or Rollouts(limit=options.first_tokens)
    return Writer(
        options,
        student=learner.model,
        accelerator=accelerator,
        ends=end_tokens(learner.model, load_tokenizer(of.start)) | {of.store.eos_id},
        vocabulary=scale.vocabulary,
        seed=of.config.seed,
        micro_batch_rows=scale.here.micro_batch_rows,
    )


def _rows(of: Checked, begun: _Begun, selection: Selection | None, scale: _Scale) -> StoreRows:
    """What is read; of a run that goes on, with as many held-out rows as it began with, whose measures are compared."""
    config, store = of.config, of.store
    if begun is not None:
        config = dataclasses.replace(config, heldout_sequences=begun[1]["config"]["heldout_sequences"])
    masked = kind_of(scale.pair.student) == "masked"
    return StoreRows(
        store=store,
        seed=config.seed,
        epochs=config.epochs,
        num_heldout=heldout_rows(config, store.num_heldout, scale.of_row),
        apart=config.document_mask or store.apart,
        selection=selection,
        masking=Masking.of(load_tokenizer(of.start), scale.vocabulary, config.seed) if masked else None,
        reader=PictureReader.of(store, of.teacher or of.start) if store.pictured else None,
    )


def _when_measured(rows: int, count: int, steps: int, once: float) -> str:
    """How often held-out rows are measured, in words, and what share of the training's FLOPs that adds."""
    share = (count + 1) * once
    fewer = "; fewer distill.heldout_sequences take less" if share > 0.1 else ""
    return (
        f"{rows} held-out rows are measured at the start and after {count} of {steps} steps, which adds {share:.1%} to "
        f"the FLOPs of the training (distill.heldout_every{fewer})."
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
