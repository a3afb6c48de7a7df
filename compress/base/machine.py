"""What the machine is and has: versions, hardware, seeds, memory, devices."""

import os
import platform
import random
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from compress.base.errors import UsageError
from compress.base.redact import redact

if TYPE_CHECKING:
    import torch

_PACKAGES = (
    "compress", "torch", "transformers", "accelerate", "datasets", "tokenizers", "safetensors", "lm-eval", "numpy",
    "peft",
)  # fmt: skip
_LOWEST_PRIORITY = 19
_GROUPS = Path("/sys/fs/cgroup")
_OWN_GROUPS = Path("/proc/self/cgroup")


@cache
def versions() -> dict[str, str]:
    """Installed versions of Python and of every package whose numbers we report."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@cache
def git_commit() -> str | None:
    """Commit of the source tree this package runs from; None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


@cache
def hardware() -> dict[str, Any]:
    """CPU model, cores this process may use, memory in GiB, and each CUDA device's name and memory."""
    import psutil
    import torch

    cpu = platform.processor() or platform.machine()
    try:
        text = Path("/proc/cpuinfo").read_text()
        cpu = next(line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return {
        "cpu": cpu,
        "cpu_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": [{"name": d.name, "memory_gib": round(d.total_memory / 2**30, 1)} for d in devices],
    }


def environment() -> dict[str, Any]:
    """The part of a manifest that says where it was made."""
    command = [redact(argument) for argument in sys.argv]
    return {"versions": versions(), "git_commit": git_commit(), "hardware": hardware(), "command": command}


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch (all devices)."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def default_device() -> "torch.device":
    """The accelerator torch finds (CUDA, XPU, MPS), else the CPU."""
    import torch

    if torch.accelerator.is_available():
        device = torch.accelerator.current_accelerator()
        assert device is not None
        return device
    return torch.device("cpu")


def find_device(name: str | None) -> "torch.device":
    """The device of that name, or by default the accelerator (this process's own, under a launcher), else the CPU.

    Raises:
        UsageError: this machine has no such device.
    """
    import torch

    if name is None:
        return default_device()
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        if reason.startswith("Expected one of"):  # and then all that torch was ever built for
            reason = "torch knows no device of that name"
        raise UsageError(
            f"device = {name!r} cannot be used here ({reason}); write cpu, cuda, cuda:1, ..., or leave it out."
        ) from error
    return device


def device_name(device: "torch.device") -> str:
    """`cpu`, or what the maker calls the accelerator."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


class Memory(NamedTuple):
    """Bytes of memory: what can still be taken, and all there is."""

    free: int
    total: int


def memory_of(device: "torch.device") -> Memory:
    """The memory of a GPU; of any other device the host's."""
    import torch

    return Memory(*torch.cuda.mem_get_info(device)) if device.type == "cuda" else host_memory()


def host_memory() -> Memory:
    """The machine's memory, or what the tightest control group (container, job) around this process leaves of it."""
    import psutil

    machine = psutil.virtual_memory()
    limits = list(_group_limits(_GROUPS, _OWN_GROUPS))
    free = min([machine.available, *(limit - used for limit, used in limits)])
    return Memory(max(0, free), min([machine.total, *(limit for limit, _ in limits)]))


def total_memory() -> dict[str, int]:
    """All bytes of each GPU by its name, or of the host where there is none."""
    import torch

    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return {f"cuda:{i} ({gpu.name})": gpu.total_memory for i, gpu in enumerate(gpus)} or {
        "this machine": host_memory().total
    }


def _group_limits(root: Path, listing: Path) -> Iterator[tuple[int, int]]:
    """(limit, bytes in use) of every control group that limits this process's memory (`man 7 cgroups`, both versions).

    In use is what cannot be taken back: processes' own memory and shared memory, but no page cache. A container may see
    its own group as the root of all, under whatever name the host knows it.
    """
    for line in listing.read_text().splitlines() if listing.is_file() else ():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            home, limited, used = root, "memory.max", ("anon", "shmem")
        elif "memory" in controllers.split(","):
            home, limited, used = root / "memory", "memory.limit_in_bytes", ("total_rss", "total_shmem")
        else:
            continue
        names = Path(path.lstrip("/")).parts
        for group in (home.joinpath(*names[:depth]) for depth in range(len(names) + 1)):
            try:
                limit = int((group / limited).read_text())
                stat = dict(entry.split() for entry in (group / "memory.stat").read_text().splitlines())
            except (OSError, ValueError):  # no such group here, or `max`
                continue
            yield limit, sum(int(stat.get(name, 0)) for name in used)


def peak_memory_gib() -> float:
    """Peak memory so far, GiB: the accelerator's peak allocation when there is one, else the process's peak RSS."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


def restart_peak_resident() -> bool:
    """Count the process's peak resident memory afresh (Linux, `man 5 proc`); whether the system allows it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak_resident_bytes() -> int:
    """Peak resident memory since `restart_peak_resident`, where that returned true."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


@contextmanager
def fast_fp32_products() -> Iterator[bool]:
    """Use oneDNN's fp32 matrix product on CPUs where it is the faster one and exact; yields whether it is used.

    At precision `medium` torch hands fp32 products to oneDNN: twice as fast as MKL on AMD and still fp32 there. On
    Intel's own processors MKL is level or ahead. Where the processor has AMX `medium` may compute in bf16 instead, so a
    product is compared with float64 first. No speed is measured: a run that is resumed must choose the same.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(256, 512, generator=generator), torch.randn(512, 256, generator=generator)
    exact = left.double() @ right.double()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    used = not _made_by_intel() and bool((left @ right - exact).norm() < 5e-6 * exact.norm())
    if not used:
        torch.set_float32_matmul_precision(before)
    try:
        yield used
    finally:
        torch.set_float32_matmul_precision(before)


def computes_in_bf16() -> bool:
    """Whether the processor has instructions for products in bf16, which take half the time of fp32 then (Linux)."""
    return any(f" {name} " in _cpuinfo() for name in ("avx512_bf16", "amx_bf16", "bf16"))


def _made_by_intel() -> bool:
    return "GenuineIntel" in _cpuinfo()


def _cpuinfo() -> str:
    found = Path("/proc/cpuinfo")
    return found.read_text() if found.is_file() else ""


def yield_to_other_threads() -> None:
    """Let the calling thread have only what the process's other threads leave of the cores (Linux: threads have a
    priority of their own). Elsewhere it stays as it is."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST_PRIORITY)


_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4  # malloc.h


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory for the next use rather than return it to the system; whether it was possible.

    Filling fresh pages is six times slower than filling old ones, and large temporaries are fresh pages each time.
    The process's memory stays at its peak from then on, until `give_back_memory` or its end.
    """
    return _set_malloc({_MMAP_MAX: 0, _TRIM_THRESHOLD: -1, _TOP_PAD: 64 << 20})


def give_back_memory() -> None:
    """Return freed memory to the system, and from then on as glibc does where large blocks come and go.

    Kept blocks of many sizes leave holes between those in use, which would add up over what a process does later.
    """
    import ctypes

    _set_malloc({_MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 64 << 20, _TOP_PAD: 0, _MMAP_MAX: 65536})
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _set_malloc(options: Mapping[int, int]) -> bool:
    """Set glibc's options (`man 3 mallopt`); whether there is such a C library, and it takes them."""
    import ctypes

    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    taken = [mallopt(name, value) for name, value in options.items()]
    return all(taken)
