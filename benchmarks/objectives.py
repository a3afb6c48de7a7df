"""What each objective costs: the time of a training step over that of forward KL + cross-entropy, in one run.

    python benchmarks/objectives.py                      SmolLM2's shape, 30 and 24 layers, random weights
    python benchmarks/objectives.py --rounds 2 --objectives kl reverse-kl hidden-last

Steps of all objectives take turns on one pair of models, forward, backward and optimizer, so that a slow moment of the
machine meets all alike; ratios are of medians. `torch` is the same objective without the compiled pass over the logits.
"""

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import harness
import numpy as np
import torch
from objective_recipes import OBJECTIVES

BASE = "paper"
TIMED = tuple(name for name in OBJECTIVES if name not in ("kl-wsd", "kl-muon"))


def main() -> None:
    """Time them, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objectives", nargs="+", choices=TIMED, default=TIMED)
    parser.add_argument("--tokens", type=int, default=1024, help="a step")
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--layers", type=int, nargs=2, default=(24, 30), help="of student and teacher")
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--vocabulary", type=int, default=49152)
    parser.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--torch", action="store_true", help="and without the compiled pass")
    options = parser.parse_args()
    names = list(dict.fromkeys([BASE, *options.objectives]))
    with tempfile.TemporaryDirectory() as scratch:
        steps = {}
        world = World(options, Path(scratch))
        for name in names:
            steps[name] = world.step(OBJECTIVES[name])
            if options.torch:
                steps[f"{name}, torch"] = world.step({**OBJECTIVES[name], "fused_loss": False})
        samples: dict[str, list[float]] = {name: [] for name in steps}
        for turn in range(options.rounds + 1):
            for name, step in steps.items():
                taken = harness.seconds(step, world.device)
                if turn:  # the first compiles and allocates
                    samples[name].append(taken)
    base = statistics.median(samples[BASE])
    rows = [
        [name, f"{statistics.median(times):.3f}", f"{statistics.median(times) / base:.3f}", harness.summary(times)]
        for name, times in samples.items()
    ]
    harness.say(harness.facts())
    harness.say(harness.table(["objective", "s a step", f"over {BASE}", "spread"], rows))


class World:
    """A pair of random Llama models, rows of random tokens, and a step of any objective on them."""

    def __init__(self, options: argparse.Namespace, scratch: Path) -> None:
        from transformers import LlamaConfig, LlamaForCausalLM

        from compress.distill.loop.accelerator import make_accelerator
        from compress.distill.loop.optimizer import make_optimizer

        self.options = options
        config = self.config(precision=options.precision)
        self.accelerator = make_accelerator(config, scratch)
        self.device = str(self.accelerator.device)
        models = []
        for layers in options.layers:
            torch.manual_seed(0)
            shape = LlamaConfig(
                vocab_size=options.vocabulary,
                hidden_size=options.width,
                intermediate_size=options.width * 8 // 3,
                num_hidden_layers=layers,
                num_attention_heads=options.width // 64,
                num_key_value_heads=options.width // 64,
                tie_word_embeddings=True,
            )
            models.append(LlamaForCausalLM(shape).to(self.accelerator.device))
        self.student, teacher = models
        self.teacher = teacher.requires_grad_(False)
        if config.precision == "bf16" or (config.precision == "auto" and self.device != "cpu"):
            self.teacher.to(torch.bfloat16)
        rows = np.random.default_rng(0).integers(
            0, options.vocabulary, (options.tokens // options.seq_len, options.seq_len)
        )
        self.rows = rows
        self.optimizer = make_optimizer(self.student, config)

    def config(self, **changes: Any) -> Any:
        """Options of a run, with those of an objective."""
        from compress.base.config import build_from
        from compress.distill import DistillConfig

        size = {"batch_tokens": self.options.tokens, "lr": 1e-5}
        return build_from(DistillConfig, {**size, **changes})

    def step(self, objective: dict[str, Any]) -> Any:
        """A function that takes one step."""
        from compress.distill.loop.accelerator import prepare_model
        from compress.distill.loop.step import Losses, StudentWithLoss
        from compress.distill.objective.objective import make_objective
        from compress.distill.objective.pairs import uniform_pairs
        from compress.distill.objective.part import Pair
        from compress.distill.rows.batch import Batch
        from compress.distill.teachers.source import LiveTeacher

        config = self.config(precision=self.options.precision, **objective)
        kept = tuple(layer for _, layer in uniform_pairs(*self.options.layers))
        made = make_objective(config, Pair(self.student.config, self.teacher.config, kept))
        vocabulary = self.options.vocabulary
        guide = LiveTeacher(self.teacher, made.needs, vocabulary)
        model = prepare_model(self.accelerator, StudentWithLoss(self.student, made, vocabulary))
        losses = Losses(self.accelerator, model, made, guide, micro_batch_rows=len(self.rows))
        batch = Batch(ids=self.rows, labels=self.rows[:, 1:].copy(), row_ids=np.arange(len(self.rows)))
        share = losses.share(batch)
        levels = dict.fromkeys(made.names, 1.0) if config.balance == "level" else None

        def step() -> None:
            losses.backward(share, made.at(0.0, levels))
            self.optimizer.step(1e-6, skip=torch.zeros((), device=self.accelerator.device))
            self.optimizer.zero_grad()

        return step


if __name__ == "__main__":
    main()
