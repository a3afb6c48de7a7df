"""What the fuzz damages: a model, text in every format, a training with checkpoints, and a finished run."""

import dataclasses
import json
import shutil
from functools import cached_property
from pathlib import Path
from typing import Any

from data_world import FORMATS, documents, write_source
from distill_world import SEQ_LEN
from gguf_world import write_gguf
from helpers import byte_tokenizer, save_tiny_model
from report_world import letter_items, letters_run

from compress.base.disk import read_json, sha256_file, write_json
from compress.data import DataConfig, prepare
from compress.distill import DistillConfig, distill
from compress.report import write_report
from compress.run.pipeline import run_recipe
from compress.run.recipe import Recipe, load_recipe

RECIPE = """
name: fuzz
teacher: {{model: {0}/model}}
data: {{dataset: {0}/text.jsonl, seq_len: 32, heldout_sequences: 4}}
distill: {{tokens: 512, batch_tokens: 128, heldout_sequences: 2, log_every: 1, checkpoint_every: 2, cpu_tuning: false}}
eval: {{speed: false, samples: 1, sample_tokens: 4, heldout_sequences: 2}}
"""
TRAINING = DistillConfig(
    alpha=0.0, tokens=256, batch_tokens=128, heldout_sequences=2, checkpoint_every=1, log_every=1, cpu_tuning=False
)


@dataclasses.dataclass(frozen=True)
class World:
    """Folders below `root`, each made when it is first asked for. `copy` gives one to damage."""

    root: Path

    def __post_init__(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)

    def __hash__(self) -> int:
        return hash(self.root)

    @cached_property
    def model(self) -> Path:
        """A tiny model with a byte tokenizer."""
        return save_tiny_model(self.root / "model", num_hidden_layers=2)

    @cached_property
    def gguf(self) -> bytes:
        """A GGUF file."""
        write_gguf(self.root / "model.gguf")
        return (self.root / "model.gguf").read_bytes()

    @cached_property
    def tokenizer(self) -> Path:
        """A tokenizer alone."""
        byte_tokenizer().save_pretrained(self.root / "tokenizer")
        return self.root / "tokenizer"

    @cached_property
    def text(self) -> Path:
        """JSON lines."""
        return write_source(self.root / "text.jsonl", documents(300))

    @cached_property
    def sources(self) -> dict[str, bytes]:
        """A file in each format, by its name."""
        paths = [write_source(self.root / "sources" / f"a.{suffix}", documents(40)) for suffix in FORMATS]
        paths += [write_source(self.root / "streams" / "b.arrows", documents(40))]
        return {path.name: path.read_bytes() for path in paths}

    @cached_property
    def store(self) -> Path:
        """A token store."""
        config = DataConfig(dataset=str(self.text), seq_len=SEQ_LEN, heldout_sequences=4)
        prepare(config, self.model, self.root / "store", visible=False)
        return self.root / "store"

    @cached_property
    def letters(self) -> Path:
        """A run whose models answered lettered questions, with what they were asked and answered."""
        models = letter_items(0.7, seed=1), letter_items(None, seed=2, always=0), letter_items(0.6, seed=3)
        return letters_run(self.root / "letters", *(items[:30] for items in models))

    @cached_property
    def training(self) -> Path:
        """The work folder of a training that finished its two steps and lost its student."""
        self.train(self.root / "training")
        shutil.rmtree(self.root / "training" / "student")
        return self.root / "training"

    def train(self, folder: Path) -> None:
        """Train, or go on, in `folder`."""
        work = {"out": folder / "student", "work": folder / "train"}
        distill(TRAINING, student=self.model, teacher=None, data=self.store, **work)

    @cached_property
    def run(self) -> Path:
        """A finished run, with the scores of a benchmark made up."""
        _ = self.model, self.text
        (self.root / "recipe.yaml").write_text(RECIPE.format(self.root))
        run = run_recipe(self.root / "recipe.yaml", self.root / "run")
        for stem in ("teacher", "student-init", "student"):
            _make_up_scores(run / "eval", stem)
        write_report(run)
        return run

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """A recipe with every default written out."""
        return json.loads(json.dumps(dataclasses.asdict(self.loaded_recipe)))

    @cached_property
    def loaded_recipe(self) -> Recipe:
        """The recipe of `run`."""
        (self.root / "recipe.yaml").write_text(RECIPE.format(self.root))
        return load_recipe(self.root / "recipe.yaml")

    def copy(self, folder: Path) -> Path:
        """A copy, the only one, of one of the folders."""
        scratch = self.root / "scratch" / folder.name
        shutil.rmtree(self.root / "scratch", ignore_errors=True)
        return Path(shutil.copytree(folder, scratch))

    def fresh(self) -> Path:
        """An empty folder."""
        shutil.rmtree(self.root / "scratch", ignore_errors=True)
        (self.root / "scratch").mkdir()
        return self.root / "scratch"


def _make_up_scores(folder: Path, stem: str) -> None:
    record = read_json(folder / f"{stem}.json")
    items = [
        {
            "task": "quiz",
            "groups": [],
            "doc_id": i,
            "doc_sha256": f"{i:064x}",
            "metrics": {"acc": i % 2},
            "chance": 0.25,
        }
        for i in range(12)
    ]
    path = folder / f"{stem}.items.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    score = {"acc": 0.5, "acc_stderr": 0.15, "chance": 0.25, "n": 12, "num_fewshot": 0, "primary": "acc"}
    record["tasks"] = {"quiz": score}
    record["manifest"]["outputs"] = {path.name: sha256_file(path)}
    write_json(folder / f"{stem}.json", record)
