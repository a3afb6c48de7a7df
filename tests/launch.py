"""Starting the real command on several processes (gloo on CPUs), as users do with torchrun."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from typing import Any

from distill_world import World
from helpers import ROOT

from compress.config import to_dict
from compress.distill import DistillConfig

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


def distill_arguments(world: World, name: str, config: DistillConfig) -> list[str]:
    """Arguments of `compress` for the run that `world.run(name, config)` is."""
    models = ["--student", str(world.student), "--teacher", str(world.teacher), "--data", str(world.data)]
    options = [f"--set=distill.{key}={json.dumps(value)}" for key, value in to_dict(config).items()]
    return ["distill", *models, "--out", str(world.root / name), *options]


def launch(
    processes: int, arguments: list[str], *, command: bool = True, **environment: str
) -> subprocess.CompletedProcess[str]:
    """`compress ARGUMENTS` (or a script of ours) under torchrun; all its processes are gone when this returns."""
    launcher = [*TORCHRUN[:-1], f"--nproc_per_node={processes}"]
    process = start([*launcher, *(["-m", "compress.cli"] if command else []), *arguments], **environment)
    try:
        out, err = process.communicate(timeout=300)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def start(command: list[str], **environment: str) -> subprocess.Popen[Any]:
    """A command in a session of its own, with one thread a process, no network and no GPU."""
    fixed = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **fixed, **environment},
        start_new_session=True,
    )
