"""What is checked of each key of a recipe, and when: the table of docs/recipe_checks.md, with examples of refusals.

`python tests/early_checks.py` writes the page.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from compress.base.config import key_of
from compress.run.recipe import Recipe

PAGE = Path(__file__).resolve().parents[1] / "docs" / "recipe_checks.md"
HEAD = """# What is checked, and when

Made by `tests/early_checks.py`, which also tries each refusal. *Reading* is when the recipe and `--set` are read.
*Before anything is made* is at the start of `compress run` and in `--dry-run`, which refuse the same, all at once;
commands of their own (`prune`, `distill`, `eval`) ask the same of their options. *Later* is what only the work itself
can tell.

What lies on the Hugging Face hub is looked up at the start: of models the small files are fetched, of text the first
rows are read. A hub that does not answer refuses nothing yet: that is said, and it is asked again when its turn comes;
but benchmarks that are neither here nor to be had are refused. What a step before makes (the demo's world) is looked at
as soon as it is there.

| key | reading | before anything is made | later |
|---|---|---|---|
"""


class Early(NamedTuple):
    """What is asked at the start, and assignments that are then refused, with words of the refusal."""

    what: str
    examples: tuple[tuple[tuple[str, ...], str], ...] = ()


def early(what: str, *examples: tuple[str, str]) -> Early:
    """Each example is assignments, a space between them, and the words."""
    return Early(what, tuple((tuple(assignments.split()), words) for assignments, words in examples))


ROWS = "fit the context of teacher and student; the default is cut to it"
EARLY: dict[str, Early] = {
    "teacher.model": early(
        "there is such a model, its weight files are whole, its config.json makes a causal LM that can be cut; "
        "a GGUF file is converted",
        ("teacher.model=/nowhere", "The model folder /nowhere does not exist"),
        ("teacher.model=/nowhere.gguf", "The model file /nowhere.gguf does not exist"),
    ),
    "teacher.trust_remote_code": early("a model that needs it is refused without it"),
    "teacher.cache.kind": early(
        "it has what the objective asks for; the disk has room",
        ("teacher.cache={kind:hidden} distill.weights={similarity:1}", "which its cache does not have"),
        ("teacher.cache={kind:hidden} data.tokens=1T", "teacher-cache takes"),
        ("teacher.cache={kind:samples} distill.temperature=2", "temperature: 1 alone"),
    ),
    "teacher.cache.rows": early(
        "there are held-out rows to measure it on",
        ("teacher.cache={kind:hidden,rows:int8} data.heldout_sequences=0", "is measured on held-out rows"),
    ),
    "teacher.cache.k": early(
        "the teacher has as many tokens", ("teacher.cache={kind:topk,k:300}", "has 257 tokens in all")
    ),
    "teacher.cache.folder": early(
        "is free, or holds a cache", ("teacher.cache={folder:{tasks}}", "is not a teacher's cache that this tool made")
    ),
    "student.model": early(
        "there is such a model, its weight files are whole, and it has the teacher's vocabulary, "
        "or distill.divergence is uld",
        ("student.model=/nowhere", "The model folder /nowhere does not exist"),
    ),
    "teacher.scratch.architecture": early(
        "makes a causal LM",
        ("teacher.model=null teacher.scratch={architecture:{vocab_size:9},tokenizer:x,train:{alpha:0}}", "model_type"),
    ),
    "teacher.scratch.tokenizer": early(
        "is there, and has no more tokens than the architecture",
        (
            "teacher.model=null teacher.scratch={architecture:{model_type:llama},tokenizer:/nowhere,train:{alpha:0}}",
            "has no usable tokenizer",
        ),
    ),
    "prune.keep": early(
        "names layers that the teacher has, and a cut that its config can say",
        ("prune.keep=uniform:9", "uniform:N needs N from 2 to 4"),
    ),
    "prune.layers": early("no more than there are", ("prune.layers=9 prune.by=random prune.keep=null", "has 4 layers")),
    "prune.candidates": early(
        "keep as many layers as asked for",
        (
            "prune.keep=null prune.layers=2 prune.rank_after=1k prune.candidates=[0-2] data.tokens=2k",
            "keeps 3 of 4 layers",
        ),
    ),
    "prune.rank_after": early(
        "there are held-out rows to compare by, and enough text",
        (
            "prune.keep=null prune.layers=2 prune.rank_after=1k data.tokens=2k distill.heldout_sequences=0",
            "Candidates are compared on held-out rows",
        ),
        ("prune.keep=null prune.layers=2 prune.rank_after=9k data.tokens=2k distill.tokens=2k", "the store has 32"),
    ),
    "prune.calibration": early(
        "there is such text",
        (
            "prune.keep=null prune.layers=2 prune.by=taylor prune.calibration=/nowhere.txt",
            "/nowhere.txt does not exist",
        ),
    ),
    "prune.calibration_column": early(
        "is in the text",
        (
            "prune.keep=null prune.layers=2 prune.by=taylor prune.calibration={text} prune.calibration_column=body",
            "no 'body' in any",
        ),
    ),
    "prune.device": early(
        "is there", ("prune.device=cuda:7 prune.repair=true", "device = 'cuda:7' cannot be used here")
    ),
    "prune.repair": early("there is a cut after a kept layer", ("prune.repair=true prune.keep=2-3", "nothing to")),
    "prune.check": early("is on for model types that only it can vouch for"),
    "prune.stream": early("is asked for of a hub model only"),
    "prune.experts": early(
        "fewer than the teacher has, and no fewer than each token is given to",
        ("prune.experts=2", "has no experts to drop"),
    ),
    "trim.data": early("there is such text", ("trim={data:/nowhere.txt}", "/nowhere.txt does not exist")),
    "trim.text_column": early("is in the text", ("trim={data:{text},text_column:body}", "no 'body' in any")),
    "trim.keep_tokens": early(
        "no fewer than always stay, no more than there are", ("trim={keep_tokens:9}", "of which 257 always stay")
    ),
    "grow.layers": early(
        "lie between the student's and the teacher's",
        ("grow={layers:[2]}", "write numbers from 3 to 4"),
        ("grow={layers:[3],by:first} prune.keep=0-3", "the student has 4 layers"),
    ),
    "grow.calibration": early(
        "there is such text", ("grow={layers:[3],calibration:/nowhere.txt}", "/nowhere.txt does not exist")
    ),
    "grow.calibration_column": early(
        "is in the text", ("grow={layers:[3],calibration:{text},calibration_column:body}", "no 'body' in any")
    ),
    "grow.device": early("is there", ("grow={layers:[3],device:cuda_7}", "device = 'cuda_7' cannot be used here")),
    "grow.check": early("is on for model types that only it can vouch for"),
    "export.format": early(
        "fits the model's type, config and tokenizer; torchao is there for int8 and int4",
        ("export={format:gguf-f16}", "it merges nothing"),
    ),
    "export.group_size": early("divides the rows of all linear layers, with int4"),
    "data.dataset": early(
        "there is such text, of one format, that can be opened; the run does not lie in it",
        ("data.dataset=/nowhere.jsonl", "/nowhere.jsonl does not exist"),
        ("data.dataset=hub:org/name data.tokens=1M", "HF_HUB_OFFLINE=1 keeps this process off the network"),
    ),
    "data.sources": early(
        "each is looked at as `data.dataset` is, and shares what there is to share",
        ("data.dataset=null data.sources=[{dataset:{text}},{dataset:/nowhere.jsonl}]", "/nowhere.jsonl does not exist"),
        ("data.dataset=null data.sources=[{dataset:{text}},{dataset:org/name}]", "data.tokens is required"),
    ),
    "data.config": early("is of a hub data set", ("data.config=x", "data.config applies to hub datasets")),
    "data.split": early("is of a hub data set", ("data.split=test", "data.split applies to hub datasets")),
    "data.text_column": early("is in each local file", ("data.text_column=body", "no 'body' in any")),
    "data.form": early(
        "its columns are in the rows; of conversations, the tokenizer's chat template makes something of the first "
        "100; with images, the teacher sees them, and its processor can be used here",
        ("data.form=chat", "no 'messages' in any"),
        ("data.form=images", "is for vision-language models"),
    ),
    "data.train_on_prompt": early(
        "rows are instructions", ("data.train_on_prompt=true", "data.train_on_prompt is of instructions")
    ),
    "data.too_long": early("rows are instructions", ("data.too_long=leave_out", "data.too_long is of instructions")),
    "data.apart": early("rows are instructions", ("data.apart=false", "data.apart is of instructions")),
    "data.tokens": early(
        "named for hub data; the disk has room",
        ("data.dataset=hub:org/name", "data.tokens is required"),
        ("data.tokens=100T", "the disk has"),
    ),
    "data.seq_len": early(ROWS, ("data.seq_len=512", "Rows of 512 tokens are longer than")),
    "data.heldout_sequences": early("the disk has room", ("data.heldout_sequences=100T", "the disk has")),
    "distill.train": early(
        "the student has such parts; of seams, the cut is known and has gaps",
        ("distill.train=last:99", "the student has 2 blocks"),
    ),
    "distill.lora.targets": early(
        "linear maps of the blocks have such names",
        ("distill.lora={targets:[q_porj]}", "no linear map of the blocks is named q_porj; there are down_proj, gate"),
    ),
    "distill.lora.base_precision": early(
        "a GPU and its package are there, and weights stay whole",
        ("distill.lora={base_precision:nf4}", "needs a GPU"),
    ),
    "distill.mixture.sources": early(
        "the blend has them, and a teacher has a weight for each",
        ("distill.mixture={sources:{web:1},with:[{model:/nowhere}]}", "the source 'web', and the text is no blend"),
    ),
    "distill.mixture.with": early(
        "there are such models, whole and with the student's vocabulary; a cache of the first has all of its signals",
        ("distill.mixture={with:[{model:/nowhere}]}", "The model folder /nowhere does not exist"),
        (
            "teacher.cache={kind:samples} distill.mixture={with:[{model:/nowhere}]}",
            "a cache of kind samples does not have",
        ),
    ),
    "distill.divergence": early("`uld` where the teacher has another tokenizer"),
    "distill.weights.soft": early("one of the terms counts", ("distill.weights={soft:0,hard:0}", "All weights are 0")),
    "distill.hidden.pairs": early(
        "blocks that there are, each of the student's once; the cut is known where it goes by that",
        ("distill.weights={hidden:1} distill.hidden={pairs:[[0,99]]}", "the teacher's 0 to"),
        ("distill.weights={hidden:1} distill.hidden={pairs:[[0,0],[0,1]]}", "twice"),
    ),
    "distill.hidden.leave_out_last": early(
        "a pair is left", ("distill.weights={hidden:1} distill.hidden={leave_out_last:99}", "leaves no pair")
    ),
    "distill.hidden.projection": early("identity: widths agree"),
    "distill.similarity.pairs": early(
        "as of hidden", ("distill.weights={similarity:1} distill.similarity={pairs:[[99,0]]}", "the student's blocks")
    ),
    "distill.on_policy.fraction": early(
        "there is a teacher, and no cache of it; weights stay whole",
        ("teacher.cache={kind:hidden} distill.on_policy={}", "asks it about text that the student writes"),
    ),
    "distill.on_policy.prompt_tokens": early(
        "prompt and rollout fit a row",
        ("distill.on_policy={prompt_tokens:64,new_tokens:8}", "are longer than the data's rows of 64"),
    ),
    "distill.on_policy.new_tokens": early(
        "as distill.on_policy.prompt_tokens",
        ("distill.on_policy={new_tokens:{from:8,to:33}}", "rollouts of 33 are longer than the data's rows of 64"),
    ),
    "distill.tokens": early(
        "no more than data.tokens and epochs give", ("distill.tokens=9k data.tokens=2k", "needs 141 sequences")
    ),
    "distill.select.to": early(
        "a row is left; there is a teacher", ("distill.select={to:0.001} data.tokens=2k", "distill.select leaves none")
    ),
    "distill.order": early("there is a teacher"),
    "distill.epochs": early("as distill.tokens"),
    "distill.optimizer": early(
        "its package is installed", ("distill.optimizer=adamw8bit", "needs the package torchao")
    ),
    "distill.batch_tokens": early("a row or more", ("distill.batch_tokens=32", "less than one sequence of 64")),
    "distill.teacher_precision": early(
        "its package, the device's products and held-out rows are there",
        ("distill.teacher_precision=int8", "needs the package torchao"),
    ),
    "distill.attention": early(
        "the models and this machine have it", ("distill.attention=flash_attention_2", "runs on GPUs")
    ),
    "distill.compile": early("a compiler is there"),
    "distill.shard": early("there are several processes", ("distill.shard=both", "this is one")),
    "distill.trackers": early("their packages are installed", ("distill.trackers=[wandb]", "wandb is not installed")),
    "distill.precision": early("weights, gradients, optimizer and teacher fit the device's memory"),
    "distill.save_dtype": early("the generation config can be saved again"),
    "eval.tasks": early(
        "there are such tasks; their data, splits and columns are here, or on the hub; they need no code or pictures",
        ("eval.tasks=[tiny_choise]", "There is no task 'tiny_choise'"),
        ("eval.tasks=[tiny_choice] eval.datasets_root={tasks}", "needs the data set org/tiny"),
    ),
    "eval.num_fewshot": early("there are examples to draw", ("eval.num_fewshot=99", "fewer than the")),
    "eval.chat_template": early("the tokenizer has one, which can be rendered"),
    "eval.system": early(
        "the chat template has a place for it",
        ("eval.chat_template=true eval.system=Briefly.", "has no place for a system text"),
    ),
    "eval.identity": early(
        "with the task `identity`: they, or the teacher's name or chat template, name its family",
        ("eval.tasks=[identity]", "asks whether answers name the family or maker"),
    ),
    "eval.datasets_root": early("is a folder", ("eval.datasets_root=/nowhere", "/nowhere does not exist")),
    "eval.task_folder": early(
        "is a folder, and its definitions can be read",
        ("eval.task_folder=/nowhere", "/nowhere does not exist"),
        ("eval.task_folder={broken}", "Definitions that cannot be read"),
    ),
    "eval.other_text": early(
        "there is such text, or a token store that the model reads, with held-out rows; the run does not lie in it",
        ("eval.other_text=/nowhere.txt", "/nowhere.txt does not exist"),
        ("eval.other_text=hub:org/name", "HF_HUB_OFFLINE=1 keeps this process off the network"),
    ),
    "eval.text_column": early(
        "is in the other text", ("eval.other_text={text} eval.text_column=body", "no 'body' in any")
    ),
    "eval.speed_batch": early(
        "weights and key-value cache fit all memory", ("eval.speed_batch=1G", "Speed with 1000000000 sequences of")
    ),
    "eval.speed_batches": early("as eval.speed_batch", ("eval.speed_batches=[1G]", "for weights and key-value")),
    "eval.device": early("is there", ("eval.device=gpu", "device = 'gpu' cannot be used here")),
    "stages": early(
        "each keeps fewer layers than the one before, and has what `prune` and `distill` ask for",
        ("prune.keep=null stages=[{keep:0-2},{keep:0-3}]", "stage 2: --keep 0-3: 0-3 is out of range"),
        (
            "prune.keep=null stages=[{layers:2,by:random},{layers:3,by:random}]",
            "stage 2: layers = 3: the student of stage 1 has 2 layers",
        ),
        ("prune.keep=null stages=[{keep:0-2},{keep:0-2}]", "stage 2: it keeps all 3 layers of the student of stage 1"),
        ("prune.keep=null distill.train=seams stages=[{keep:0-2},{teacher:self}]", "stage 2: train: seams trains"),
        (
            "prune.keep=null data.tokens=2k stages=[{keep:0-2,tokens:2k},{keep:0-1,tokens:9k}]",
            "stage 2: tokens = 9000 needs",
        ),
    ),
}
LATER = {
    "prune.cast": "a weight that is too large for the dtype: when it is read",
    "prune.repair": "a block that does not end in a map that can be changed: tried when the model is loaded",
    "prune.by": "a score that is not finite: when it is measured",
    "prune.batch_tokens": "memory: when the text is run",
    "trim.check": "logits that differ: when both models are run",
    "grow.by": "a KL that is not finite: when it is measured",
    "grow.batch_tokens": "memory: when the text is run",
    "export.format": "a weight that is too large for float16: when it is read",
    "export.check": "too little memory for it: left out, which is said",
    "data.tokens": "fewer in local text: counted when it is prepared",
    "data.sources": "a source with too little text for its part: counted when it is prepared",
    "data.heldout_sequences": "too little text for them: counted when it is prepared",
    "data.on_bad_row": "a bad row: when it is reached",
    "data.form": "a row without an answer, or that the chat template refuses: counted when it is prepared",
    "data.apart": "with true, a model that sees across documents: tried when it is loaded",
    "distill.micro_batch_rows": "memory of activations: planned and warned of, known when it runs",
    "distill.document_mask": "a model that sees across documents: tried when it is loaded",
    "distill.teacher_max_kl": "measured when the teacher is quantised, or its cache rounded",
    "distill.lora.dora": "with compile: true, as distill.compile",
    "distill.on_policy.new_tokens": "a student that ends all its texts at once: when it does so ten steps in a row",
    "distill.max_skipped_steps": "steps that are not finite: when they happen",
    "distill.compile": "with true, a model that makes no one graph: at the first step",
    "distill.deterministic": "an operation without a kernel that adds up in one order: at the first step",
    "data.text_column": "a token without a row in an embedding: when the text is prepared",
    "eval.tasks": "an answer longer than the context: when it is tokenized",
    "eval.heldout_seq_len": "cut to the context, which is said",
    "eval.speed_batch": "memory: when it runs",
    "eval.speed_prompt_tokens": "cut to the context, which is said",
    "eval.speed_decode_tokens": "cut to the context, which is said",
    "eval.sample_prompt_tokens": "cut to the context, which is said",
    "eval.sample_tokens": "cut to the context, which is said",
    "eval.dtype": "values too large for it: when they come",
    "prune.calibration_seq_len": "cut to the context, which is said",
    "grow.calibration_seq_len": "cut to the context, which is said",
}


def keys(config: type = Recipe, at: str = "") -> Iterator[tuple[str, Any]]:
    """Each key of a recipe, dotted, with its annotation; a teacher's training has those of `distill`."""
    for name, hint in get_type_hints(config, include_extras=True).items():
        plain = get_args(hint)[0] if hasattr(hint, "__metadata__") else hint
        kinds = [kind for kind in (get_args(plain) or (plain,)) if kind is not type(None)]
        if f"{at}{name}" in ("teacher.scratch.train", "teacher.finetune"):
            continue
        if len(kinds) == 1 and hasattr(kinds[0], "__pydantic_config__"):
            yield from keys(kinds[0], f"{at}{key_of(name)}.")
        else:
            yield f"{at}{key_of(name)}", hint


def kind_of(hint: Any) -> str:
    """What a value must be, as far as the annotation says it."""
    if get_origin(hint) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(hint))
    if hasattr(hint, "__metadata__"):
        inner, bounds = get_args(hint)[0], [_bounds(mark) for mark in hint.__metadata__]
        tightest = {bound[0]: bound for bound in filter(None, bounds)}
        return " ".join([kind_of(inner), *tightest.values()])
    names = {int: "whole number", float: "number", str: "text", bool: "true or false", type(None): "null"}
    if hint in names:
        return names[hint]
    if get_origin(hint) in (list, tuple):
        inner = next(part for part in get_args(hint) if part is not Ellipsis)
        return f"list of {kind_of(inner)}"
    if get_origin(hint) is dict:
        return "mapping"
    if hasattr(hint, "__pydantic_config__"):
        return f"`{{{', '.join(key_of(field.name) for field in dataclasses.fields(hint))}}}`"
    return " or ".join(kind_of(part) for part in get_args(hint)) or "value"


def _bounds(mark: Any) -> str:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    inner = getattr(mark, "metadata", [mark])
    return " ".join(
        f"{sign} {getattr(each, name)}" for each in inner for name, sign in signs.items() if hasattr(each, name)
    )


def page() -> str:
    """docs/recipe_checks.md."""
    rows = []
    for key, hint in keys():
        start = EARLY[key].what if key in EARLY else ""
        rows.append(f"| `{key}` | {kind_of(hint).replace('|', '/')} | {start} | {LATER.get(key, '')} |")
    return HEAD + "\n".join(rows) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
