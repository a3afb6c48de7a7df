"""Everything a run holds before its first step: checked inputs, models, optimizer, and where it continues from."""

import dataclasses
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError

from compress.base.config import to_dict
from compress.base.currency import input_changes, setting_changes
from compress.base.disk import sha256_json
from compress.base.errors import InputError, UsageError
from compress.base.processes import on_main
from compress.base.progress import say
from compress.data.store import order
from compress.distill.config import DistillConfig
from compress.distill.loop import checkpoint
from compress.distill.loop.optimizer import StudentOptimizer, make_optimizer
from compress.distill.loop.step import Ids, Losses, StudentWithLoss, Teacher
from compress.distill.resources.flops import PeakFlops, peak_flops, training_flops_per_token
from compress.distill.resources.schedule import Budget, budget
from compress.distill.students.sharding import launched_without_fsdp, resolve_sharding, shard_model
from compress.distill.teachers.models import load_models, resolve_attention
from compress.distill.teachers.quantization import quantize_teacher
from compress.model.files import model_fingerprint
from compress.model.load import load_config
from compress.model.vocabulary import check_data, shared_ids

_MICRO_BATCH_TOKENS_CPU = 4096
_MICRO_BATCH_TOKENS_ACCELERATOR = 16384


@dataclasses.dataclass
class Progress:
    """Where a run stands; with the weights and moments, all there is to save."""

    step: int = 0
    """Finished steps."""
    position: int = 0
    """Rows of the data consumed."""
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    heldout_loss: float | None = None
    """Held-out loss at this very step, if it was measured and finite."""
    best_heldout_loss: float | None = None
    seconds: float = 0.0
    """Wall time of training so far, over all resumed runs."""
    rows_sha256: str = order.START
    """Hash of the ids of all rows read so far; see `compress.data.store.order`."""
    recent_losses: list[float] = dataclasses.field(default_factory=list)
    """What a spike of the loss is measured against; see `StepGuard`."""


@dataclasses.dataclass
class Session:
    """A run, ready for its first or next step."""

    accelerator: Any
    student: Any
    """The Hugging Face model; `model` is the same, with its loss, as accelerate prepared it."""
    model: Any
    optimizer: StudentOptimizer
    losses: Losses
    store: Any
    heldout: Ids
    """Held-out rows [H, S] to measure on."""
    has_teacher: bool
    budget: Budget
    flops_per_token: float
    peak: PeakFlops
    """Of one process's device."""
    progress: Progress
    notes: dict[str, Any]
    """Fields of distill.json: what was decided for this machine, and the quantised teacher's KL."""


def fingerprints(student: Path, teacher: Path | None, store: Any) -> dict[str, Any]:
    """One hash for each input; what a checkpoint and a finished student are checked against."""
    return {
        "student": sha256_json(model_fingerprint(student)),
        "teacher": None if teacher is None else sha256_json(model_fingerprint(teacher)),
        "data": store.fingerprint,
    }


def open_session(
    config: DistillConfig, *, student: Path, teacher: Path | None, store: Any, inputs: dict[str, Any], work: Path
) -> Session:
    """Check everything that can be checked, load the models, and continue from the last checkpoint if there is one.

    Raises:
        UsageError: a budget the store cannot fill, a missing tracker, or a checkpoint of another run in `work`.
        InputError: models, tokenizers and data that do not belong together, or a model that cannot be saved again.
    """
    extent = budget(config, num_rows=store.num_rows, seq_len=store.seq_len)
    shared = shared_ids(student, teacher)
    check_data(store, student, shared)
    heldout: Ids = store.heldout(min(config.heldout_sequences, store.num_heldout))
    accelerator = make_accelerator(config, work)
    found = on_main(lambda: checkpoint.latest(work / "checkpoints"))
    if found is not None:
        _check_same_run(found[1], config, inputs, found[0])
    precision = resolve_precision(config, accelerator.device)
    attention = resolve_attention(config, accelerator.device, store.seq_len)
    sharding = resolve_sharding(config, accelerator.num_processes)
    learner, source = load_models(config, student, teacher, precision, attention, sharding, accelerator.device)
    quantise = source is not None and config.teacher_precision != "auto"
    teacher_kl = quantize_teacher(source, config, heldout) if quantise else None
    guide = None if source is None else Teacher(source)
    model = StudentWithLoss(learner, config, None if guide is None else guide.head, shared)
    if guide is not None and sharding == "both":
        shard_model(guide, source, device=accelerator.device, bf16=precision == "bf16")
    if sharding != "none":
        shard_model(model, learner, device=accelerator.device, bf16=precision == "bf16")
    optimizer = make_optimizer(learner, config)
    progress = Progress()
    if found is not None:
        checkpoint.restore(found[0], learner, optimizer)
        progress = _progress(found[1], found[0])
        say(f"Continuing from {found[0]}: {progress.step} of {extent.steps} steps are done.")
    model.train()
    prepared = _prepare(accelerator, model) if sharding == "none" else model
    rows = config.micro_batch_rows or default_micro_batch_rows(accelerator.device, store.seq_len)
    flops = training_flops_per_token(load_config(student), load_config(teacher) if teacher else None, store.seq_len)
    return Session(
        accelerator=accelerator,
        student=learner,
        model=prepared,
        optimizer=optimizer,
        losses=Losses(accelerator, prepared, guide, rows, eos_id=store.eos_id if config.document_mask else None),
        store=store,
        heldout=heldout,
        has_teacher=source is not None,
        budget=extent,
        flops_per_token=flops,
        peak=peak_flops(accelerator.device, precision),
        progress=progress,
        notes={
            "precision": precision,
            "micro_batch_rows": rows,
            "processes": accelerator.num_processes,
            "shard": sharding,
            "teacher_kl": teacher_kl,
        },
    )


def _prepare(accelerator: Any, model: StudentWithLoss) -> Any:
    with warnings.catch_warnings():
        # accelerate says that torch will rename `broadcast_buffers`, and that False has no new name yet.
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        return accelerator.prepare_model(model)


def make_accelerator(config: DistillConfig, work: Path) -> Any:
    """An `Accelerator` for one process or for data parallelism over several.

    Raises:
        UsageError: a tracker whose package is missing, or a launcher configured for DeepSpeed or Megatron-LM.
    """
    from accelerate import Accelerator, DistributedDataParallelKwargs, DistributedType
    from accelerate.state import AcceleratorState
    from accelerate.tracking import get_available_trackers

    missing = set(config.trackers) - {str(tracker) for tracker in get_available_trackers()}
    if missing:
        names = " ".join(sorted(missing))
        raise UsageError(f"trackers: {names} is not installed; `pip install {names}`, or leave it out.")
    AcceleratorState._reset_state()  # an earlier run in this process may have used another precision
    on_cpu = not torch.accelerator.is_available()
    bf16 = resolve_precision(config, torch.device("cpu" if on_cpu else "cuda")) == "bf16"
    with launched_without_fsdp():
        accelerator = Accelerator(
            cpu=on_cpu,
            mixed_precision="bf16" if bf16 else "no",
            log_with=list(config.trackers) or None,
            project_dir=str(work),
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)],
        )
    if accelerator.distributed_type in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise UsageError(
            f"The launcher asks for {accelerator.distributed_type.value}; distillation runs under data parallelism "
            "(DDP) or FSDP. Start it with torchrun, or with `accelerate launch --multi_gpu` or `--use_fsdp`."
        )
    if config.trackers:
        options = {
            key: value if isinstance(value, int | float) else str(value) for key, value in to_dict(config).items()
        }
        accelerator.init_trackers("compress", config=options)
    return accelerator


def resolve_precision(config: DistillConfig, device: torch.device) -> str:
    """`bf16` or `fp32`; automatic is bf16 on CUDA devices that have it."""
    if config.precision != "auto":
        return config.precision
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"


def default_micro_batch_rows(device: torch.device, seq_len: int) -> int:
    """Rows of about 4096 tokens on a CPU and 16384 on an accelerator."""
    tokens = _MICRO_BATCH_TOKENS_CPU if device.type == "cpu" else _MICRO_BATCH_TOKENS_ACCELERATOR
    return max(1, tokens // seq_len)


def _progress(state: Mapping[str, Any], path: Path) -> Progress:
    """Where a checkpoint's run stood."""
    try:
        found = {field.name: state[field.name] for field in dataclasses.fields(Progress)}
        return TypeAdapter(Progress).validate_json(json.dumps(found), strict=True)
    except (KeyError, ValidationError) as error:
        raise _other_version(path, " ".join(str(error).split())[:200]) from error


def _other_version(path: Path, fault: str) -> InputError:
    return InputError(
        f"{path / 'state.json'} is not as this version writes it ({fault}). Go on with the version that wrote it, or "
        f"remove {path.parent} to start anew."
    )


def _check_same_run(state: dict[str, Any], config: DistillConfig, inputs: dict[str, Any], path: Path) -> None:
    """Refuse to continue a checkpoint with options or inputs that would make another model of it."""
    for key in ("config", "inputs"):
        if not isinstance(state.get(key), dict):
            raise _other_version(path, f"it has no {key}")
    changes = setting_changes(DistillConfig, state["config"], to_dict(config)) + input_changes(state["inputs"], inputs)
    if changes:
        raise UsageError(
            f"{path} was made otherwise ({'; '.join(changes)}), so the run cannot be continued. "
            f"Go back to what it was made with, name another output, or remove {path.parent} to start anew."
        )
