"""A tiny world for `compress run`: a teacher, text, one benchmark, and a recipe that uses them."""

import json
from pathlib import Path
from typing import Any

from chat_templates import GEMMA2
from helpers import run_cli, save_tiny_model

from compress.run.layout import Layout
from compress.run.pipeline import resolve_paths
from compress.run.recipe import Recipe
from compress.run.recipe_steps import steps_of
from compress.run.redo import Redo

RECIPE = """
name: tiny
teacher: {{model: {folder}/teacher}}
prune: {{keep: alternate}}
data: {{dataset: {folder}/text.jsonl, seq_len: 64, heldout_sequences: 4}}
distill: {{tokens: 8k, batch_tokens: 512, lr: 1e-3, heldout_sequences: 4, log_every: 1, checkpoint_every: 4}}
eval:
  tasks: [tiny_choice]
  task_folder: {folder}/tasks
  datasets_root: {folder}/hub
  heldout_sequences: 4
  speed_prompt_tokens: 16
  speed_decode_tokens: 4
  speed_repeats: 2
  samples: 2
"""
TASK = """
task: tiny_choice
dataset_path: org/tiny
output_type: multiple_choice
test_split: test
doc_to_text: "{{question}}"
doc_to_choice: "{{options}}"
doc_to_target: answer
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
SIDE_FILES = ("chat_template.jinja", "additional_chat_templates/tool_use.jinja", "LICENSE")


def write_benchmark(folder: Path, items: list[dict[str, Any]]) -> None:
    """Write the benchmark `tiny_choice`, of `items` (question, options, answer), into `hub/` and `tasks/`."""
    (folder / "hub" / "org" / "tiny").mkdir(parents=True)
    (folder / "hub" / "org" / "tiny" / "test.jsonl").write_text("\n".join(json.dumps(item) for item in items))
    (folder / "tasks").mkdir()
    (folder / "tasks" / "tiny_choice.yaml").write_text(TASK)


def make_blend_world(folder: Path, *, tokens: str, weight: int) -> Path:
    """`make_run_world` with `words.jsonl`, which counts `weight` beside `text.jsonl`, and blend.yaml, of both."""
    make_run_world(folder)
    lines = [json.dumps({"text": f"the {word} of a {word} is no {word}. " * 9}) for word in map(str, range(300))]
    (folder / "words.jsonl").write_text("\n".join(lines) + "\n")
    text, words = folder / "text.jsonl", folder / "words.jsonl"
    sources = f"[{{dataset: {text}, name: 'num <b>'}}, {{dataset: {words}, weight: {weight}}}]"
    recipe = (folder / "recipe.yaml").read_text()
    (folder / "blend.yaml").write_text(recipe.replace(f"dataset: {text},", f"tokens: {tokens}, sources: {sources},"))
    return folder


def make_run_world(folder: Path) -> Path:
    """Write `teacher/`, `text.jsonl`, `hub/`, `tasks/` and `recipe.yaml` into `folder` and return it."""
    save_tiny_model(folder / "teacher", num_hidden_layers=4)
    (folder / "teacher" / "additional_chat_templates").mkdir()
    for name in SIDE_FILES:
        (folder / "teacher" / name).write_text(GEMMA2)
    lines = [json.dumps({"text": f"Number {i} comes after number {i - 1}. " * 8}) for i in range(200)]
    (folder / "text.jsonl").write_text("\n".join(lines) + "\n")
    items = [{"question": f"After {i} comes", "options": [str(i + 1), str(i - 1), "x"], "answer": 0} for i in range(9)]
    write_benchmark(folder, items)
    (folder / "recipe.yaml").write_text(RECIPE.format(folder=folder))
    return folder


def make_pair_world(folder: Path) -> Path:
    """`make_run_world`, and `pair.yaml` with a student `small` of its own: narrower, its vocabulary padded."""
    make_run_world(folder)
    recipe = (folder / "recipe.yaml").read_text()
    (folder / "pair.yaml").write_text(recipe.replace("prune: {keep: alternate}", f"student: {{model: {folder}/small}}"))
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 320}
    save_tiny_model(folder / "small", seed=1, scale=0.1, **small)
    return folder


def run_to(out: Path, recipe: Path, *changes: str) -> Path:
    """Run a recipe with `--set` changes to its end; returns the run folder."""
    done = run_cli("run", str(recipe), "--out", str(out), *(f"--set={change}" for change in changes))
    assert done.returncode == 0, done.stderr
    return out


def make_steps(recipe: Recipe, run: Path, teacher: Path, *groups: str) -> None:
    """Do those steps of a recipe that are of these groups and not done, in order, as a run with --redo does."""
    layout = Layout(run)
    steps = [s for s in steps_of(resolve_paths(recipe, run), layout, lambda *_: teacher) if s.group in groups]
    for step in steps:
        state, _ = step.state()
        if state == "changed":
            Redo.under_way(layout).move([step])
        if state != "done":
            step.make()
