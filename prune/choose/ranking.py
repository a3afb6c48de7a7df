"""Which layers to keep, by a measure of how much each matters.

    block-influence   1 - mean cosine of a block's input and output          one pass over the text
    angular           angle over a span of blocks; the flattest span goes    one pass over the text
    perplexity        loss on the text with one block skipped                about (L - 1) / 2 passes
    perplexity-greedy the same, measured again after each dropped block      less than that for each dropped block
    kl-greedy         the same by the KL from the whole model                about as much
    taylor            sum of |w dL/dw| over the block's matrices             one pass, forward and backward
    magnitude         sum of |w| over the block's matrices                   no text
    random            a seeded draw, the control                             no text

The last layer always stays: dropping it hurts most (Gromov et al., arXiv:2403.17887). Of equal scores the deeper
block goes. What runs the model with blocks skipped runs checkpoints in bf16 in it, head and all, where the processor
has products in bf16: it compares losses of one model, whose rounding is the same.
"""

import dataclasses
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress.base.errors import InputError
from compress.base.machine import fast_fp32_products, find_device, host_memory
from compress.base.progress import Bar, progress_bar
from compress.base.units import format_bytes
from compress.inference.likelihood import Likely
from compress.inference.readout import Readout, read_out
from compress.model.files import check_weight_files
from compress.model.load import find_dtype, load_model
from compress.prune.choose.ablation import Ablation
from compress.prune.choose.calibration import Calibration, load_calibration
from compress.prune.choose.influence import measure_influence
from compress.prune.choose.race import Search
from compress.prune.choose.saliency import magnitude, taylor
from compress.prune.forecast import told_batches
from compress.prune.parts import BY_TRIAL, WITHOUT_TEXT, CalibrationConfig, ExpertsConfig, Method, RankingConfig
from compress.weights.finite import require_finite


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ranking:
    """The scores of a model's layers, and the layers that stay. A layer matters the more, the higher its score."""

    method: str
    kept_layers: tuple[int, ...]
    scores: tuple[float, ...]
    """By layer: the score of `method`; for perplexity the loss without the layer less the loss with all, nats."""
    details: dict[str, Any]
    """The curve behind the choice, the text, and how it was run, as plain JSON data."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RankedModel:
    """The model whose layers are ranked."""

    name: str
    """What the user calls it."""
    folder: Path
    num_layers: int
    layer_prefixes: Sequence[str]
    """What keys of layer weights start with on disk."""
    num_parameters: int


def rank_layers(config: RankingConfig, teacher: RankedModel) -> Ranking:
    """Score the teacher's layers and choose `config.layers` of them, of which there are as many at least.

    Raises:
        UsageError: no text is named, or no such device.
        InputError: the text or the model cannot be used, or a score is not finite.
    """
    started = time.monotonic()
    scores, dropped, details = _SCORERS[config.by](config, teacher)
    if not all(map(math.isfinite, scores)):
        require_finite(check_weight_files(teacher.folder))
        broken = next(i for i, score in enumerate(scores) if not math.isfinite(score))
        raise InputError(
            f"The {config.by} score of layer {broken} of {teacher.name} is not a finite number: its hidden states or "
            "its loss overflow. Measure in another dtype (prune.dtype: float32), or check the model."
        )
    kept = tuple(layer for layer in range(teacher.num_layers) if layer not in dropped)
    details = {"layers": config.layers, **details, "seconds": round(time.monotonic() - started, 3)}
    return Ranking(method=config.by, kept_layers=kept, scores=tuple(scores), details=details)


def least(scores: Sequence[float], count: int) -> set[int]:
    """The `count` layers with the least scores, the last layer never among them; of equal ones the deeper."""
    order = sorted(range(len(scores) - 1), key=lambda layer: (scores[layer], -layer))
    return set(order[:count])


def flattest_span(spans: Sequence[float], count: int) -> set[int]:
    """The `count` blocks in a row, the last layer not among them, with the least distance; of equal ones the deeper.

    `spans[l]` is the distance over blocks l .. l + count - 1.
    """
    start = min(range(len(spans) - 1), key=lambda first: (spans[first], -first)) if count else 0
    return set(range(start, start + count))


_Scored = tuple[Sequence[float], set[int], dict[str, Any]]


def _by_influence(config: RankingConfig, teacher: RankedModel) -> _Scored:
    count = teacher.num_layers - config.layers
    with measuring(config, teacher) as run, run.bar(1) as bar:
        found = measure_influence(run.model, run.batches(config.batch_tokens), count, bar)
    if config.by == "block-influence":
        return found.block_influence, least(found.block_influence, count), run.details
    curve = {"span_layers": count, "spans": found.spans}
    return found.angular, flattest_span(found.spans, count), {**curve, **run.details}


def _by_perplexity(config: RankingConfig, teacher: RankedModel) -> _Scored:
    with measuring(config, teacher) as run, run.bar(teacher.num_layers) as bar, run.ablation() as ablation:
        batches = run.batches(config.batch_tokens)
        base, without = ablation.change_one(batches, range(teacher.num_layers), (), bar)
    losses = [float(found.mean()) for found in without]
    scores = [float((found - base).mean()) for found in without]
    curve = {"loss_nats": float(base.mean()), "loss_nats_without": losses, "reuses_prefix": ablation.reuses_prefix}
    return scores, least(scores, teacher.num_layers - config.layers), {**curve, **run.details}


def _greedily(config: RankingConfig, teacher: RankedModel) -> _Scored:
    total = teacher.num_layers
    count = total - config.layers
    what = "kl_nats" if config.by == "kl-greedy" else "loss_nats"
    reference: dict[bytes, Likely] | None = {} if what == "kl_nats" else None
    with measuring(config, teacher) as run, run.ablation(reference) as ablation:
        layers, last = range(total), (total - 1,)
        search = Search(config.by, ablation, run.text, config.batch_tokens, count, layers, spared=last)
        with run.bar(search.trials) as bar:
            first, steps = search.run(bar)
    curve = {
        "steps": [
            {"dropped": step.layer, what: step.loss_nats, "tokens": step.tokens, "heats": step.heats} for step in steps
        ],
        what: float(first.base.mean()),
        f"{what}_tokens": len(first.base),
        f"{what}_without": [float(losses.mean()) for losses in first.without.values()],
        f"{what}_without_tokens": [len(losses) for losses in first.without.values()],
        "reuses_prefix": ablation.reuses_prefix,
    }
    return [first.increase(layer) for layer in range(total)], {step.layer for step in steps}, {**curve, **run.details}


def _by_taylor(config: RankingConfig, teacher: RankedModel) -> _Scored:
    with measuring(config, teacher) as run, run.bar(1) as bar:
        read = read_out(run.model, teacher.name)
        scores = taylor(read, run.batches(1), run.text.num_predicted, bar)
    return scores, least(scores, teacher.num_layers - config.layers), run.details


def _by_magnitude(config: RankingConfig, teacher: RankedModel) -> _Scored:
    files = check_weight_files(teacher.folder)
    with progress_bar("reading weights, files", len(files)) as bar:
        scores = magnitude(files, teacher.layer_prefixes, teacher.num_layers, bar)
    return scores, least(scores, teacher.num_layers - config.layers), {}


def _by_chance(config: RankingConfig, teacher: RankedModel) -> _Scored:
    generator = random.Random(config.seed)
    scores = [generator.random() for _ in range(teacher.num_layers)]
    return scores, least(scores, teacher.num_layers - config.layers), {"seed": config.seed}


_SCORERS: Mapping[Method, Callable[[RankingConfig, RankedModel], _Scored]] = {
    "block-influence": _by_influence,
    "angular": _by_influence,
    "perplexity": _by_perplexity,
    "perplexity-greedy": _greedily,
    "kl-greedy": _greedily,
    "taylor": _by_taylor,
    "magnitude": _by_magnitude,
    "random": _by_chance,
}


@dataclasses.dataclass(frozen=True)
class Measuring:
    """A model in memory and the text it is to read."""

    model: Any
    text: Calibration
    by: str
    name: str
    details: dict[str, Any]

    def batches(self, batch_tokens: int) -> Iterator[Tensor]:
        """The text; how long all of it takes is said after the first batch."""
        return told_batches(f"Measuring {self.by}", self.text, batch_tokens)

    @contextmanager
    def bar(self, passes: int) -> Iterator[Bar]:
        with progress_bar("measuring layers, tokens", passes * self.text.rows.size) as bar:
            yield bar

    def readout(self) -> Readout:
        """The model, its head in its own dtype."""
        return read_out(self.model, self.name, self.model.dtype)

    @contextmanager
    def ablation(self, reference: dict[bytes, Likely] | None = None) -> Iterator[Ablation]:
        """The model with blocks that can be skipped, measured as `Ablation` says."""
        ablation = Ablation(self.readout(), reference=reference)
        with ablation.installed(torch.from_numpy(self.text.rows)):
            yield ablation


def measuring_dtype(config: CalibrationConfig, folder: Path, device: torch.device) -> torch.dtype:
    """Of the weights while layers are measured, or a cut is repaired."""
    quick = isinstance(config, RankingConfig) and config.by in BY_TRIAL
    return find_dtype(config.dtype, folder, device, quick=quick)


def require_memory(name: str, num_parameters: int, dtype: torch.dtype, device: torch.device) -> None:
    """Refuse to run a model on text whose weights exceed the host's memory.

    Raises:
        InputError: they do.
    """
    needed, free = num_parameters * dtype.itemsize, host_memory().free
    if device.type == "cpu" and needed > free:
        raise InputError(
            f"Running {name} on text needs {format_bytes(needed)} of memory for its weights and {format_bytes(free)} "
            "are free. Measure in fewer bits (prune.dtype: bfloat16), on a larger machine, or choose by "
            f"{' or '.join(WITHOUT_TEXT)}, which read no text."
        )


@contextmanager
def measuring(config: RankingConfig | ExpertsConfig, teacher: RankedModel) -> Iterator[Measuring]:
    """Load the text and then the model, in the dtype and on the device that the config names."""
    device = find_device(config.device)
    text = load_calibration(config, teacher.folder, config.amount(device.type))
    dtype = measuring_dtype(config, teacher.folder, device)
    require_memory(teacher.name, teacher.num_parameters, dtype, device)
    model = load_model(teacher.folder, dtype=dtype, device=device)
    details = {
        "calibration": text.to_dict(),
        "device": device.type,
        "dtype": str(dtype).removeprefix("torch."),
        "batch_tokens": config.batch_tokens,
    }
    with fast_fp32_products():
        yield Measuring(model, text, config.by, teacher.name, details)
