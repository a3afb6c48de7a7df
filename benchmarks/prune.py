"""What `compress prune` costs beside `cp` of as many bytes: a 4 GB checkpoint, half of its layers kept.

    python benchmarks/prune.py [--rounds 5] [--work DIR] [--layers 28]

The teacher is a random Llama in bfloat16, in several files, in a folder of the disk that is measured. `cp` is given one
file of exactly the bytes the student's weights have, and then `sync FILE`, so that both have everything on the disk
when they end. The command is measured whole, from its start to its exit: the imports, the plan, SHA-256 of the teacher
and of the student, the search for NaN, the strict load, the fsyncs. Its copy alone is what reads, checks, hashes and
writes the weights, in a process that imports neither torch nor transformers; its plan alone is what imports them, for
figures and strict loads; and SHA-256 alone is what one core needs for the hashes that prune.json promises. Samples are
taken in turns, each in a fresh process, all after one of each that is not counted. All read from the page cache: every
file was just written or read, and the machine has room for all of them (`least_cached` in the result says how much was
in memory).
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from harness import MIB, table, verdict

from compress.base.disk import write_json
from compress.base.machine import environment
from compress.base.units import format_bytes

MOST_TIME, MOST_MEMORY_MIB = 1.3, 600
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 32000, "hidden_size": 2048,
    "intermediate_size": 8192, "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 4096,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_SHARD_BYTES = 10**9
_LAUNCHER = """
import os, resource, sys, time
start = time.perf_counter()
if not (child := os.fork()):
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.execvp(sys.argv[1], sys.argv[1:])
status = os.wait4(child, 0)[1]
print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""
"""A process so small that the peak of what it forks is not its own (`ru_maxrss` is never less than the parent's)."""
_COPY_ALONE = """
import pathlib, sys
from compress.weights.casting import student_tensors
from compress.weights.copying import Copying
from compress.weights.headers import select_tensors
teacher, out, layers = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), int(sys.argv[3])
out.mkdir()
kept = range((layers - 1) % 2, layers, 2)
named = select_tensors(sorted(teacher.glob("*.safetensors")), ["model.layers"], kept, layers)
with Copying([(out, student_tensors(named, None, kept, layers))]) as copying:
    copying.finish()
"""
"""What copies, hashes and checks the weights, without torch, transformers, the plan and the teacher's own hashes."""
_HASH_ALONE = """
import hashlib, sys
for path in sys.argv[1:]:
    with open(path, "rb") as file:
        hashlib.file_digest(file, "sha256")
"""


def make_teacher(folder: Path, num_layers: int) -> None:
    """Write a Llama of random weights, drawn a tensor at a time."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    folder.mkdir(parents=True)
    config = {**CONFIG, "num_hidden_layers": num_layers}
    write_json(folder / "config.json", config)
    with torch.device("meta"):
        shapes = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config)).state_dict()
    generator, shards = torch.Generator().manual_seed(0), [dict[str, torch.Tensor]()]
    weight_map: dict[str, str] = {}

    def save() -> None:
        name = f"model-{len(shards):05d}.safetensors"
        save_file(shards[-1], folder / name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(shards[-1], name))
        shards[-1] = {}

    for name, shape in shapes.items():
        if sum(t.nbytes for t in shards[-1].values()) > _SHARD_BYTES:
            save()
            shards.append({})
        shards[-1][name] = torch.empty(shape.shape, dtype=torch.bfloat16).normal_(0, 0.02, generator=generator)
    save()
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})


def measure(command: list[str]) -> tuple[float, float]:
    """Wall seconds and peak resident MiB of a command, its children included, that must succeed."""
    launched = [sys.executable, "-S", "-c", _LAUNCHER, *command]
    done = subprocess.run(launched, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{command[0]} failed; what it said is above.")
    seconds, peak = done.stdout.split()
    return float(seconds), float(peak) * 1024 / MIB


def cached_share(folder: Path) -> float:
    """Share of the files' pages that are in memory (util-linux's fincore), or NaN where that cannot be told."""
    files = [str(path) for path in folder.rglob("*.safetensors")]
    try:
        done = subprocess.run(["fincore", "-b", "-n", "-o", "RES", *files], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return float("nan")
    return sum(map(int, done.stdout.split())) / sum(os.path.getsize(file) for file in files)


def run(work: Path, rounds: int, num_layers: int, *, checked: bool) -> dict[str, Any]:
    """Samples of every command, in turns."""
    teacher, plain, out, copy = (work / name for name in ("teacher", "kept.bin", "student", "copy.bin"))
    if not (teacher / "model.safetensors.index.json").exists():
        make_teacher(teacher, num_layers)
    compress = [str(Path(sys.executable).with_name("compress")), "prune", str(teacher), str(out), "--keep", "alternate"]
    measure([*compress, "--no-check"])
    with plain.open("wb") as target:
        for path in sorted(out.glob("*.safetensors")):
            with path.open("rb") as source:
                shutil.copyfileobj(source, target)
    shutil.rmtree(out)
    commands = {
        "cp": ["sh", "-c", 'cp "$1" "$2" && sync "$2"', "sh", str(plain), str(copy)],
        "compress prune --no-check": [*compress, "--no-check"],
        "its copy alone": [sys.executable, "-c", _COPY_ALONE, str(teacher), str(out), str(num_layers)],
        "its plan alone (--dry-run)": [*compress, "--dry-run"],
        "SHA-256 of the kept bytes": [sys.executable, "-c", _HASH_ALONE, str(plain)],
        "SHA-256 of the teacher": [sys.executable, "-c", _HASH_ALONE, *map(str, sorted(teacher.glob("*.safetensors")))],
    }
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    cached, load = [], []
    os.sync()
    for number in range(rounds + 1):
        for name, command in commands.items():
            cached.append(cached_share(work))
            load.append(os.getloadavg()[0])
            sample = measure(command)
            copy.unlink(missing_ok=True)
            shutil.rmtree(out, ignore_errors=True)
            if number:
                samples[name].append(sample)
                sys.stderr.write(f"{name}: {sample[0]:.2f} s, {sample[1]:.0f} MiB\n")
    if checked:
        samples["compress prune, with the check"] = [measure(compress)]
    return {
        "samples": {name: [{"seconds": s, "peak_mib": m} for s, m in found] for name, found in samples.items()},
        "teacher_bytes": sum(path.stat().st_size for path in teacher.glob("*.safetensors")),
        "teacher_files": len(list(teacher.glob("*.safetensors"))),
        "kept_bytes": plain.stat().st_size,
        "least_cached": min(cached),
        "load_average": [min(load), max(load)],
        **environment(),
    }


def page(result: dict[str, Any]) -> str:
    """The table, and whether what is asked for holds."""
    samples = {
        name: [[s["seconds"] for s in found], [s["peak_mib"] for s in found]]
        for name, found in result["samples"].items()
    }  # fmt: skip
    base = median(samples["cp"][0])
    rows = [
        [
            name,
            f"{median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f}, {len(seconds)})",
            f"{median(seconds) / base:.2f}",
            f"{max(memory):.0f}",
        ]
        for name, (seconds, memory) in samples.items()
    ]
    ours = samples["compress prune --no-check"]
    hardware, load = result["hardware"], result["load_average"]
    return (
        "# compress prune beside cp\n\n"
        f"A teacher of {format_bytes(result['teacher_bytes'])} in {result['teacher_files']} files, "
        f"{format_bytes(result['kept_bytes'])} of them kept. {hardware['cpu']}, {hardware['cpu_cores']} cores, "
        f"{hardware['memory_gib']} GiB; load average {load[0]:.1f} to {load[1]:.1f}; "
        f"{100 * result['least_cached']:.0f}% or more of the files read were in memory at each start. "
        f"{result['note']}\n\n"
        + table(["command", "wall s, median (least to most, samples)", "of cp", "peak MiB"], rows)
        + f"\nWall, of cp's: {verdict(median(ours[0]) / base, MOST_TIME, at_most=True)}. "
        f"Peak MiB: {verdict(max(ours[1]), MOST_MEMORY_MIB, at_most=True)}.\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="counted samples of each command")
    parser.add_argument("--layers", type=int, default=28, help="of the teacher; 135 MB each, and 262 MB")
    parser.add_argument("--work", type=Path, help="folder on the disk to measure, where the teacher is left")
    parser.add_argument("--check", action="store_true", help="also measure the command with its check, once")
    parser.add_argument("--note", default="", help="what else the page should say of the machine")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder of the results")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        result = {**run(work, options.rounds, options.layers, checked=options.check), "note": options.note}
    options.out.mkdir(parents=True, exist_ok=True)
    write_json(options.out / "prune.json", result)
    (options.out / "prune.md").write_text(page(result))
    sys.stdout.write(page(result))


if __name__ == "__main__":
    main()
