"""Starting the real command on several processes (gloo on CPUs), as users do with torchrun.

All of them import everything; processes that need not come from `commands.Commands.launch`.
"""

import contextlib
import os
import signal
import subprocess
import sys
from typing import Any

from commands import ROOT, environment

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


def launch(processes: int, arguments: list[str], **changes: str) -> subprocess.CompletedProcess[str]:
    """`compress ARGUMENTS` under torchrun; all its processes are gone when this returns."""
    process = start([*TORCHRUN[:-1], f"--nproc_per_node={processes}", "-m", "compress.cli", *arguments], **changes)
    try:
        out, err = process.communicate(timeout=300)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def start(command: list[str], **changes: str) -> subprocess.Popen[Any]:
    """A command in a session of its own, with one thread a process, no network and no GPU."""
    return subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(**changes),
        start_new_session=True,
    )
