"""Everything that reads what a user gives, and the inputs it is tried on. `make_targets` has them by name."""

import json
from pathlib import Path
from typing import Any

import torch
import yaml
from fuzz.fuzz_world import World
from fuzz.harness import Target, command
from fuzz.mutations import (
    BYTE_EDITS,
    JSON_EDITS,
    JUNK,
    WORDS,
    Edit,
    apply_to_bytes,
    apply_to_json,
    damage,
    file_edits,
    rehash,
)
from helpers import ROOT
from hypothesis import strategies as st

from compress.base.errors import InputError
from compress.data import DataConfig, TokenStore, prepare
from compress.data.store.index import fingerprint_of
from compress.model.files import check_weight_files
from compress.model.gguf_header import read_header
from compress.model.load import load_config, load_model, load_tokenizer
from compress.prune.choose.spec import parse_spec
from compress.report import write_report
from compress.report.compare import compare_models
from compress.run.recipe import load_recipe
from compress.run.scratch import scratch_config
from compress.verify import verify_run

RECIPES = [*sorted(ROOT.glob("recipes/*.yaml")), ROOT / "compress" / "demo" / "recipe.yaml"]
_YAML = """name teacher model data distill lr
: - { } [ ] , &a *a !!python/object:os.system !x | > ' " # --- ... << ? % ~ é
1e-4 2.2B 12:30:45 0x1G 0o9 . + 2024-01-01 = no \ufeff"""
_PIECES = [": ", "\n", "\n  ", "- ", "\t", "1" * 5000, "{a: " * 300, "{a: " * 600, "- " * 400]
_TOKENS = st.sampled_from([*_YAML.split(), *_PIECES])
_SOUP = st.lists(st.one_of(_TOKENS, st.text(max_size=5)), max_size=30).map("".join)


def make_targets(root: Path) -> dict[str, Target]:
    """The targets by name; what they damage lies below `root`."""
    world = World(root)
    return {
        **_recipe_targets(world),
        "layer spec": Target(_SPECS, lambda drawn: _check_spec(*drawn)),
        **_data_targets(world),
        **_model_targets(world),
        **_run_targets(world),
        **_command_targets(world),
    }


def _recipe_targets(world: World) -> dict[str, Target]:
    path = world.root / "fuzzed.yaml"

    def load(raw: bytes) -> None:
        path.write_bytes(raw)
        recipe = load_recipe(path)
        if recipe.teacher.scratch is not None:
            scratch_config(recipe.teacher.scratch.architecture)

    def load_edited(edits: list[Edit]) -> None:
        try:
            text = yaml.safe_dump(apply_to_json(world.recipe, edits), allow_unicode=True)
        except yaml.YAMLError:
            return
        load(text.encode("utf-8", "surrogatepass"))

    def override(assignments: list[str]) -> None:
        load_recipe(RECIPES[-1], assignments)

    texts = st.one_of(st.binary(max_size=80), _SOUP.map(lambda text: text.encode("utf-8", "surrogatepass")))
    real = st.tuples(st.sampled_from([path.read_bytes() for path in RECIPES]), BYTE_EDITS)
    return {
        "recipe: random text": Target(texts, load),
        "recipe: random structure": Target(st.one_of(JSON_EDITS), load_edited),
        "recipe: real ones damaged": Target(real, lambda drawn: load(apply_to_bytes(*drawn))),
        "recipe: --set": Target(st.lists(_assignments(), min_size=1, max_size=4), override),
    }


def _assignments() -> st.SearchStrategy[str]:
    paths = ["name", "teacher.model", "data.tokens", "distill.lr", "distill.betas", "distill.betas.0", "eval.tasks"]
    paths += [
        "prune",
        "prune.keep",
        "world",
        "world.seed",
        "teacher.scratch",
        "teacher.scratch.train.alpha",
        "",
        ".",
        "a.",
    ]
    values = st.one_of(_SOUP, JUNK.map(lambda value: json.dumps(value)))
    return st.one_of(
        st.tuples(st.one_of(st.sampled_from(paths), st.text(max_size=10)), values).map("=".join), st.text(max_size=20)
    )


_SPEC_TEXT = st.one_of(
    st.text(alphabet="0123456789-:,alternuifomcgs \t٣²", max_size=16),
    st.lists(st.integers(0, 12), max_size=6).map(lambda layers: ",".join(map(str, layers))),
    st.builds("{}:{}".format, st.sampled_from(["uniform", "contiguous", "", "-3"]), st.integers(-2, 10**12)),
    st.builds("{}-{}".format, st.integers(0, 10**12), st.integers(0, 10**12)),
    st.integers(0, 10**9).map(lambda digit: f"{digit}" * 700),
    st.text(max_size=8),
)
_SPECS = st.tuples(_SPEC_TEXT, st.integers(1, 200))


def _check_spec(text: str, num_layers: int) -> None:
    kept = parse_spec(text, num_layers)
    assert kept
    assert list(kept) == sorted(set(kept))
    assert 0 <= kept[0] <= kept[-1] < num_layers


def _data_targets(world: World) -> dict[str, Target]:
    def read(name: str, raw: bytes, on_bad_row: str, column: str) -> None:
        folder = world.fresh()
        (folder / name).write_bytes(raw)
        options: Any = {"on_bad_row": on_bad_row, "text_column": column}
        config = DataConfig(dataset=str(folder / name), seq_len=8, heldout_sequences=1, **options)
        store = prepare(config, world.tokenizer, folder / "store", visible=False)
        store.verify()
        assert len(store.rows(range(store.num_rows))) == store.num_rows

    def open_store(edits: list[Any], sealed: bool) -> None:
        folder = world.copy(world.store)
        damage(folder, edits)
        if sealed:
            _seal(folder / "index.json")
        store = TokenStore.open(folder)
        store.verify()
        store.rows(range(min(store.num_rows, 100)))
        store.heldout()
        store.heldout_bytes()
        store.row_ids(0, min(store.num_rows, 100), seed=0)

    names = ["a.parquet", "a.arrow", "b.arrow", "a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.txt", "a.txt.gz"]
    name, policy = st.sampled_from(names), st.sampled_from(["skip", "error"])
    column = st.sampled_from(["text", "text", "text", "id", "absent"])

    def damaged(drawn: Any) -> None:
        name, edits, *options = drawn
        read(name, apply_to_bytes(world.sources[name], edits), *options)

    lines = st.lists(st.one_of(JUNK.map(json.dumps), st.text(max_size=20)), max_size=8).map("\n".join)
    rows = st.lists(st.fixed_dictionaries({"text": JUNK}).map(json.dumps), max_size=8).map("\n".join)
    raw = st.one_of(st.binary(max_size=200), *(t.map(lambda s: s.encode("utf-8", "replace")) for t in (lines, rows)))
    files = ["index.json", "index.json", "train-00000.bin", "heldout.bin"]
    return {
        "data: random files": Target(st.tuples(name, raw, policy, column), lambda drawn: read(*drawn)),
        "data: real ones damaged": Target(st.tuples(name, BYTE_EDITS, policy, column), damaged),
        "token store": Target(st.tuples(file_edits(files), st.booleans()), lambda drawn: open_store(*drawn)),
    }


def _seal(path: Path) -> None:
    """Give a damaged index the fingerprint that belongs to it."""
    try:
        index = json.loads(path.read_text())
        index["fingerprint"] = fingerprint_of(index)
        path.write_text(json.dumps(index))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return


def _model_targets(world: World) -> dict[str, Target]:
    def load(edits: list[Any]) -> None:
        folder = world.copy(world.model)
        damage(folder, edits)
        check_weight_files(folder)
        load_config(folder)
        load_tokenizer(folder)
        load_model(folder, dtype=torch.float32, device="meta", device_map="meta")

    def resume(edits: list[Any], sealed: bool) -> None:
        folder = world.copy(world.training)
        damage(folder / "train", edits)
        for path in folder.glob("train/checkpoints/step-*"):
            if sealed and path.is_dir():
                rehash(path)
        world.train(folder)

    def read_gguf(edits: list[Edit]) -> None:
        file = world.root / "damaged.gguf"
        file.write_bytes(apply_to_bytes(world.gguf, edits))
        read_header(file)

    parts = ("state.json", "state.json", "manifest.json", "model.safetensors", "optimizer.safetensors")
    files = [f"checkpoints/step-{step}/{part}" for step in (2, 2, 1) for part in parts] + ["metrics.jsonl"]
    names = ["config.json", "config.json", "model.safetensors", "generation_config.json", "tokenizer.json"]
    return {
        "model folder": Target(file_edits([*names, "tokenizer_config.json"]), load),
        "GGUF header": Target(BYTE_EDITS, read_gguf),
        "checkpoint": Target(st.tuples(file_edits(files), st.booleans()), lambda drawn: resume(*drawn)),
    }


def _run_targets(world: World) -> dict[str, Target]:
    def report(edits: list[Any]) -> None:
        folder = world.copy(world.run)
        damage(folder, edits)
        write_report(folder)

    def verify(edits: list[Any]) -> None:
        folder = world.copy(world.run)
        damage(folder, edits)
        if any(check.status == "FAILED" for check in verify_run(folder)):
            raise InputError("damage was found")

    def compare(edits: list[Any]) -> None:
        folder = world.copy(world.letters)
        damage(folder, edits)
        compare_models([str(folder), f"same={folder / 'eval' / 'student.json'}"], folder / "out")

    scores = [
        f"eval/{stem}.{kind}" for stem in ("teacher", "student-init", "student") for kind in ("json", "items.jsonl")
    ]
    records = ["student/distill.json", "student-init/prune.json", "train/metrics.jsonl", "recipe.yaml"]
    state = "train/checkpoints/step-4/state.json"
    everything = [*scores, *records, "data/index.json", "data/train-00000.bin", "student/model.safetensors"]
    everything += [state, state.replace("state", "manifest"), "student/config.json", "report.json"]
    return {
        "report": Target(file_edits([*scores, *records]), report),
        "compare": Target(file_edits(scores), compare),
        "verify": Target(file_edits(everything), verify),
    }


def _fits_a_command_line(word: str) -> bool:
    """Whether a shell can pass it: no NUL, and nothing that stands for no bytes."""
    return "\0" not in word and "\ud800" not in word


def _command_targets(world: World) -> dict[str, Target]:
    def prune(drawn: Any) -> None:
        edits, spec, dry = drawn
        folder = world.copy(world.model)
        damage(folder, edits)
        command("prune", str(folder), str(folder.parent / "out"), f"--keep={spec}", *(["--dry-run"] if dry else []))

    def plan(drawn: Any) -> None:
        edits, assignments = drawn
        folder = world.fresh()
        (folder / "recipe.yaml").write_bytes(apply_to_bytes((world.run / "recipe.yaml").read_bytes(), edits))
        command("run", str(folder / "recipe.yaml"), "--dry-run", *(f"--set={text}" for text in assignments))

    def look(drawn: Any) -> None:
        name, edits = drawn
        folder = world.copy(world.run)
        damage(folder, edits)
        command(name, str(folder), "--json")

    def any_words(words: list[str]) -> None:
        world.fresh()
        command(*words)

    models = file_edits(["config.json", "config.json", "model.safetensors", "tokenizer.json"])
    specs = st.one_of(st.just("alternate"), _SPEC_TEXT.filter(lambda text: "\0" not in text))
    runs = file_edits(
        ["eval/student.json", "student/distill.json", "train/metrics.jsonl", "recipe.yaml", "data/index.json"]
    )
    arguments = st.one_of(
        WORDS.filter(_fits_a_command_line),
        st.sampled_from(["caf\udce9", "--json", "--keep", "--dry-run", "--set", "--out", "--help", "a/b/c"]),
    )
    names = st.sampled_from(["prune", "report", "verify", "distill", "eval", "nothing"])
    return {
        "command: prune": Target(st.tuples(models, specs, st.booleans()), prune),
        "command: run --dry-run": Target(
            st.tuples(st.one_of(st.just([]), BYTE_EDITS), st.lists(_assignments(), max_size=2)), plan
        ),
        "command: report, verify": Target(st.tuples(st.sampled_from(["report", "verify"]), runs), look),
        "command: random arguments": Target(
            st.tuples(names, st.lists(arguments, max_size=4)).map(lambda drawn: [drawn[0], *drawn[1]]), any_words
        ),
    }
