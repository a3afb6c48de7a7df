"""The parts of `benchmarks/gpu.py`: each a function of a scale and a folder to work in, giving plain JSON data."""

import contextlib
import dataclasses
import functools
import gc
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import gpu_recovery  # noqa: E402

LLAMA = {"vocabulary": 128256, "hidden": 2048, "intermediate": 8192, "heads": 32, "kv_heads": 8}
"""Llama-3.2-1B, which has 16 layers of this."""
SMALL = {"vocabulary": 32000, "hidden": 1024, "intermediate": 4096, "heads": 16, "kv_heads": 4}
TINY = {"vocabulary": 800, "hidden": 64, "intermediate": 128, "heads": 4, "kv_heads": 2}
ROWS, HELDOUT = 400, 16
WARM_UP_STEPS = 2


@dataclasses.dataclass(frozen=True)
class Scale:
    """Sizes of a pass: the real one, or `--smoke` on tiny models."""

    smoke: bool

    @property
    def worlds(self) -> dict[str, tuple[dict[str, int], int, int, int]]:
        """Shape, layers of teacher and student, and row length of `big`, which speed is measured on, and `small`."""
        if self.smoke:
            return {"big": (TINY, 4, 2, 64), "small": (TINY, 4, 2, 64)}
        return {"big": (LLAMA, 16, 8, 2048), "small": (SMALL, 4, 2, 512)}

    @property
    def micro_tokens(self) -> int:
        """Tokens that go through the models at once."""
        return 256 if self.smoke else 16384

    def repeats(self, count: int) -> int:
        """How often to measure."""
        return 2 if self.smoke else count


def device() -> Any:
    """The GPU there is, else the CPU."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def milliseconds(call: Callable[[], Any], repeats: int, warm: int = 2) -> float:
    """Median time of a call, all its work on the device included."""
    from harness import seconds

    kind = device().type
    for _ in range(warm):
        seconds(call, kind)
    return round(1e3 * median(seconds(call, kind) for _ in range(repeats)), 3)


def hardware(scale: Scale, work: Path) -> dict[str, Any]:
    """What everything else is a share of: copies, bf16 and fp32 products, all on random data."""
    import torch

    from compress.base.machine import environment

    here = device()
    size, side = (1 << 22, 256) if scale.smoke else (1 << 32, 8192)
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=here)
    target = torch.empty_like(source)
    copy = milliseconds(lambda: target.copy_(source), scale.repeats(7))
    found = environment()
    name = torch.cuda.get_device_name() if here.type == "cuda" else found["hardware"]["cpu"]
    rates = {}
    for kind in (torch.bfloat16, torch.float32):
        left, right = (torch.randn(side, side, device=here).to(kind) for _ in range(2))
        took = milliseconds(functools.partial(torch.mm, left, right), scale.repeats(7))
        rates[f"{str(kind).removeprefix('torch.')} products, TFLOP/s"] = round(2 * side**3 / took / 1e9, 1)
    versions = {**found["versions"], "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    return {"device": name, "copies, TB/s": round(2 * size / copy / 1e9, 3), **rates, "versions": versions}


def tests(scale: Scale, work: Path) -> dict[str, Any]:
    """`pytest -m gpu`: how it ended, and its last lines."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-m",
        "gpu and not slow",
        "-p",
        "no:cacheprovider",
        "-W",
        "default",
        "--maxfail=20",
        "-rfE",
    ]
    done = subprocess.run([*command, "tests/gpu"], cwd=ROOT, capture_output=True, text=True)
    (Path(os.environ["GPU_OUT"]) / "pytest.txt").write_text(done.stdout[-200_000:] + done.stderr[-50_000:])
    return {"exit": done.returncode, "last lines": done.stdout.strip().splitlines()[-25:]}


def build(scale: Scale, work: Path) -> dict[str, Any]:
    """Teachers and students with random weights, and token stores of random words."""
    import torch
    from step_world import World, word_tokenizer
    from transformers import AutoModelForCausalLM

    from compress.data import DataConfig, prepare

    started = time.perf_counter()
    for name, (shape, deep, shallow, length) in scale.worlds.items():
        world = World(name, **shape, teacher_layers=deep, student_layers=shallow, rows=1, seq_len=length)
        folder = work / name
        for seed, (kind, layers) in enumerate({"teacher": deep, "student": shallow}.items()):
            torch.manual_seed(seed)
            with torch.device(device()):
                model = AutoModelForCausalLM.from_config(world.config(layers), dtype=torch.bfloat16)
            model.save_pretrained(folder / kind)
            word_tokenizer(shape["vocabulary"]).save_pretrained(folder / kind)
        draw, text = random.Random(0), folder / "text.txt"
        pieces = (1, 2, 3, 5)  # documents of different lengths, for those parts that keep them apart
        with text.open("w") as file:
            for row in range(ROWS):
                for _ in range(count := pieces[row % len(pieces)]):
                    words = (f"w{draw.randrange(1, shape['vocabulary'])}" for _ in range(length // count))
                    file.write(" ".join(words) + "\n")
        config = DataConfig(dataset=str(text), seq_len=length, heldout_sequences=HELDOUT)
        prepare(config, tokenizer=folder / "teacher", out=folder / "data")
    return {"seconds": round(time.perf_counter() - started, 1)}


@contextlib.contextmanager
def _reduced(allowed: bool) -> Iterator[None]:
    """Let the loss's products be added up in bf16, which it forbids, to see what that would change."""
    from compress.distill.objective import chunks

    own = chunks._added_up_exactly
    if allowed:
        chunks._added_up_exactly = lambda _: contextlib.nullcontext()
    try:
        yield
    finally:
        chunks._added_up_exactly = own


def loss(scale: Scale, work: Path) -> dict[str, Any]:
    """Errors against float64; times and memory of ours by chunk, of torch's operations, and of peers."""
    import torch
    from harness import Shape, peak_rise_bytes
    from loss import four_products
    from loss_peers import Inputs, available, definition

    from compress.distill import distillation_loss

    here, kind = device(), torch.bfloat16
    width, vocabulary = (scale.worlds["big"][0][name] for name in ("hidden", "vocabulary"))
    found: dict[str, Any] = {"errors": {}, "ms": {}, "extra MiB": {}}

    def ours(x: Inputs, temperature: float = 1.0, **options: Any) -> torch.Tensor:
        sides = (x.hidden, x.head, x.teacher_hidden, x.teacher_head, x.labels)
        return distillation_loss(*sides, alpha=0.8, temperature=temperature, **options).loss

    for temperature, fused, reduced in ((1.0, True, False), (2.0, True, False), (2.0, False, False), (1.0, True, True)):
        x = Inputs.random(Shape(630, width, vocabulary), kind, here.type, ignored=0.2, seed=1)
        wide = [t.detach().double().requires_grad_() for t in (x.hidden, x.head)]
        exact = Inputs(*wide, x.teacher_hidden.double(), x.teacher_head.double(), x.labels)
        value = definition(exact, temperature, has_entropy=True)
        value.backward()
        with _reduced(reduced):
            got = ours(x, temperature, fused=fused)
            got.backward()
        pairs = {"loss": (got, value), "hidden": (x.hidden.grad, wide[0].grad), "head": (x.head.grad, wide[1].grad)}
        name = f"T = {temperature:g}, {'one pass' if fused else 'torch'}{', sums in bf16 allowed' if reduced else ''}"
        found["errors"][name] = {key: float((a.double() - b).norm() / b.norm()) for key, (a, b) in pairs.items()}
        del exact, wide, x
    gc.collect()

    tokens = 512 if scale.smoke else 8188
    x = Inputs.random(Shape(tokens, width, vocabulary), kind, here.type)
    master = x.head.detach().float().requires_grad_()

    def as_in_training(chunk: int | None) -> None:
        with torch.autocast(here.type, torch.bfloat16):
            sides = (x.hidden, master, x.teacher_hidden, x.teacher_head, x.labels)
            out = distillation_loss(*sides, ignore_index=None, chunk_tokens=chunk)
        out.loss.backward()
        master.grad = None

    calls: dict[str, Callable[[], Any]] = {"four products": four_products(x)}
    for chunk in (None, 512, 1024, 2048, 4096):
        calls[f"ours, fp32 master, chunk {chunk or 'by default'}"] = functools.partial(as_in_training, chunk)
    calls["ours, bf16 head"] = lambda: ours(x).backward()
    calls["ours, torch's operations"] = lambda: ours(x, fused=False).backward()
    for peer in available(here.type):
        if peer.name in ("dense", "liger", "liger_fused"):
            calls[peer.name] = lambda peer=peer: peer.loss(x, 1.0).backward()
    for name, call in calls.items():
        try:
            found["ms"][name] = milliseconds(lambda call=call: (call(), x.clear()), scale.repeats(7))
            found["extra MiB"][name] = round(peak_rise_bytes(call, here.type) / 2**20)
        except Exception as error:  # whatever a peer raises: the others are still measured
            found["ms"][name] = f"failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        x.clear()
        gc.collect()
    return found


def _session(scale: Scale, work: Path, *, steps: int, pieces: int = 2, **options: Any) -> Any:
    """A run of `steps` steps of `pieces` micro-batches on the big world, opened."""
    from compress.data import TokenStore
    from compress.distill import DistillConfig
    from compress.distill.asked import Checked, Training
    from compress.distill.opening import open_session

    folder, store = work / "big", TokenStore.open(work / "big" / "data")
    batch = pieces * scale.micro_tokens
    rows = options.pop("micro_batch_rows", None) or scale.micro_tokens // store.seq_len
    config = DistillConfig(
        tokens=steps * batch, batch_tokens=batch, micro_batch_rows=rows, precision="bf16", epochs=8,
        heldout_sequences=HELDOUT, cpu_tuning=False, **options,
    )  # fmt: skip
    models = {"student": folder / "student", "teacher": folder / "teacher"}
    asked = Training(config=config, data=store.path, out=work / "student", work=work / "train", **models)
    return open_session(Checked(asked, config, *models.values(), (), None, store, None, {}), None)


def step(scale: Scale, work: Path, steps: int = 8, **options: Any) -> dict[str, Any]:
    """Steps as `compress.distill.loop.train` takes them, without metrics and checkpoints; the first ones warm up."""
    import torch
    from harness import synchronize

    from compress.distill.loop.guard import StepGuard
    from compress.distill.loop.train import _reads, mfu
    from compress.distill.resources.schedule import learning_rate
    from compress.distill.resources.switches import in_one_order
    from compress.distill.rows.read_ahead import read_ahead
    from compress.distill.students.sharding import clip_gradients

    opened = time.perf_counter()
    s = _session(scale, work, steps=steps, **options)
    here, config = s.accelerator.device, s.config
    guard = StepGuard(config, here, total=0, in_a_row=0, recent=[])
    if here.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    started, ends, terms = time.perf_counter(), [], {}
    with in_one_order(config), contextlib.closing(read_ahead(_reads(s))) as batches:
        for number, (_, batch) in enumerate(batches):
            terms = s.losses.backward(batch, s.setting())
            norm = clip_gradients(s.accelerator, s.model, config.clip_norm)
            s.optimizer.step(learning_rate(config, number, s.budget.steps), skip=guard.note(number, terms, norm))
            s.optimizer.zero_grad()
            if number < WARM_UP_STEPS or number == s.budget.steps - 1:
                synchronize(here.type)
                ends.append(time.perf_counter())
    rate = (s.budget.steps - WARM_UP_STEPS) * config.batch_tokens / (ends[-1] - ends[WARM_UP_STEPS - 1])
    memory = {}
    if here.type == "cuda":
        memory = {
            "peak GiB": round(torch.cuda.max_memory_allocated() / 2**30, 2),
            "reserved GiB": round(torch.cuda.max_memory_reserved() / 2**30, 2),
        }
    return {
        "tokens/s": round(rate), "MFU": round(mfu(s, rate), 4), **memory, "planned GiB": _planned(scale, work, config),
        "first step, s": round(ends[0] - started, 1), "opened in s": round(started - opened, 1),
        "terms": {name: float(term.raw) for name, term in terms.items()}, "skipped": guard.read().total,
        "GFLOP a token": round(s.flops_per_token / 1e9, 3), "peak": s.peak._asdict(), "notes": s.notes,
    }  # fmt: skip


def _planned(scale: Scale, work: Path, config: Any) -> float:
    from compress.distill import plan_distill
    from compress.model.load import load_config

    models = {name: load_config(work / "big" / name) for name in ("student", "teacher")}
    plan = plan_distill(config, **models, num_rows=ROWS, seq_len=scale.worlds["big"][3], device=device())
    return round(plan.total_bytes / 2**30, 2)


def profile(scale: Scale, work: Path) -> dict[str, Any]:
    """Calls and device time in ms of each kernel of one micro-batch, the longest first: where a step loses."""
    import torch
    from torch.profiler import ProfilerActivity

    s = _session(scale, work, steps=3, pieces=1, compile=False)
    rows = s.rows.read(s.rows.row_ids(0, s.config.micro_batch_rows))
    batch = s.losses.share(rows)
    for _ in range(2):
        s.losses.backward(batch, s.setting())
    on_gpu = torch.cuda.is_available()
    with torch.profiler.profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * on_gpu]) as found:
        s.losses.backward(batch, s.setting())
        if on_gpu:
            torch.cuda.synchronize()
    measure = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    events = [e for e in found.key_averages() if not on_gpu or e.device_type == torch.autograd.DeviceType.CUDA]
    events.sort(key=lambda event: -getattr(event, measure))
    return {event.key[:110]: [event.count, round(getattr(event, measure) / 1e3, 2)] for event in events[:40]}


def resume(scale: Scale, work: Path, deterministic: bool) -> dict[str, Any]:
    """`compress distill` twice as a whole, and once killed after its second checkpoint and run again: same bytes?"""
    folder = work / "small"
    length = scale.worlds["small"][3]
    batch = length * (8 if scale.smoke else 16)
    options = {
        "tokens": 10 * batch, "batch_tokens": batch, "checkpoint_every": 2, "log_every": 1, "heldout_every": 0,
        "heldout_sequences": 4, "precision": "bf16", "epochs": 8, "deterministic": deterministic,
    }  # fmt: skip

    def run(name: str, kill_at: int | None = None) -> tuple[int, float]:
        models = [
            "--student",
            str(folder / "student"),
            "--teacher",
            str(folder / "teacher"),
            "--data",
            str(folder / "data"),
        ]
        sets = [f"--set=distill.{key}={json.dumps(value)}" for key, value in options.items()]
        command = [sys.executable, "-m", "compress.cli", "distill", *models, "--out", str(work / name), *sets]
        started = time.perf_counter()
        with (work / f"{name}.log").open("a") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
            saved = work / name / "train" / "checkpoints" / f"step-{kill_at}" / "manifest.json"
            while kill_at is not None and process.poll() is None:
                if saved.is_file():
                    process.send_signal(signal.SIGKILL)
                    break
                time.sleep(0.005)
            return process.wait(), round(time.perf_counter() - started, 1)

    ends = {
        f"{n} {name}": run(name, kill)
        for n, (name, kill) in enumerate([("whole", None), ("again", None), ("cut", 4), ("cut", None)])
    }

    def same(other: str) -> Any:
        files = ("student/model.safetensors", "train/checkpoints/step-10/optimizer.safetensors")
        try:
            return [(work / "whole" / file).read_bytes() == (work / other / file).read_bytes() for file in files]
        except OSError as error:
            return f"failed: {error}; {(work / f'{other}.log').read_text()[-500:]}"

    result = {
        "exit codes and s": ends,
        "twice: same weights, moments": same("again"),
        "cut: same weights, moments": same("cut"),
    }
    for name in ("whole", "again", "cut"):
        shutil.rmtree(work / name, ignore_errors=True)
    return result


def evaluate(scale: Scale, work: Path) -> dict[str, Any]:
    """Generation speed of both models, held-out tokens a second with and without fidelity, answer options a second."""
    from harness import seconds
    from lm_eval.api.instance import Instance

    from compress.data import TokenStore
    from compress.evaluate import EvalConfig
    from compress.evaluate.harness.scorer import Scorer
    from compress.evaluate.speed import measure_speed
    from compress.evaluate.text.language import heldout_scores
    from compress.inference.readout import load_checkpoint

    config = EvalConfig(speed_repeats=scale.repeats(3), speed_decode_tokens=4 if scale.smoke else 32)
    models = {name: load_checkpoint(work / "big" / name) for name in ("teacher", "student")}
    student = models["student"]
    found: dict[str, Any] = {"speed": measure_speed(models, config)}
    rows = TokenStore.open(work / "big" / "data").heldout(4)
    for name, teacher in (("loss alone", None), ("loss and fidelity", models["teacher"])):
        took = milliseconds(functools.partial(heldout_scores, student, rows, rows.size, teacher=teacher), 2, 1)
        found[f"held-out tokens/s, {name}"] = round(rows.size / took * 1e3)
    draw = random.Random(1)

    def words(count: int) -> str:
        return " ".join(f"w{draw.randrange(1, student.vocab_size)}" for _ in range(count))

    shots = words(20 if scale.smoke else 700)
    questions = [f"{shots} {words(10 if scale.smoke else 80)}" for _ in range(8 if scale.smoke else 400)]
    pairs = itertools.product(questions, range(1, 5))
    requests = [
        Instance("loglikelihood", {}, (question, f" w{option}"), 0, ("task", 0, 1)) for question, option in pairs
    ]
    scorer = Scorer(student, config.batch_tokens)
    took = seconds(lambda: scorer.loglikelihood(requests, disable_tqdm=True), device().type)
    found["answer options/s, 4 a question of 780 tokens"] = round(len(requests) / took, 1)
    return found


def recovery(scale: Scale, work: Path) -> dict[str, Any]:
    """SmolLM2-135M cut to 24 and 15 layers, repaired, and healed on a store of real text: held-out KL by tokens.

    `RECOVERY` names the folder that `benchmarks/gpu_recovery.py` made (runs/recovery by default). In a smoke pass, the
    small world stands in for it.
    """
    from compress.data import TokenStore
    from compress.distill import DistillConfig, distill
    from compress.prune import RankingConfig, RepairConfig, prune

    place = work / "small" if scale.smoke else Path(os.environ.get("RECOVERY", "runs/recovery"))
    teacher = work / "recovery-teacher"
    if scale.smoke:
        shutil.copytree(place / "teacher", teacher)
    else:
        gpu_recovery.assemble(place, teacher)
    store, found = TokenStore.open(place / "data"), {}
    text = {"calibration": str(place / "data")}
    # as the study of this model found best: greedy by loss for a light cut, equally spaced for a deep one
    cuts: dict[int, Any] = {24: RankingConfig(by="kl-greedy", layers=24, **text), 15: "uniform:15"}
    for layers, choice in ({3: "0,1,3", 2: "0,3"} if scale.smoke else cuts).items():
        started, cut, run = time.perf_counter(), work / f"cut-{layers}", work / f"healed-{layers}"
        prune(teacher, cut, choice, repair=RepairConfig(**text, repair_tokens=2000 if scale.smoke else 131072))
        pruned_s = time.perf_counter() - started
        batch = 1024 if scale.smoke else 32768
        config = DistillConfig(
            alpha=1.0, lr=5e-4, batch_tokens=batch, precision="bf16", log_every=1,
            tokens=4 * batch if scale.smoke else None, heldout_every=0.25 if scale.smoke else 0.05,
            heldout_sequences=min(200, store.num_heldout), checkpoint_every=0,
        )  # fmt: skip
        result = distill(
            config, student=cut, teacher=teacher, data=place / "data", out=run / "student", work=run / "train"
        )
        rows = [json.loads(line) for line in (run / "train" / "metrics.jsonl").read_text().splitlines()]
        found[f"{layers} layers"] = {
            "tokens": result.tokens, "tokens/s": result.tokens_per_s, "MFU": round(result.mfu, 4),
            "compiled": result.compiled, "attention": result.attention, "cut and repair, s": round(pruned_s, 1),
            "held-out KL by tokens": [[r["tokens"], round(r["heldout_kl"], 4)] for r in rows if "heldout_kl" in r],
        }  # fmt: skip
        shutil.rmtree(run / "train" / "checkpoints", ignore_errors=True)
    return found
