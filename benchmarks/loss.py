"""The distillation loss against its peers and against its four matrix products: time, memory, error.

    python benchmarks/loss.py                    all of it on the CPU, hours: it prints how many
    python benchmarks/loss.py --smoke            tiny shapes, a minute: does every peer still run and agree?
    python benchmarks/loss.py --device cuda      on a GPU, with Llama-3.2-1B's head
    python benchmarks/loss.py --report           no measuring: the table from what was measured

Writes OUT/loss.json after every case, and OUT/loss.md from it; a rerun goes on where the last one stopped. Every case
runs in a fresh process. README.md beside this file says what is measured and how.
"""

import argparse
import gc
import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import torch
from harness import (
    DTYPES,
    ENVIRONMENTS,
    MIB,
    Results,
    Shape,
    peak_rise_bytes,
    product_rate,
    return_freed_memory,
    seconds,
)
from loss_peers import PEERS, Inputs, Peer, available, definition
from loss_report import report

TEMPERATURES = (1.0, 2.0)
SHAPES = {
    "cpu": (Shape(2048, 512, 32000), Shape(512, 2048, 128256)),
    "cuda": (Shape(8192, 2048, 128256), Shape(2048, 2048, 128256)),
    "smoke": (Shape(64, 32, 1000),),
}
TOKENS = {
    "cpu": [Shape(n, 512, 32000) for n in (512, 1024, 2048, 4096)],
    "cuda": [Shape(n, 2048, 128256) for n in (1024, 2048, 4096, 8192)],
}
ERROR_SHAPE, ERROR_SEEDS, ERROR_TEMPERATURE, IGNORED = Shape(96, 64, 1000), 5, 2.0, 0.3


def measure_times(
    peers: list[Peer], shape: Shape, dtype: torch.dtype, device: str, samples: int
) -> dict[str, dict[str, Any]]:
    """Seconds of forward and backward pass, for each temperature: name -> samples, or why it failed.

    One sample of everything, the four products first, then the next sample of everything, starting one peer later.
    """
    inputs = Inputs.random(shape, dtype, device)
    products = four_products(inputs)
    found: dict[str, dict[str, Any]] = {}
    for temperature in TEMPERATURES:
        times: dict[str, Any] = {"floor": [], **{peer.name: [] for peer in peers}}
        for sample in range(-1, samples):
            turn = max(sample, 0) % len(peers)
            calls: list[tuple[str, Callable[[], Any]]] = [("floor", products)]
            calls += [(p.name, forward_and_backward(p, inputs, temperature)) for p in peers[turn:] + peers[:turn]]
            for name, call in calls:
                if isinstance(times[name], str):
                    continue
                try:
                    took = seconds(call, device)
                except RuntimeError as error:
                    times[name] = f"failed: {' '.join(str(error).split())[:200]}"
                    took = 0.0
                inputs.clear()
                gc.collect()
                if sample >= 0 and isinstance(times[name], list):
                    times[name].append(took)
        found[str(temperature)] = times
    return found


def forward_and_backward(peer: Peer, inputs: Inputs, temperature: float) -> Callable[[], None]:
    """What is timed of a peer."""
    return lambda: peer.loss(inputs, temperature).backward()


@torch.no_grad()
def four_products(x: Inputs) -> Callable[[], None]:
    """The products no exact loss can do without, 8NDV FLOPs, into memory that is there already."""
    logits, teacher_logits = (torch.zeros(len(x.hidden), len(x.head)).to(x.hidden) for _ in range(2))
    d_hidden, d_head = torch.zeros_like(x.hidden), torch.zeros_like(x.head)

    @torch.no_grad()
    def run() -> None:
        torch.mm(x.hidden, x.head.t(), out=logits)
        torch.mm(x.teacher_hidden, x.teacher_head.t(), out=teacher_logits)
        torch.mm(logits, x.head, out=d_hidden)
        torch.mm(logits.t(), x.hidden, out=d_head)

    return run


def measure_memory(peer: Peer, shape: Shape, dtype: torch.dtype, device: str) -> float:
    """MiB by which one forward and backward pass raises the peak beyond inputs and returned gradients.

    A call on a small input comes first, for what is loaded or set up only once; what compiles for one shape is called
    on that shape, and returns what it freed, so that compiling does not count.
    """
    warm = Inputs.random(shape if peer.compiled else Shape(16, shape.width, 64), dtype, device)
    peer.loss(warm, 1.0).backward()
    del warm
    return_freed_memory()
    inputs = Inputs.random(shape, dtype, device)
    rise = peak_rise_bytes(forward_and_backward(peer, inputs, 1.0), device)
    gradients = sum(t.grad.nbytes for t in (inputs.hidden, inputs.head) if t.grad is not None)
    return round((rise - gradients) / MIB, 1)


def measure_errors(peers: list[Peer], dtype: torch.dtype, device: str) -> dict[str, Any]:
    """Relative error of loss and gradients against float64, root mean square over seeds: name -> quantity -> error.

    At T = 2 with 30% of the labels ignored. Both see the same inputs, rounded to `dtype`; the gradients' error is that
    of the whole tensor, |g - g64| / |g64|.
    """
    squares: dict[str, torch.Tensor] = {peer.name: torch.zeros(3, dtype=torch.float64) for peer in peers}
    for seed in range(ERROR_SEEDS):
        inputs = Inputs.random(ERROR_SHAPE, dtype, device, ignored=IGNORED, seed=seed)
        for peer in peers:
            exact = in_float64(inputs)
            value = definition(exact, ERROR_TEMPERATURE, has_entropy=peer.has_entropy)
            value.backward()
            inputs.clear()
            loss = peer.loss(inputs, ERROR_TEMPERATURE)
            loss.backward()
            assert inputs.hidden.grad is not None
            assert inputs.head.grad is not None
            pairs = [(loss.detach(), value.detach()), (inputs.hidden.grad, exact.hidden.grad)]
            pairs += [(inputs.head.grad, exact.head.grad)]
            errors = [float((found.double() - true).norm() / true.norm()) for found, true in pairs]
            squares[peer.name] += torch.tensor(errors, dtype=torch.float64).square()
    names = ("loss", "hidden_gradient", "head_gradient")
    return {name: dict(zip(names, (s / ERROR_SEEDS).sqrt().tolist(), strict=True)) for name, s in squares.items()}


def in_float64(x: Inputs) -> Inputs:
    """The same numbers in float64, with gradients of their own."""
    hidden, head = (t.detach().double().requires_grad_() for t in (x.hidden, x.head))
    return Inputs(hidden, head, x.teacher_hidden.double(), x.teacher_head.double(), x.labels)


def run_case(case: dict[str, Any]) -> Any:
    """Measure one case in this process; `case` is what `cases` made."""
    harness.set_environment(case["environment"])
    by_name = {peer.name: peer for peer in PEERS}
    dtype, device = DTYPES[case["dtype"]], case["device"]
    peers = [by_name[name] for name in case["peers"]]
    if case["kind"] == "errors":
        return measure_errors(peers, dtype, device)
    shape = Shape(*case["shape"])
    if case["kind"] == "memory":
        return measure_memory(peers[0], shape, dtype, device)
    return measure_times(peers, shape, dtype, device, case["samples"])


def cases(options: argparse.Namespace, peers: list[Peer]) -> tuple[dict[str, dict[str, Any]], dict[str, float]]:
    """Every case by name, and a rough guess of its seconds on two cores."""
    made: dict[str, dict[str, Any]] = {}
    guesses: dict[str, float] = {}

    def add(name: str, guess_s: float, **case: Any) -> None:
        made[name] = {"environment": "stock", "device": options.device, **case}
        guesses[name] = guess_s + 8

    names = [peer.name for peer in peers]
    sizes = "smoke" if options.smoke else options.device
    exact_environments = [name for name in options.environments if name != "onednn+malloc"]
    for environment, dtype in itertools.product(exact_environments or ["onednn"], options.dtypes):
        add(f"errors {dtype} {environment}", 2, kind="errors", dtype=dtype, environment=environment, peers=names)
    shapes = [shape for shape in SHAPES[sizes] if shape.vocabulary in (options.vocabularies or [shape.vocabulary])]
    for shape, dtype in itertools.product(shapes, options.dtypes):
        for name in names[:2] if options.smoke else names:
            add(
                f"memory {shape} {dtype} {name}",
                10,
                kind="memory",
                dtype=dtype,
                shape=shape,
                peers=[name],
                tokens_series=False,
            )
    for shape, name in itertools.product(() if options.smoke else TOKENS[options.device], ("ours", "dense")):
        case = {"kind": "memory", "dtype": "fp32", "shape": shape, "peers": [name], "tokens_series": True}
        add(f"memory by tokens {shape} {name}", 5, **case)
    for shape, dtype, environment in itertools.product(shapes, options.dtypes, options.environments):
        case = {"kind": "time", "dtype": dtype, "shape": shape, "environment": environment, "peers": names}
        guess = pass_seconds(shape, dtype, environment) if options.device == "cpu" else 1.0
        guess = guess * 2 * (options.samples + 1) + 60 * ("liger_compiled" in names)
        add(f"time {shape} {dtype} {environment}", guess, samples=options.samples, **case)
    return made, guesses


def pass_seconds(shape: Shape, dtype: str, environment: str) -> float:
    """A guess at one pass over all peers on a CPU: their products, and what they do to every logit."""
    flops = 8 * shape.tokens * shape.width * shape.vocabulary
    per_logit_s = 2.5e-7 if environment != "onednn+malloc" else 1e-7
    return 8 * flops / product_rate(dtype) + shape.tokens * shape.vocabulary * per_logit_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--samples", type=int, default=7, help="samples of each time; 7 at least for a table to keep")
    parser.add_argument("--environments", nargs="+", choices=ENVIRONMENTS, help="CPU only; all by default")
    parser.add_argument("--dtypes", nargs="+", choices=tuple(DTYPES), default=list(DTYPES))
    parser.add_argument("--vocabularies", nargs="+", type=int, help="only the shapes with these V; all by default")
    parser.add_argument("--peers", nargs="+", choices=[peer.name for peer in PEERS], help="besides ours and dense")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--smoke", action="store_true", help="tiny shapes, little of each, in OUT/smoke")
    parser.add_argument("--report", action="store_true", help="only write the table again")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        sys.stdout.write(json.dumps(run_case(json.loads(options.case))) + "\n")
        return
    if options.device == "cuda":
        options.environments = ["stock"]
    options.environments = options.environments or list(ENVIRONMENTS)
    if options.smoke:
        options.samples, options.out = min(options.samples, 2), options.out / "smoke"
        options.environments = options.environments[:1]
    usual = [peer.name for peer in PEERS if not (options.smoke and peer.compiled)]
    chosen = {*(options.peers or usual), "ours", "dense"}
    peers = [peer for peer in available(options.device) if peer.name in chosen]
    stem = "loss" if options.device == "cpu" else "loss-cuda"
    results = Results(options.out / f"{stem}.json", Path(__file__))
    if not options.report:
        results.run(*cases(options, peers))
    page = report(results, options.device)
    (options.out / f"{stem}.md").write_text(page)
    sys.stdout.write(page)


if __name__ == "__main__":
    main()
