"""What both benchmarks share: environments, measuring, fresh processes, and a results file that a rerun continues."""

import contextlib
import ctypes
import functools
import gc
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

from compress.base.machine import (
    environment,
    fast_fp32_products,
    keep_freed_memory,
    peak_resident_bytes,
    restart_peak_resident,
)

ENVIRONMENTS = ("stock", "onednn", "onednn+malloc")
TUNED = {"cpu": "onednn+malloc", "cuda": "stock"}
"""The environment our own defaults give on each kind of device; every peer's default is `stock`."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PEERS = {"trl": "trl", "torchtune": "torchtune", "liger": "liger_kernel"}
"""Packages of peers, and the modules they are imported as."""
MIB = 2**20


_SWITCHES = contextlib.ExitStack()


class Shape(NamedTuple):
    """Tokens N, width of the hidden states D and vocabulary V of a loss."""

    tokens: int
    width: int
    vocabulary: int

    def __str__(self) -> str:
        return f"N={self.tokens} D={self.width} V={self.vocabulary}"


def set_environment(name: str) -> None:
    """Put this process, before its first large allocation, into one of `ENVIRONMENTS`.

    `onednn`: torch.set_float32_matmul_precision("medium"), which on CPUs hands fp32 products to oneDNN; left alone
    where that is not fp32 (`facts` says so). `onednn+malloc`: and glibc keeps freed memory for the next use.
    """
    if name not in ENVIRONMENTS:
        raise SystemExit(f"No environment {name!r}; there are {', '.join(ENVIRONMENTS)}.")
    if name != "stock":
        _SWITCHES.enter_context(fast_fp32_products())
    if name == "onednn+malloc" and not keep_freed_memory():
        raise SystemExit("This C library has no mallopt, so the environment onednn+malloc cannot be made.")


def installed(package: str) -> bool:
    """Whether a peer's package can be imported."""
    return importlib.util.find_spec(PEERS[package]) is not None


@functools.cache
def product_rate(dtype: str) -> float:
    """FLOP/s of a matrix product on the CPU as torch is set up here: what guesses of time start from."""
    left, right = (torch.randn(1024, 1024).to(DTYPES[dtype]) for _ in range(2))
    return 2 * 1024**3 / min(seconds(lambda: left @ right, "cpu") for _ in range(4))


def synchronize(device: str) -> None:
    """Wait until the device has done all it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(function: Callable[[], Any], device: str) -> float:
    """Wall time of one call, all its work on the device included."""
    synchronize(device)
    start = time.perf_counter()
    function()
    synchronize(device)
    return time.perf_counter() - start


def peak_rise_bytes(function: Callable[[], Any], device: str) -> int:
    """How far one call raises the peak memory above what the process holds before it.

    Resident memory on the CPU (clear_refs resets the kernel's high-water mark), allocated memory on CUDA.
    """
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    if not restart_peak_resident():
        raise SystemExit("This system keeps no peak of resident memory that can be reset, so none can be measured.")
    before = peak_bytes(device)
    function()
    return peak_bytes(device) - before


def return_freed_memory() -> None:
    """Give the system back what this process freed (CPU)."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def peak_bytes(device: str) -> int:
    """Peak memory of this process so far: resident on the CPU, allocated on CUDA."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return peak_resident_bytes()


def summary(samples: Sequence[float]) -> str:
    """`median (min)` of times in seconds."""
    return f"{median(samples):.3g} ({min(samples):.3g})"


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def verdict(fact: float, limit: float, *, at_most: bool) -> str:
    """`0.43 <= 0.5: yes`, a measured figure against what is asked of it."""
    holds = fact <= limit if at_most else fact >= limit
    return f"{fact:.3g} {'<=' if at_most else '>='} {limit:.3g}: {'yes' if holds else '**no**'}"


def facts() -> str:
    """One paragraph: machine, versions, commit, and which peers are missing."""
    found = environment()
    hardware, versions = found["hardware"], found["versions"]
    devices = [f"{hardware['cpu']}, {hardware['cpu_cores']} cores, {hardware['memory_gib']} GiB"]
    devices += [f"{gpu['name']}, {gpu['memory_gib']} GiB" for gpu in hardware["gpus"]]
    packages = {name: versions[name] for name in ("torch", "transformers")}
    absent = []
    for name, module in PEERS.items():
        if installed(name):
            packages[name] = importlib.metadata.version(module.replace("_", "-"))
        else:
            absent.append(name)
    parts = ["; ".join(devices), ", ".join(f"{name} {version}" for name, version in packages.items())]
    parts += [f"{os.environ.get('OMP_NUM_THREADS') or torch.get_num_threads()} threads"]
    with fast_fp32_products() as exact:
        parts += [f"fp32 products through oneDNN: {'exact' if exact else 'left to torch'}"]
    parts += [f"commit {str(found['git_commit'])[:12]}"]
    return ". ".join(parts) + "." + (f" Not installed: {', '.join(absent)}." if absent else "")


class Results:
    """Cases measured so far, in a JSON file written after each one, so that a stopped benchmark goes on.

    An entry is {case: its arguments, result, facts: machine and versions}; one whose arguments changed is done again.
    """

    def __init__(self, path: Path, script: Path) -> None:
        self._path, self._script = path, script
        self.entries: dict[str, dict[str, Any]] = json.loads(path.read_text())["entries"] if path.is_file() else {}

    def run(self, cases: dict[str, dict[str, Any]], guesses_s: dict[str, float], **extra: Any) -> None:
        """Measure in fresh processes what is missing of `cases` (name -> arguments), and say how long is left.

        `guesses_s` are rough times; what was measured scales the estimate of the rest. `extra` arguments are handed to
        every process and are no part of what a case is.
        """
        left = [name for name, case in cases.items() if not self._has(name, case)]
        guessed, spent, about = 0.0, 0.0, facts()
        for number, name in enumerate(left, 1):
            rest = sum(guesses_s[other] for other in left[number - 1 :]) * (spent / guessed if guessed > 60 else 1.0)
            say(f"[{number}/{len(left)}] {name}; about {rest / 60:.0f} min left")
            start = time.perf_counter()
            result = in_fresh_process(self._script, {**cases[name], **extra})
            self.entries[name] = {"case": cases[name], "result": result, "facts": about}
            spent, guessed = spent + time.perf_counter() - start, guessed + guesses_s[name]
            self._save()

    def of_kind(self, kind: str) -> list[tuple[dict[str, Any], Any]]:
        """Arguments and result of every case of one kind that did not fail as a whole."""
        entries = [e for e in self.entries.values() if e["case"]["kind"] == kind]
        return [(e["case"], e["result"]) for e in entries if not failed(e["result"])]

    def about(self) -> str:
        """Machine and versions, once for each that the cases were measured with."""
        return "\n\n".join(dict.fromkeys(entry["facts"] for entry in self.entries.values()))

    def failures(self) -> str:
        """A Markdown list of the cases that failed."""
        found = {name: e["result"]["failed"] for name, e in self.entries.items() if failed(e["result"])}
        return "".join(f"- {name} failed: {why}\n" for name, why in found.items())

    def _has(self, name: str, case: dict[str, Any]) -> bool:
        done = self.entries.get(name)
        return done is not None and done["case"] == json.loads(json.dumps(case)) and not failed(done["result"])

    def _save(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_suffix(".partial")
        partial.write_text(json.dumps({"format": "compress-benchmark-1", "entries": self.entries}, indent=1) + "\n")
        partial.replace(self._path)


def failed(result: Any) -> bool:
    """Whether a case's process died."""
    return isinstance(result, dict) and "failed" in result


def in_fresh_process(script: Path, arguments: dict[str, Any]) -> Any:
    """What `script --case ARGUMENTS` prints last, as JSON; `{"failed": why}` if it dies."""
    command = [sys.executable, str(script), "--case", json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
    say(f"    failed: {last[0]}\n" + "\n".join("    " + line for line in done.stderr.splitlines()[-15:]))
    return {"failed": last[0]}


def say(text: str) -> None:
    """One line for the person who waits, on stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
