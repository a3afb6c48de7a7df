"""`compress init`: a teacher in, a short recipe out, of the best known way to make it smaller on this machine.

Config, device and disk are looked at; nothing is measured but a product of matrices.
"""

import dataclasses
import math
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch

from compress.base.disk import write_text
from compress.base.errors import Faults
from compress.base.machine import computes_in_bf16, default_device, fast_fp32_products, memory_of
from compress.base.outputs import Output, require_outputs
from compress.base.units import format_bytes, format_count, format_seconds
from compress.data import DataConfig, LocalSource, find_source
from compress.distill import DistillConfig, DistillPlan, plan_distill
from compress.distill.fit import fitting
from compress.distill.resources.auto import resolve_precision
from compress.distill.resources.flops import peak_flops, training_flops_per_token
from compress.model.facts import ModelFacts, look_at_model
from compress.model.files import local_folder
from compress.model.gguf import is_gguf
from compress.model.kinds import require_causal, require_text_alone
from compress.model.lengths import context_tokens
from compress.model.remote_code import trusted
from compress.prune import PruneConfig, check_prune
from compress.prune.plan import Derivation
from compress.run.best import ON_CPU, ON_GPU, BestWay, Choice
from compress.run.depth import CONTEXT, choose_depth, token_cost
from compress.run.draft import Draft, Expected, in_order, recipe_of, recipe_text
from compress.run.init_config import InitConfig

_BYTES_PER_TOKEN = 6
"""Of a text's files: more than a token has, so that no more tokens are counted than there are."""


class _Here(NamedTuple):
    """The machine, and how it is used."""

    device: torch.device
    way: BestWay
    precision: Choice
    flops_per_s: float
    """What training is expected to reach."""


class _Cut(NamedTuple):
    """The cut to be made; `shape` is one of as many layers, since those that stay are measured later."""

    teacher: ModelFacts
    shape: Derivation
    repair: bool
    """Whether a model of this type can be repaired."""
    why: str


class _Text(NamedTuple):
    """What to heal on."""

    tokens: int
    enough: bool
    """Whether there surely is as much; else all there is is taken."""
    seq_len: int
    why: str


def write_draft(teacher: str, asked: InitConfig, out: Path) -> Draft:
    """Write to `out` a recipe for a teacher: a model folder, a GGUF file or a hub id.

    Raises:
        UsageError: `out` is taken, or so few layers or so much speed cannot be had.
        InputError: the teacher or the text cannot be used.
    """
    require_outputs(Output(out, "a recipe", ours=None))
    cut, here = _cut(teacher, asked), _here()
    text = _text(cut, asked, here)
    choices = in_order([*_reckoned(cut, asked, text, here.way), *_known(cut, here.way), here.precision])
    saving, plan = _fit(recipe_of(choices).distill, cut, text, here)
    choices = in_order([*choices, *saving])
    figures = _figures(cut, plan, here)
    write_text(out, recipe_text(choices, f"Written by `compress init`. Run it: compress run {out}"))
    return Draft(out, tuple(choices), _expected(figures, text.why, here), figures)


def _here() -> _Here:
    device = default_device()
    way, precision = ON_CPU if device.type == "cpu" else ON_GPU, resolve_precision(DistillConfig(), device)
    chosen = Choice("distill.precision", "auto", f"which is {precision} here")
    if device.type == "cpu":
        precision = "bf16" if computes_in_bf16() else "fp32"
        chosen = Choice("distill.precision", precision, "what this processor multiplies faster in")
    with fast_fp32_products():
        peak = peak_flops(device, precision)
    return _Here(device, way, chosen, way.share_of_peak * peak.flops_per_s)


def _cut(teacher: str, asked: InitConfig) -> _Cut:
    """The depth, and a cut of that depth, repaired where a model of this type can be.

    Raises:
        CompressError: there is no such teacher, it is a masked language model, or there is no such cut of it.
    """
    faults = Faults()
    known = look_at_model(teacher, faults)
    faults.refuse()
    assert known is not None
    require_causal(known.config, known.name, "compress init")
    require_text_alone(known.config, known.name, "compress init")
    depth, why = choose_depth(known, asked)
    for repair in (True, False):
        faults, how = Faults(), PruneConfig(keep=f"contiguous:{depth}", repair=repair)
        shape = check_prune(how.choice, known, faults, own_text=True, **how.how)
        if shape is not None and not faults.found:
            return _Cut(known, shape, repair, why)
    faults.refuse()
    raise AssertionError("a cut that nothing refuses has a shape")


def _text(cut: _Cut, asked: InitConfig, here: _Here) -> _Text:
    """How much text, in rows of which length; raises as `find_source`."""
    way, config = here.way, cut.teacher.config
    seq_len = min(way.seq_len, context_tokens(config) or way.seq_len)
    wanted = way.tokens_per_parameter * cut.shape.plan.params_after
    why = f"{way.tokens_per_parameter:g} for each parameter of the student"
    if (hours := asked.hours or way.hours) is not None:
        timely = hours * 3600 * here.flops_per_s / training_flops_per_token(cut.shape.student, config, seq_len)
        if asked.hours or timely < wanted:
            wanted, why = timely, f"what {here.device} heals on in {format_seconds(3600 * hours)}"
    if wanted > way.most_tokens:
        wanted, why = way.most_tokens, "enough to begin with"
    tokens = max(_two_digits(wanted), way.least_step, seq_len)
    there = _tokens_there(asked.data, tokens, seq_len)
    if tokens <= there:
        return _Text(tokens, True, seq_len, why)
    return _Text(max(int(there), seq_len), False, seq_len, "all of the text, by the size of its files")


def _two_digits(number: float) -> int:
    """The number down to two digits and noughts."""
    unit: int = 10 ** max(0, math.floor(math.log10(max(number, 1))) - 1)
    return int(number // unit) * unit


def _tokens_there(source: str, tokens: int, seq_len: int) -> float:
    """Training tokens that local text surely has, beside its held-out rows; of a hub's dataset that is not known."""
    text = DataConfig(dataset=source, tokens=tokens)
    found = find_source(text)
    if not isinstance(found, LocalSource):
        return math.inf
    return sum(file.size for file in found.files) // _BYTES_PER_TOKEN - text.heldout_sequences * seq_len


def _reckoned(cut: _Cut, asked: InitConfig, text: _Text, way: BestWay) -> list[Choice]:
    """What depends on the model, the text and the time."""
    teacher, depth = cut.teacher.name, len(cut.shape.plan.kept_layers)
    step = _step_tokens(text, way)
    code = [Choice("teacher.trust_remote_code", True, "its own code runs, as you said")] if trusted() else []
    tokens = [Choice("data.tokens", text.tokens, text.why)] if text.enough else []
    return [
        Choice("name", _name(teacher, depth), "the run's folder is runs/NAME"),
        Choice("teacher.model", teacher, "the model to make smaller"),
        *code,
        Choice("prune.layers", depth, cut.why),
        Choice("data.dataset", asked.data, "text to measure, repair and heal on"),
        *tokens,
        Choice("data.seq_len", text.seq_len, "tokens a row"),
        Choice("distill.lr", way.lr if step >= way.small_step else way.lr_of_small_steps, "highest learning rate"),
        Choice("distill.batch_tokens", step, f"an optimizer step; {math.ceil(text.tokens / step)} of them"),
    ]


def _step_tokens(text: _Text, way: BestWay) -> int:
    """Tokens of an optimizer step: a power of two, for about as many steps as are aimed at."""
    step: int = 2 ** math.floor(math.log2(max(1, text.tokens / way.steps)))
    return max(min(max(step, way.least_step), way.most_step), text.seq_len)


def _known(cut: _Cut, way: BestWay) -> list[Choice]:
    """What does not depend on them, for a model of this type."""
    return [choice for choice in way.choices if cut.repair or choice.key != "prune.repair"]


def _name(teacher: str, depth: int) -> str:
    path = Path(teacher).expanduser().resolve()
    name = re.sub(r"[^\w.-]+", "-", path.stem if is_gguf(path) else path.name)[:100].strip("-.")
    return f"{name or 'model'}-{depth}-layers"


def _fit(healing: DistillConfig, cut: _Cut, text: _Text, here: _Here) -> tuple[list[Choice], DistillPlan]:
    """What makes the healing fit into memory, if it has to and can, and the plan with it."""

    def plan(config: DistillConfig) -> DistillPlan:
        models = {"student": cut.shape.student, "teacher": cut.teacher.config}
        rows = math.ceil(text.tokens / text.seq_len)
        return plan_distill(config, **models, num_rows=rows, seq_len=text.seq_len, device=here.device)

    saving = fitting(healing, plan, memory_of(here.device).free) or {}
    choices = [Choice(f"distill.{name}", value, "to fit into memory; same result") for name, value in saving.items()]
    return choices, plan(dataclasses.replace(healing, **saving))


def _figures(cut: _Cut, plan: DistillPlan, here: _Here) -> dict[str, Any]:
    return {
        "params_before": cut.shape.plan.params_before,
        "params_after": cut.shape.plan.params_after,
        "speedup": token_cost(cut.teacher.config) / token_cost(cut.shape.student),
        "tokens": plan.tokens,
        "flops_per_s": here.flops_per_s,
        "hours": plan.hours(here.flops_per_s),
        "memory_bytes": plan.total_bytes,
        "memory_free": memory_of(here.device).free,
        "disk_bytes": _disk_bytes(cut, plan),
        "disk_free": shutil.disk_usage(Path()).free,
    }


def _disk_bytes(cut: _Cut, plan: DistillPlan) -> int:
    """What a run leaves: the cut, the student, checkpoints, and text in 4 bytes a token; and a teacher of the hub."""
    state = plan.memory_bytes["weights"] + plan.memory_bytes["optimizer moments"]
    checkpoints = DistillConfig().keep_checkpoints + 2  # the best one, and one that is being written
    fetched = 0 if local_folder(cut.teacher.name) else cut.shape.plan.bytes_before
    return fetched + 2 * cut.shape.plan.bytes_after + checkpoints * state + 4 * plan.tokens


def _expected(figures: dict[str, Any], tokens: str, here: _Here) -> tuple[Expected, ...]:
    def there(what: str, where: str) -> str:
        needed, free = figures[f"{what}_bytes"], figures[f"{what}_free"]
        return f"estimate; {format_bytes(free)} free {where}" + ("" if needed <= free else ": NOT ENOUGH")

    before, after = (format_count(figures[f"params_{when}"]) for when in ("before", "after"))
    speed = f"estimate: FLOPs of a token that looks at {CONTEXT:,} others; the report measures it"
    healing = f"estimate, at {format_count(figures['flops_per_s'])} FLOP/s; cutting and scoring take their time, too"
    return (
        Expected("parameters", f"{before} -> {after}", "counted"),
        Expected("speed", f"{figures['speedup']:.2f}x", speed),
        Expected("tokens", format_count(figures["tokens"]), tokens),
        Expected("healing", format_seconds(3600 * figures["hours"]), healing),
        Expected("memory", format_bytes(figures["memory_bytes"]), there("memory", f"on {here.device}")),
        Expected("disk", format_bytes(figures["disk_bytes"]), there("disk", "here")),
    )
