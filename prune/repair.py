"""Repair a cut in closed form: the block before it learns, by least squares, to say what the dropped blocks said.

Let block p be kept, the blocks after it up to q - 1 dropped. Block p ends in `x + a W^T`: x its residual stream, a
[tokens, F] the input of its last linear map, W [D, F]. The student's block q is given g = x + a W^T, where the
teacher's was given h. The change of W that closes the gap best,

    min_C ||h - g - a C^T||^2 + ridge * mean(diag(a^T a)) * ||C||^2     =>     C^T = (a^T a + ridge m I)^-1 a^T (h - g),

is added to W: the student's architecture and size stay as they are. Cuts are repaired from the first layer up, each on
what the student computes with those before it repaired, while the text goes through both models once. Left to itself,
the ridge of each cut is the one whose map, fitted on nine tenths of the rows, errs least on the others, each token's
error in parts of |h| (a few tokens with huge states would decide alone); the map is then fitted on all rows. ReplaceMe
(arXiv:2505.02819) fits a D x D map of a W^T instead and folds it into W; ours has W's own freedom, and its ridge draws
to no change.

That W may be changed so is not assumed but tried on each block: adding C must add a C^T to the block's output. It does
not where a norm or a factor follows (Gemma 2, Granite), or where experts are mixed: there the repair is refused.
"""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from compress.base.errors import InputError
from compress.base.machine import fast_fp32_products, find_device
from compress.base.progress import Bar, progress_bar
from compress.inference.likelihood import text_loss
from compress.inference.readout import Readout, read_out
from compress.model.blocks import Watch, watched
from compress.model.files import check_weight_files
from compress.model.load import find_dtype, load_model
from compress.model.parts import decoder_layers, hidden_states
from compress.prune.choose.calibration import Calibration, load_calibration
from compress.prune.forecast import tell_time
from compress.prune.least_squares import Sums, best_ridge
from compress.prune.parts import RepairConfig
from compress.prune.plan import stored_prefixes
from compress.prune.streams import Stream
from compress.weights.headers import read_header, replace_tensor

_LAST_MAPS = ("mlp.down_proj", "mlp.dense_4h_to_h", "mlp.fc_out", "mlp.fc2", "fc2")
_HELD_OUT_SHARE = 10
_TOLERANCE = 1e-3
_SMALLEST = 1e-6


@dataclasses.dataclass(frozen=True)
class Seam:
    """A place where blocks were dropped: the student's block before it, and the teacher's layers that are gone."""

    block: int
    dropped: tuple[int, ...]


def seams(kept: Sequence[int], num_layers: int) -> list[Seam]:
    """Every run of dropped layers that a kept one precedes; what was dropped before the first has none to mend it."""
    ends = [*kept[1:], num_layers]
    found = [Seam(block, tuple(range(kept[block] + 1, end))) for block, end in enumerate(ends)]
    return [seam for seam in found if seam.dropped]


def require_seams(kept: Sequence[int], num_layers: int) -> list[Seam]:
    """The seams of a cut that is to be repaired.

    Raises:
        InputError: it has none.
    """
    found = seams(kept, num_layers)
    if not found:
        raise InputError(f"There is nothing to repair: no layer is dropped after the first kept one ({kept[0]}).")
    return found


def repair(config: RepairConfig, teacher: Path, student: Path, kept: Sequence[int], num_layers: int) -> dict[str, Any]:
    """Repair every seam of the model in the folder `student`, cut from `teacher`; return what prune.json says of it.

    A tenth of the text's rows is seen by no fit and no choice of a ridge: the loss before and after is measured there.

    Raises:
        InputError: nothing can be repaired, or a block before a seam does not end in a map that can be changed (see
            above); the message names it. The text cannot be used, or has too few rows.
    """
    found = require_seams(kept, num_layers)
    text = load_calibration(config, teacher, config.amount)
    split = _split(text, config.repair_ridge)
    device = find_device(config.device)
    dtype = find_dtype(config.dtype, teacher, device)
    whole, cut = (load_model(folder, dtype=dtype, device=device) for folder in (teacher, student))
    maps = {seam: _last_map(cut, seam.block, text.rows[:1, :16]) for seam in found}
    with fast_fp32_products(), torch.no_grad():
        read, started = read_out(cut, str(student)), time.monotonic()
        losses = {
            "teacher": _loss(read_out(whole, str(teacher)), split.unseen, config),
            "before": _loss(read, split.unseen, config),
        }
        passes = (time.monotonic() - started) * text.rows.size / split.unseen.rows.size
        tell_time(f"Repairing {len(found)} cuts", text, passes, "--repair-tokens")
        fits = _mend(whole, cut, {seam: linear for seam, (_, linear) in maps.items()}, split, config)
        losses["after"] = _loss(read, split.unseen, config)
    names = {name: linear.weight for name, linear in maps.values()}
    _store(student, names, decoder_layers(cut)[0], cut.base_model_prefix)
    return {
        "blocks": fits,
        "maps": list(names),
        "ridge": config.repair_ridge,
        "loss_nats_teacher": losses["teacher"],
        "loss_nats_before": losses["before"],
        "loss_nats_after": losses["after"],
        "heldout_rows": len(split.unseen.rows),
        "calibration": text.to_dict(),
        "not_repaired": list(range(kept[0])),
    }


@dataclasses.dataclass(frozen=True)
class _Split:
    """Rows to fit on, to choose a ridge on (none where it is named), and to measure losses on."""

    fitted: Calibration
    chosen: Calibration
    unseen: Calibration


def _split(text: Calibration, ridge: float | Literal["auto"]) -> _Split:
    """A tenth of the rows, the last ones, unseen; of the others each tenth to choose a ridge on.

    Raises:
        InputError: there are not enough.
    """
    num_unseen = max(1, len(text.rows) // _HELD_OUT_SHARE)
    needed = 3 if ridge == "auto" else 2
    if len(text.rows) < needed:
        raise InputError(
            f"{text.source} gives {len(text.rows)} rows of text, and the repair needs {needed} at least: to fit on, to "
            "choose a ridge on unless one is named (prune.repair_ridge), and to measure on. Name more text, or shorter "
            "rows (prune.calibration_seq_len)."
        )
    seen = text.rows[:-num_unseen]
    chosen = np.arange(len(seen)) % _HELD_OUT_SHARE == 0 if ridge == "auto" else np.zeros(len(seen), dtype=bool)
    parts = (seen[~chosen], seen[chosen], text.rows[-num_unseen:])
    return _Split(*(dataclasses.replace(text, rows=rows) for rows in parts))


def _loss(readout: Readout, text: Calibration, config: RepairConfig) -> float:
    """Mean next-token loss, nats."""
    batches = (ids.to(readout.device) for ids in text.batches(config.batch_tokens))
    return sum(float(text_loss(readout, ids)) for ids in batches) / text.num_predicted


def _last_map(model: Any, block: int, rows: Any) -> tuple[str, nn.Linear]:
    """The linear map that ends a block, and its name, after trying whether the block's output follows it."""
    stack, layers = decoder_layers(model)
    for name, linear in last_maps(model, block).items():
        if _follows(model, layers[block], linear, torch.from_numpy(rows)):
            return f"{stack}.{block}.{name}", linear
    raise no_map_to_change(model, block)


def last_maps(model: Any, block: int) -> dict[str, nn.Linear]:
    """Linear maps by their names in the block, one of which may end it."""
    layer = decoder_layers(model)[1][block]
    found = {name: module for name, module in layer.named_modules() if isinstance(module, nn.Linear)}
    return {name: found[name] for name in _LAST_MAPS if name in found}


def no_map_to_change(model: Any, block: int) -> InputError:
    """Why a cut after the student's block cannot be repaired."""
    layer = decoder_layers(model)[1][block]
    return InputError(
        f"The cut cannot be repaired: {type(layer).__name__} of {type(model).__name__} (student layer {block}) ends in "
        f"none of {', '.join(_LAST_MAPS)} as `x + a W^T`, so no change of a weight does the work of the dropped "
        "layers exactly. Leave the repair out."
    )


@torch.no_grad()
def _follows(model: Any, layer: nn.Module, linear: nn.Linear, ids: Tensor) -> bool:
    """Whether adding C to the map's weight adds a C^T to the block's output; C is random, as large as the weight."""
    ids = ids.to(linear.weight.device)
    generator = torch.Generator().manual_seed(0)
    change = torch.randn(linear.weight.shape, generator=generator).to(linear.weight) * linear.weight.std().clamp(1e-3)
    before, weight = _observe(model, layer, linear, ids), linear.weight.clone()
    linear.weight += change
    after = _observe(model, layer, linear, ids)
    linear.weight.copy_(weight)
    if before is None or after is None:
        return False
    expected = before[0].float() @ change.float().T
    found = (after[1].float() - before[1].float()).reshape(expected.shape)
    tolerance = _TOLERANCE if linear.weight.dtype == torch.float32 else 0.05
    return bool((found - expected).norm() <= tolerance * expected.norm())


def _observe(model: Any, layer: nn.Module, linear: nn.Linear, ids: Tensor) -> tuple[Tensor, Tensor] | None:
    """(a [tokens, F], block output [tokens, D]) of one run; None when they have not the same tokens."""
    seen: dict[str, Tensor] = {}
    with watched(
        Watch(linear, "input", lambda hidden: seen.update(input=hidden.flatten(0, -2))),
        Watch(layer, "output", lambda hidden: seen.update(output=hidden.flatten(0, -2))),
    ):
        hidden_states(model, ids)
    if "input" not in seen or len(seen["input"]) != len(seen["output"]):
        return None
    return seen["input"], seen["output"]


def _mend(
    whole: Any, cut: Any, maps: Mapping[Seam, nn.Linear], split: _Split, config: RepairConfig
) -> list[dict[str, Any]]:
    """Change the maps of the student `cut`, seam by seam; return each seam and how far the states were apart."""
    texts = [text for text in (split.fitted, split.chosen) if len(text.rows)]
    batches = [ids for text in texts for ids in text.batches(config.batch_tokens)]
    num_fitted = len(list(split.fitted.batches(config.batch_tokens)))
    wanted, found = Stream(whole, batches), Stream(cut, batches)
    ridge, tokens = config.repair_ridge, sum(ids.numel() for ids in batches)
    with progress_bar("repairing, tokens", len(maps) * tokens) as bar:
        return [_fit(seam, linear, wanted, found, num_fitted, ridge, bar) for seam, linear in maps.items()]


def _fit(
    seam: Seam,
    linear: nn.Linear,
    wanted: Stream,
    found: Stream,
    num_fitted: int,
    ridge: float | Literal["auto"],
    bar: Bar,
) -> dict[str, Any]:
    """Change `linear` for one seam; of the streams' batches, those after the first `num_fitted` choose the ridge."""
    fitted, chosen, judged = Sums(linear), Sums(linear), Sums(linear)
    inputs: list[Tensor] = []
    with watched(Watch(linear, "input", inputs.append)):
        states = zip(found.outputs(seam.block, again=True), wanted.outputs(seam.dropped[-1]), strict=True)
        for number, (ours, theirs) in enumerate(states):
            seen = [hidden.flatten(0, -2).float() for hidden in (inputs.pop(), ours, theirs)]
            (fitted if number < num_fitted else chosen).add(*seen)
            if number >= num_fitted:
                length = torch.linalg.vector_norm(seen[-1], dim=-1, keepdim=True).clamp(min=_SMALLEST)
                judged.add(*(hidden / length for hidden in seen))
            bar.advance(len(seen[0]))
    if ridge == "auto":
        ridge = best_ridge(fitted, judged)
        fitted.take_in(chosen)
    change = fitted.solve(ridge)
    linear.weight += change.T.to(linear.weight)
    return {
        "block": seam.block,
        "dropped": list(seam.dropped),
        "ridge": ridge,
        "gap_before": fitted.gap / fitted.scale,
        "gap_after": fitted.left(change) / fitted.scale,
    }


def _store(student: Path, maps: Mapping[str, Tensor], stack: str, base: str) -> None:
    """Write the changed weights over the student's own, in the dtype that they have there."""
    stored = {tensor.name: tensor for path in check_weight_files(student) for tensor in read_header(path)}
    for name, weight in maps.items():
        key = f"{name}.weight"
        names = (prefix + key.removeprefix(stack) for prefix in stored_prefixes(stack, base))
        tensor = next((stored[name] for name in names if name in stored), None)
        if tensor is None:
            raise InputError(f"The cut cannot be repaired: its files hold no tensor {key}, so {stack} is stored anew.")
        replace_tensor(tensor, weight)
