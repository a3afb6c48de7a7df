"""Which optimizer and schedule heal a student to a given held-out KL in the fewest tokens.

    python benchmarks/optimizers.py --work runs/optimizers           about half an hour on two CPU cores
    python benchmarks/optimizers.py --work runs/smoke --smoke       a minute: does everything once, measures nothing

A small teacher is trained from scratch on text, cut to half its depth, and healed by each of {adamw, muon} x {cosine,
wsd} with three orders of the data and three lengths of training, each length with its whole schedule. The learning
rate of each is tuned on a fourth order. Everything is in the work folder: stopped and started again, the study goes on
where it was. docs/optimizers.md says what the numbers mean. The Markdown table goes to stdout, all numbers to
WORK/optimizers.json.
"""

import argparse
import dataclasses
import itertools
import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Literal

from compress.base.disk import staged_folder, write_json
from compress.base.machine import environment
from compress.base.progress import say
from compress.data import DataConfig, prepare
from compress.distill import DistillConfig, distill
from compress.prune import prune
from compress.run.scratch import initialise
from compress.run.sections import ScratchTeacher

CORPUS = Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "corpus"
Combination = tuple[Literal["adamw", "muon"], Literal["cosine", "wsd"]]
COMBINATIONS: tuple[Combination, ...] = (("adamw", "cosine"), ("adamw", "wsd"), ("muon", "cosine"), ("muon", "wsd"))
TUNING_SEED = 100
FIRST_LR = 4e-3
LR_RANGE = (2.5e-4, 6.4e-2)
Curve = list[tuple[int, float]]
"""Tokens trained on and held-out KL at the end, one point for each length of training, shortest first."""


@dataclasses.dataclass(frozen=True)
class Scale:
    """How large the study is."""

    vocabulary: int = 4096
    hidden: int = 128
    layers: int = 6
    seq_len: int = 128
    store_tokens: int = 4_000_000
    heldout_rows: int = 128
    teacher_tokens: int = 1_500_000
    batch_tokens: int = 2048
    lengths: tuple[int, ...] = (49_152, 98_304, 196_608)
    """Tokens of the runs that are compared; the learning rate is tuned at the middle one."""
    seeds: tuple[int, ...] = (0, 1, 2)


SMOKE = Scale(512, 32, 2, 32, 20_000, 8, 4_096, 512, (1_024, 2_048), (0,))


def write_tokenizer(corpus: Path, vocabulary: int, out: Path) -> Path:
    """A byte-level BPE trained on every tenth document, cached in `out`. Training it takes no random choice."""
    if out.exists():
        return out
    import pyarrow.parquet
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    texts = [
        pyarrow.parquet.read_table(f, columns=["text"])["text"].to_pylist() for f in sorted(corpus.glob("*.parquet"))
    ]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<eos>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(list(itertools.chain(*texts))[::10], trainer)
    with staged_folder(out) as partial:
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>").save_pretrained(partial)
    return out


def small_llama(vocabulary: int, hidden: int, layers: int, seq_len: int) -> dict[str, Any]:
    """The architecture of a study's teacher."""
    return {
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": hidden * 11 // 4,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": seq_len,
        "tie_word_embeddings": True,
    }


def train_teacher(scratch: ScratchTeacher, data: Path, work: Path) -> Path:
    """Train a teacher from scratch on a token store, or go on with it, into WORK/teacher."""
    start, out = work / "teacher-init", work / "teacher"
    if not start.exists():
        with staged_folder(start) as partial:
            initialise(scratch, partial)
    distill(scratch.train, student=start, teacher=None, data=data, out=out, work=work / "teacher-training")
    return out


class Study:
    """The models and data of the study in `work`, made at first use, and runs over them."""

    def __init__(self, work: Path, corpus: Path, scale: Scale) -> None:
        self.work, self.scale = work, scale
        tokenizer = write_tokenizer(corpus, scale.vocabulary, work / "tokenizer")
        data = DataConfig(
            dataset=str(corpus),
            seq_len=scale.seq_len,
            tokens=scale.store_tokens,
            heldout_sequences=scale.heldout_rows,
        )
        self.data = work / "data"
        prepare(data, tokenizer, self.data)
        self.teacher = self._make_teacher(tokenizer)
        self.student = work / "student-init"
        if not self.student.exists():
            prune(self.teacher, self.student, "alternate")

    def _make_teacher(self, tokenizer: Path) -> Path:
        scale = self.scale
        train = DistillConfig(
            alpha=0.0, tokens=scale.teacher_tokens, batch_tokens=2 * scale.batch_tokens, lr=4e-3, checkpoint_every=0.25
        )
        architecture = small_llama(scale.vocabulary, scale.hidden, scale.layers, scale.seq_len)
        scratch = ScratchTeacher(architecture=architecture, tokenizer=str(tokenizer), train=train)
        return train_teacher(scratch, self.data, self.work)

    def run(self, combination: Combination, lr: float, tokens: int, seed: int) -> dict[str, float]:
        """Heal the student once (or read what an earlier call did): held-out KL before and after, tokens a second."""
        optimizer, schedule = combination
        folder = self.work / "runs" / f"{optimizer}-{schedule}-lr{lr:g}-{tokens}-seed{seed}"
        config = DistillConfig(
            optimizer=optimizer,
            schedule=schedule,
            lr=lr,
            tokens=tokens,
            seed=seed,
            batch_tokens=self.scale.batch_tokens,
            warmup_fraction=0.05,
            heldout_every=0,
            heldout_sequences=self.scale.heldout_rows,
            checkpoint_every=0,
        )
        result = distill(
            config,
            student=self.student,
            teacher=self.teacher,
            data=self.data,
            out=folder / "student",
            work=folder / "train",
        )
        shutil.rmtree(folder / "train" / "checkpoints", ignore_errors=True)
        rows = [json.loads(line) for line in (folder / "train" / "metrics.jsonl").read_text().splitlines()]
        kls = [row["heldout_kl"] for row in rows if "heldout_kl" in row]
        say(f"{folder.name}: held-out KL {kls[0]:.4f} -> {kls[-1]:.4f}, {result.tokens_per_s:,.0f} tokens/s")
        return {"start_kl": kls[0], "kl": kls[-1], "tokens_per_s": result.tokens_per_s}


def best_lr(kl_at: Callable[[float], float], first: float = FIRST_LR, bounds: tuple[float, float] = LR_RANGE) -> float:
    """Double or halve the learning rate, from `first` and within `bounds`, while the KL falls."""
    found = {first: kl_at(first)}
    for factor in (2.0, 0.5):
        lr = first
        while found[lr] == min(found.values()) and bounds[0] <= lr * factor <= bounds[1]:
            lr *= factor
            found[lr] = kl_at(lr)
    return min(found, key=lambda lr: found[lr])


def tokens_to_reach(target: float, curve: Curve) -> float:
    """Tokens after which a KL is reached, on straight lines of log KL over log tokens between a curve's points.

    The shortest run's tokens if even that is there, infinity if none is.
    """
    if curve[0][1] <= target:
        return curve[0][0]
    for (tokens, kl), (more, less) in itertools.pairwise(curve):
        if less <= target:
            way = math.log(kl / target) / math.log(kl / less)
            return math.exp(math.log(tokens) + way * math.log(more / tokens))
    return math.inf


def compare(study: Study, tune: bool) -> Iterator[dict[str, Any]]:
    """One record a combination: the tuned learning rate, and a curve and a rate of tokens for each seed."""
    lengths = study.scale.lengths
    middle = lengths[len(lengths) // 2]
    for combination in COMBINATIONS:

        def kl_at(lr: float, combination: Combination = combination) -> float:
            return study.run(combination, lr, middle, TUNING_SEED)["kl"]

        lr = best_lr(kl_at) if tune else FIRST_LR
        runs = {seed: [study.run(combination, lr, n, seed) for n in lengths] for seed in study.scale.seeds}
        yield {
            "optimizer": combination[0],
            "schedule": combination[1],
            "lr": lr,
            "start_kl": next(iter(runs.values()))[0]["start_kl"],
            "curves": {seed: list(zip(lengths, [r["kl"] for r in found], strict=True)) for seed, found in runs.items()},
            "tokens_per_s": median(r["tokens_per_s"] for found in runs.values() for r in found),
        }


def table(records: Sequence[dict[str, Any]], lengths: Sequence[int]) -> str:
    """The Markdown table; the target is what the first record's longest run reaches with the same order of the data."""
    baseline = records[0]["curves"]
    lines = [
        f"| optimizer | schedule | lr | tokens to adamw + cosine's KL at {lengths[-1]:,} | final KL | tokens/s |",
        "|---|---|---|---|---|---|",
    ]
    for record in records:
        curves: dict[int, Curve] = record["curves"]
        needed = [tokens_to_reach(baseline[seed][-1][1], curve) for seed, curve in curves.items()]
        record["tokens_to_target"] = [None if math.isinf(n) else n for n in needed]
        final = [curve[-1][1] for curve in curves.values()]
        cells = [
            record["optimizer"],
            record["schedule"],
            f"{record['lr']:g}",
            _spread(needed, lambda n: _tokens(n, lengths)),
            _spread(final, lambda kl: f"{kl:.4f}"),
            f"{record['tokens_per_s']:,.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(values: Sequence[float], text: Callable[[float], str]) -> str:
    return f"{text(median(values))} ({text(min(values))} to {text(max(values))})"


def _tokens(count: float, lengths: Sequence[int]) -> str:
    if math.isinf(count):
        return f"> {lengths[-1]:,}"
    return f"<= {count:,.0f}" if count == lengths[0] else f"{count:,.0f}"


def main() -> None:
    """Run the study, or what is left of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of everything the study makes")
    parser.add_argument("--corpus", type=Path, default=CORPUS, help="folder of parquet files with a column `text`")
    parser.add_argument("--smoke", action="store_true", help="a tiny study that shows only that everything runs")
    options = parser.parse_args()
    scale = SMOKE if options.smoke else Scale()
    study = Study(options.work, options.corpus, scale)
    records = list(compare(study, tune=not options.smoke))
    text = table(records, scale.lengths)
    report = {"scale": dataclasses.asdict(scale), "environment": environment(), "results": records}
    write_json(options.work / "optimizers.json", report)
    kl = records[0]["start_kl"]
    print(f"Held-out KL before healing: {kl:.4f}; median (range) of {len(scale.seeds)} seeds\n\n{text}")  # noqa: T201


if __name__ == "__main__":
    main()
