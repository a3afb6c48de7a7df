"""The CPU's pass over logits: cpu.cpp, compiled at its first use and called through ctypes.

Two rows of logits and their exponentials stay in a core's cache from the first look to the gradient, where torch's
own operations would go through memory for each. Where there is no C++ compiler with OpenMP (or no Linux), there is
no such pass, and torch's operations do the work.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from compress.distill.objective.divergences import TileLoss
from compress.distill.objective.kernels import KERNELS

DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
"""Dtypes of logits the pass can take, and what it calls them."""

_SOURCE = Path(__file__).with_name("cpu.cpp")
_FLAGS = ("-O3", "-march=native", "-std=c++17", "-fopenmp", "-fPIC", "-fno-math-errno", "-ffp-contract=off")
_WIDE = "-mprefer-vector-width=512"
_COMPILE_SECONDS = 120


def available() -> bool:
    """Whether the pass can be used in this process; compiles it (about two seconds, once a machine) if need be."""
    return _library() is not None


def losses_then_gradient_(
    student: Tensor, teacher: Tensor | None, labels: Tensor, terms: TileLoss, scratch: Tensor
) -> Tensor:
    """[soft, hard] sums of a chunk, float64 [2]; overwrites `student` [C, V] with the gradient where one is wanted.

    `student` and `teacher` are contiguous logits of one of `DTYPES`, without soft-capping, `labels` int64 [C], and
    `scratch` what `scratch` gives. The divergence is one of `KERNELS`.
    """
    library = _library()
    assert library is not None
    function = getattr(library, f"losses_then_gradient_{DTYPES[student.dtype]}")
    count, width = student.shape
    labels = labels.contiguous()
    losses = torch.zeros(2, count, dtype=torch.float64)
    function(
        _pointer(student), None if teacher is None else _pointer(teacher), _pointer(labels),
        ctypes.c_int64(count), ctypes.c_int64(width), ctypes.c_float(terms.alpha), ctypes.c_float(terms.temperature),
        KERNELS[terms.divergence.name], ctypes.c_float(terms.divergence.parameter), int(terms.gradient), len(scratch),
        _pointer(scratch), _pointer(losses[0]), _pointer(losses[1]),
    )  # fmt: skip
    return losses.sum(1)


def scratch(width: int) -> Tensor:
    """Room for the exponentials of a row of both models for each thread, fp32 [threads, 2, V]."""
    return torch.empty(torch.get_num_threads(), 2, width)


def _pointer(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


@functools.cache
def _library() -> ctypes.CDLL | None:
    """The compiled pass, run by the OpenMP threads torch already has; None where that cannot be had."""
    runtime, compiler = _openmp_runtime(), shutil.which("g++") or shutil.which("clang++")
    if runtime is None or compiler is None:
        return None
    try:
        ctypes.CDLL(runtime, mode=ctypes.RTLD_GLOBAL)
        return ctypes.CDLL(str(_compiled(compiler)))
    except (OSError, RuntimeError, subprocess.SubprocessError):  # RuntimeError: there is no home directory
        return None


def _openmp_runtime() -> str | None:
    """Path of the OpenMP library torch has loaded; the threads of a second one would contend with its own."""
    maps = Path("/proc/self/maps")
    if not maps.is_file():
        return None
    paths = {line.split(maxsplit=5)[5] for line in maps.read_text().splitlines() if len(line.split(maxsplit=5)) == 6}
    names = sorted(path for path in paths if Path(path).name.startswith(("libgomp", "libiomp", "libomp")))
    return names[0] if names else None


def _compiled(compiler: str) -> Path:
    """The shared library, from the cache or made now; a finished one appears whole."""
    flags = [*_FLAGS, *([_WIDE] if platform.machine() == "x86_64" else [])]
    path = _cache() / f"cpu-{_key(compiler, flags)}.so"
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        object_file, library = Path(folder) / "cpu.o", Path(folder) / "cpu.so"
        # Linked without -fopenmp, so that its symbols are found in the runtime torch has loaded.
        _run([compiler, *flags, "-c", str(_SOURCE), "-o", str(object_file)])
        _run([compiler, "-shared", str(object_file), "-o", str(library), "-lm"])
        library.replace(path)
    return path


def _key(compiler: str, flags: list[str]) -> str:
    """Hash of all that the machine code depends on: source, compiler, flags and the processor."""
    version = subprocess.run([compiler, "--version"], capture_output=True, timeout=_COMPILE_SECONDS, check=True).stdout
    processor = [
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith(("model name", "flags"))
    ]
    parts = [_SOURCE.read_bytes(), version, " ".join(flags).encode(), "\n".join(sorted(set(processor))).encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _cache() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "compress" / "kernels"


def _run(command: list[str]) -> None:
    subprocess.run(command, capture_output=True, timeout=_COMPILE_SECONDS, check=True)
