"""Peak memory of the distillation loss beyond its inputs and gradients, dense and chunked, in fresh processes.

    python benchmarks/loss_memory.py            a Markdown table on stdout (Linux; needs /proc/self/clear_refs)

Dense is the loss as one would write it in PyTorch: both logit tensors, log-softmax, KL and cross-entropy. The figure is
the rise of the process's peak resident memory over forward and backward, less the two gradients that both return.
"""

import json
import subprocess
import sys
from pathlib import Path

import torch
from torch.nn import functional

DIM = 256
CASES = [(512, 32000), (1024, 32000), (2048, 32000), (4096, 32000), (1024, 128256)]


def dense(hidden: torch.Tensor, head: torch.Tensor, teacher: tuple[torch.Tensor, ...], labels: torch.Tensor) -> None:
    student_logits = hidden @ head.t()
    with torch.no_grad():
        teacher_logs = (teacher[0] @ teacher[1].t()).log_softmax(-1)
    logs = student_logits.log_softmax(-1)
    soft = functional.kl_div(logs, teacher_logs, log_target=True, reduction="batchmean")
    (0.8 * soft + 0.2 * functional.nll_loss(logs, labels)).backward()


def chunked(hidden: torch.Tensor, head: torch.Tensor, teacher: tuple[torch.Tensor, ...], labels: torch.Tensor) -> None:
    from compress.distill import distillation_loss

    distillation_loss(hidden, head, *teacher, labels).loss.backward()


def peak_kib() -> int:
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])


def measure(name: str, tokens: int, vocabulary: int) -> float:
    """MiB of one case in this process."""
    torch.manual_seed(0)
    function = {"dense": dense, "chunked": chunked}[name]
    make = [torch.randn(n, DIM) for n in (tokens, vocabulary, tokens, vocabulary)]
    hidden, head = make[0].requires_grad_(), make[1].mul_(0.05).requires_grad_()
    labels = torch.randint(vocabulary, (tokens,))
    warm = torch.randn(8, DIM, requires_grad=True)
    function(warm, torch.randn(64, DIM, requires_grad=True), (warm.detach(), torch.randn(64, DIM)), labels[:8] % 64)
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_kib()
    function(hidden, head, (make[2], make[3]), labels)
    gradients = (hidden.numel() + head.numel()) * 4 / 2**20
    return (peak_kib() - before) / 1024 - gradients


def main() -> None:
    """Print the table; with three arguments (name, tokens, vocabulary), measure one case and print it as JSON."""
    if len(sys.argv) == 4:
        print(json.dumps(measure(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))  # noqa: T201
        return
    print(f"torch {torch.__version__}, fp32, D = {DIM}\n")  # noqa: T201
    print("| tokens N | vocabulary V | dense, MiB | chunked, MiB | ratio |\n|---|---|---|---|---|")  # noqa: T201
    for tokens, vocabulary in CASES:
        found = {}
        for name in ("dense", "chunked"):
            command = [sys.executable, __file__, name, str(tokens), str(vocabulary)]
            found[name] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        ratio = found["chunked"] / found["dense"]
        print(f"| {tokens} | {vocabulary} | {found['dense']:.0f} | {found['chunked']:.0f} | {ratio:.2f} |")  # noqa: T201


if __name__ == "__main__":
    main()
