"""The `Accelerator` of a run: one process, or data parallelism over several, with its trackers."""

import os
import warnings
from pathlib import Path
from typing import Any

import torch

from compress.base.config import to_dict
from compress.base.errors import UsageError
from compress.distill.config import DistillConfig
from compress.distill.resources.auto import resolve_precision
from compress.distill.students.sharding import launched_without_fsdp

TRACKED = r"compress|wandb|mlruns|mlflow\.db"
"""Names of what trackers leave in the folder of a training (a regular expression)."""
_ENGINES = {"ACCELERATE_USE_DEEPSPEED": "DeepSpeed", "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM"}
"""What `accelerate launch` sets for each, as `accelerate.state.AcceleratorState` reads it."""


def make_accelerator(config: DistillConfig, work: Path) -> Any:
    """An `Accelerator` for one process or for data parallelism over several.

    Raises:
        UsageError: a tracker whose package is missing, or a launcher configured for DeepSpeed or Megatron-LM.
    """
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.state import AcceleratorState

    check_trackers(config)
    check_launcher()
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
    if config.trackers:
        options = {
            key: value if isinstance(value, int | float) else str(value) for key, value in to_dict(config).items()
        }
        accelerator.init_trackers("compress", config=options, init_kwargs=tracker_places(config, work))
    return accelerator


def tracker_places(config: DistillConfig, work: Path) -> dict[str, dict[str, str]]:
    """Options of each tracker, so that it writes into the training's folder rather than into the current one.

    Where the environment says where, that stays. TensorBoard's files are in `project_dir` already.
    """
    home, places = work.absolute(), dict[str, dict[str, str]]()
    if "wandb" in config.trackers and "WANDB_DIR" not in os.environ:
        places["wandb"] = {"dir": str(home)}
    if "mlflow" in config.trackers and "MLFLOW_TRACKING_URI" not in os.environ:
        import mlflow

        mlflow.set_tracking_uri(f"sqlite:///{home / 'mlflow.db'}")
        places["mlflow"] = {"logging_dir": str(home / "mlruns")}
    return places


def check_trackers(config: DistillConfig) -> None:
    """Refuse a tracker whose package is missing.

    Raises:
        UsageError: it is.
    """
    if not config.trackers:
        return
    from accelerate.tracking import get_available_trackers

    missing = set(config.trackers) - {str(tracker) for tracker in get_available_trackers()}
    if missing:
        names = " ".join(sorted(missing))
        raise UsageError(f"trackers: {names} is not installed; `pip install {names}`, or leave it out.")


def check_launcher() -> None:
    """Refuse a launcher that is configured for an engine of its own.

    Raises:
        UsageError: for DeepSpeed or Megatron-LM.
    """
    asked = [name for variable, name in _ENGINES.items() if os.environ.get(variable, "false").lower() == "true"]
    if asked:
        raise UsageError(
            f"The launcher asks for {asked[0]}; distillation runs under data parallelism (DDP) or FSDP. Start it with "
            "torchrun, or with `accelerate launch --multi_gpu` or `--use_fsdp`."
        )


def prepare_model(accelerator: Any, model: Any) -> Any:
    """The module as accelerate trains it: under autocast, and with its gradients added over the processes."""
    with warnings.catch_warnings():
        # accelerate says that torch will rename `broadcast_buffers`, and that False has no new name yet.
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        return accelerator.prepare_model(model)
