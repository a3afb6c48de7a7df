"""Which criterion chooses the layers whose student is best, before a heal and after it, and what a repair adds.

    python benchmarks/criteria.py --work runs/criteria              about an hour on one CPU core
    python benchmarks/criteria.py --work runs/smoke --smoke         a minute: does everything once, measures nothing

A teacher is trained from scratch. For each seed every criterion names its cut, and each cut is made without and with
repair and healed with the same rows in the same order. A seed is the calibration text, the random draw and the order of
the healing; with --own-teachers the teacher's first weights and the order of its data, too. Cuts that several criteria
name are healed once. `rank-after` heals each cut for a while first and takes the best. Everything is in the work
folder: stopped and started again, the study goes on where it was. docs/pruning.md says what the numbers mean. The
Markdown tables go to stdout, all numbers to WORK/criteria.json.
"""

import argparse
import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, get_args

import pyarrow.parquet
from harness import table
from optimizers import CORPUS, small_llama, train_teacher, write_tokenizer
from scipy.stats import spearmanr

from compress.base.disk import read_json, staged_folder, write_json, write_text
from compress.base.machine import environment
from compress.base.progress import say
from compress.data import DataConfig, prepare
from compress.distill import DistillConfig, distill
from compress.prune import RankingConfig, RepairConfig, prune
from compress.prune.choose.spec import format_layers
from compress.prune.parts import WITHOUT_TEXT, Method
from compress.prune.repair import seams
from compress.run.sections import ScratchTeacher

RANK_AFTER = "rank-after"
Cut = tuple[int, ...]
"""The layers that stay."""


@dataclasses.dataclass(frozen=True)
class Scale:
    """How large the study is."""

    vocabulary: int = 2048
    hidden: int = 96
    layers: int = 8
    kept: int = 4
    seq_len: int = 128
    store_tokens: int = 2_500_000
    heldout_rows: int = 96
    teacher_tokens: int = 2_500_000
    batch_tokens: int = 2048
    calibration_tokens: int = 32_768
    rank_tokens: int = 16_384
    heal_tokens: int = 65_536
    seeds: tuple[int, ...] = (0, 1, 2)


SMOKE = Scale(512, 32, 4, 2, 32, 20_000, 8, 4_096, 512, 1_024, 1_024, 2_048, (0,))


class Study:
    """One seed's cuts and healed students, in `work`, each made at its first use."""

    def __init__(self, work: Path, corpus: Path, data: Path, teacher: Path, scale: Scale, seed: int) -> None:
        self.work, self.data, self.teacher, self.scale, self.seed = work, data, teacher, scale, seed
        self.text = _write_calibration(corpus, work / "calibration.jsonl", seed, len(scale.seeds))

    def proposals(self) -> dict[str, Cut]:
        """Each criterion's cut."""
        kept = self.scale.kept
        asked: dict[str, str | RankingConfig] = {
            "alternate": "alternate",
            "uniform": f"uniform:{kept}",
            "contiguous": f"contiguous:{kept}",
        }
        for method in get_args(Method):
            text = {} if method in WITHOUT_TEXT else self._calibration()
            asked[method] = RankingConfig(layers=kept, by=method, seed=self.seed, **text)
        return {name: self._cut(name, keep) for name, keep in asked.items()}

    def heal(self, kept: Cut, *, repaired: bool, tokens: int) -> dict[str, dict[str, float]]:
        """Held-out losses of the student before and after a heal: what is minimised, data loss and KL, nats a token."""
        name = f"{format_layers(kept)}{'-repaired' if repaired else ''}"
        start, folder = self.work / "cuts" / name, self.work / f"heal-{tokens}" / name
        if not start.exists():
            how = RepairConfig(**self._calibration(), repair_tokens=self.scale.calibration_tokens)
            repair = how if repaired else None
            prune(self.teacher, start, format_layers(kept), check=False, repair=repair)
        config = DistillConfig(
            tokens=tokens,
            lr=4e-3,
            seed=self.seed,
            batch_tokens=self.scale.batch_tokens,
            warmup_fraction=0.05,
            heldout_every=0,
            heldout_sequences=self.scale.heldout_rows,
            checkpoint_every=0,
        )
        distill(
            config,
            student=start,
            teacher=self.teacher,
            data=self.data,
            out=folder / "student",
            work=folder / "train",
        )
        shutil.rmtree(folder / "train" / "checkpoints", ignore_errors=True)
        rows = [json.loads(line) for line in (folder / "train" / "metrics.jsonl").read_text().splitlines()]
        found = [
            {"objective": row["heldout_loss"], "loss": row["heldout_hard"], "kl": row["heldout_kl"]}
            for row in rows
            if "heldout_loss" in row
        ]
        say(f"seed {self.seed}, {name}, {tokens:,} tokens: KL {found[0]['kl']:.4f} -> {found[-1]['kl']:.4f}")
        return {"before": found[0], "after": found[-1]}

    def teacher_loss(self) -> float:
        """Held-out loss of the teacher, nats a token."""
        loss: float = read_json(self.teacher / "distill.json")["heldout_hard"]
        return loss

    def _calibration(self) -> dict[str, Any]:
        scale = self.scale
        return {
            "calibration": str(self.text),
            "calibration_tokens": scale.calibration_tokens,
            "calibration_seq_len": scale.seq_len,
        }

    def _cut(self, name: str, keep: str | RankingConfig) -> Cut:
        out = self.work / "proposed" / name
        if not out.exists():
            prune(self.teacher, out, keep, check=False)
        return tuple(read_json(out / "prune.json")["kept_layers"])


def _write_calibration(corpus: Path, out: Path, seed: int, seeds: int) -> Path:
    """One part for each seed of the corpus's last file, which nothing is trained or measured on."""
    if not out.exists():
        texts = pyarrow.parquet.read_table(sorted(corpus.glob("*.parquet"))[-1], columns=["text"])["text"].to_pylist()
        write_text(out, "".join(json.dumps({"text": text}) + "\n" for text in texts[seed::seeds]))
    return out


def make_teacher(tokenizer: Path, data: Path, work: Path, scale: Scale, seed: int) -> Path:
    """Train the teacher into WORK/teacher, or go on with it."""
    train = DistillConfig(
        alpha=0.0,
        tokens=scale.teacher_tokens,
        batch_tokens=scale.batch_tokens,
        lr=4e-3,
        seed=seed,
        checkpoint_every=0.1,
    )
    architecture = small_llama(scale.vocabulary, scale.hidden, scale.layers, scale.seq_len)
    architecture["initializer_range"] = scale.hidden**-0.5  # else so narrow a model starts with flat attention
    return train_teacher(ScratchTeacher(architecture=architecture, tokenizer=str(tokenizer), train=train), data, work)


def prepare_data(corpus: Path, tokenizer: Path, work: Path, scale: Scale) -> Path:
    """A token store of the corpus without its last file."""
    text = work / "text"
    if not text.exists():
        with staged_folder(text) as partial:
            for file in sorted(corpus.glob("*.parquet"))[:-1]:
                shutil.copy(file, partial / file.name)
    data = DataConfig(
        dataset=str(text), seq_len=scale.seq_len, tokens=scale.store_tokens, heldout_sequences=scale.heldout_rows
    )
    prepare(data, tokenizer, work / "data")
    return work / "data"


def measure(study: Study) -> dict[str, Any]:
    """One seed's record: which cuts were proposed, and every student's losses before and after its heals."""
    scale, proposed = study.scale, study.proposals()
    students = []
    for kept in dict.fromkeys(proposed.values()):
        plain = study.heal(kept, repaired=False, tokens=scale.heal_tokens)
        early = study.heal(kept, repaired=False, tokens=scale.rank_tokens)
        repaired = None
        if seams(kept, scale.layers):
            repaired = study.heal(kept, repaired=True, tokens=scale.heal_tokens)
        students.append({"kept": kept, "plain": plain, "early": early["after"], "repaired": repaired})
    best = min(students, key=lambda student: student["early"]["objective"])
    proposed[RANK_AFTER] = best["kept"]
    return {"seed": study.seed, "teacher_loss": study.teacher_loss(), "proposed": proposed, "students": students}


def by_criterion(records: Sequence[Mapping[str, Any]], measure: str) -> Iterator[list[str]]:
    """Rows of the table for a measure (`loss` or `kl`), best healed student first."""
    found: dict[str, list[list[float | None]]] = {}
    for name in records[0]["proposed"]:
        found[name] = [_figures(record, record["proposed"][name], measure) for record in records]
    for name, seeds in sorted(found.items(), key=lambda item: median(_known(item[1], 1))):
        yield [name, *(_spread(_known(seeds, column)) for column in range(4))]


def _figures(record: Mapping[str, Any], cut: Sequence[int], measure: str) -> list[float | None]:
    """Before and after the heal, without and with repair."""
    student = next(student for student in record["students"] if tuple(student["kept"]) == tuple(cut))
    columns = [(way, when) for way in ("plain", "repaired") for when in ("before", "after")]
    return [None if student[way] is None else student[way][when][measure] for way, when in columns]


def _known(seeds: Sequence[Sequence[float | None]], column: int) -> list[float]:
    return [value for seed in seeds if (value := seed[column]) is not None]


def _spread(values: Sequence[float]) -> str:
    return f"{median(values):.3f} ({min(values):.3f} to {max(values):.3f})" if values else "–"


def predictions(records: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    """How well the objective before, or early in, healing foretells the healed one, over a seed's unrepaired cuts."""
    looks: dict[str, Callable[[Mapping[str, Any]], float]] = {
        "before healing": lambda student: student["plain"]["before"]["objective"],
        "after the short heal": lambda student: student["early"]["objective"],
    }
    for name, look in looks.items():
        correlations, costs = [], []
        for record in records:
            students = record["students"]
            final = [student["plain"]["after"]["objective"] for student in students]
            seen = [look(student) for student in students]
            correlations.append(float(spearmanr(seen, final).statistic))
            costs.append(final[seen.index(min(seen))] - min(final))
        yield [name, _spread(correlations), _spread(costs)]


def page(records: Sequence[Mapping[str, Any]]) -> str:
    """The Markdown tables."""
    head = ["criterion", "cut", "cut, healed", "repaired", "repaired, healed"]
    losses = sorted({record["teacher_loss"] for record in records})
    parts = [
        f"Held-out loss of the teacher{'s' if losses[1:] else ''}: {', '.join(f'{loss:.3f}' for loss in losses)}\n"
    ]
    for measure_, title in (("kl", "KL(teacher || student), nats a token"), ("loss", "Held-out loss, nats a token")):
        parts.append(
            f"{title}; median (range) of {len(records)} seeds\n\n{table(head, list(by_criterion(records, measure_)))}"
        )
    prediction = table(
        ["ranked", "Spearman's rho with the healed ranking", "cost of its choice, nats"], list(predictions(records))
    )
    parts.append(
        f"Ranking the {', '.join(str(len(r['students'])) for r in records)} distinct cuts of the seeds\n\n{prediction}"
    )
    cuts = [[name, *(format_layers(record["proposed"][name]) for record in records)] for name in records[0]["proposed"]]
    named = ["criterion", *(f"seed {record['seed']}" for record in records)]
    parts.append(f"Layers that stay\n\n{table(named, cuts)}")
    return "\n".join(parts)


def main() -> None:
    """Run the study, or what is left of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of everything the study makes")
    parser.add_argument("--corpus", type=Path, default=CORPUS, help="folder of parquet files with a column `text`")
    parser.add_argument("--own-teachers", action="store_true", help="a teacher for each seed, rather than one for all")
    parser.add_argument("--smoke", action="store_true", help="a tiny study that shows only that everything runs")
    options = parser.parse_args()
    work, scale = options.work, SMOKE if options.smoke else Scale()
    tokenizer = write_tokenizer(options.corpus, scale.vocabulary, work / "tokenizer")
    data = prepare_data(options.corpus, tokenizer, work, scale)
    records = []
    for seed in scale.seeds:
        place = work / f"seed-{seed}"
        own = options.own_teachers
        teacher = make_teacher(tokenizer, data, place if own else work, scale, seed if own else 0)
        records.append(measure(Study(place, options.corpus, data, teacher, scale, seed)))
        write_json(
            work / "criteria.json",
            {
                "scale": dataclasses.asdict(scale),
                "own_teachers": options.own_teachers,
                "environment": environment(),
                "results": records,
            },
        )
    print(page(records))  # noqa: T201


if __name__ == "__main__":
    main()
