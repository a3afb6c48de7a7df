"""Whether a model reads rows of text better that begin with its BOS token: measured on text, once, and then kept to.

A model whose every training text began with BOS makes little sense of a row without one: Gemma 3 270M has 5.7 nats a
token without and 3.5 with it. Others do not care. The first tokens of a row are left out of the comparison, since any
token before them helps a little.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from compress.base.errors import CompressError
from compress.base.machine import find_device, memory_of
from compress.base.progress import say
from compress.inference.likelihood import log_probabilities
from compress.inference.readout import Readout, read_out
from compress.model.files import check_weight_files
from compress.model.framing import Framing
from compress.model.kinds import kind_of
from compress.model.lengths import context_tokens
from compress.model.load import find_dtype, load_config, load_model
from compress.model.tokenizer import TokenizerSpec

MARGIN_NATS = 0.1
"""How much a token must gain or lose for the tokenizer's own way to be left."""
ROWS, ROW_TOKENS = 8, 128
"""The text that is measured on."""
_SETTLED = 16
_LEAST_TOKENS = 32


@dataclasses.dataclass(frozen=True)
class StartLoss:
    """Loss, nats a token, on the same tokens of rows that begin with a prefix and rows that do not."""

    with_prefix: float
    without: float
    stderr: float
    """Of their difference, over rows."""
    tokens: int

    @property
    def gain(self) -> float:
        """What the prefix saves a token, nats."""
        return self.without - self.with_prefix


@torch.inference_mode()
def measure_start(readout: Readout, rows: NDArray[np.int64], prefix: tuple[int, ...]) -> StartLoss:
    """Compare rows [n, S] of text as they are with the same after `prefix`, from their token 16 on (or the middle)."""
    settled = min(_SETTLED, rows.shape[1] // 2)
    tokens = rows.shape[1] - settled

    def losses(start: tuple[int, ...]) -> NDArray[np.float64]:
        """[n]"""
        begun = np.concatenate([np.tile(np.array(start, np.int64), (len(rows), 1)), rows], axis=1)
        states = readout.states(torch.from_numpy(begun).to(readout.device))[:, -tokens - 1 : -1].flatten(0, 1)
        wanted = torch.from_numpy(np.ascontiguousarray(rows[:, -tokens:])).flatten()
        log_p, _ = log_probabilities(readout, states, torch.arange(len(wanted)), wanted)
        return -log_p.reshape(len(rows), tokens).mean(dim=1).numpy()

    after, without = losses(prefix), losses(())
    gains = without - after
    stderr = float(gains.std(ddof=1) / len(gains) ** 0.5) if len(gains) > 1 else math.inf
    return StartLoss(float(after.mean()), float(without.mean()), stderr, tokens * len(rows))


def sample_rows(documents: list[NDArray[Any]], most: int | None = None) -> NDArray[np.int64] | None:
    """Rows [n, S] of text to compare on, one from the middle of each document long enough; None of too short ones. S is
    at most `most`."""
    length = min(
        ROW_TOKENS, most or ROW_TOKENS, sorted(map(len, documents), reverse=True)[: ROWS // 2][-1] if documents else 0
    )
    if length < _LEAST_TOKENS:
        return None
    chosen = [ids for ids in documents if len(ids) >= length][:ROWS]
    middles = [(len(ids) - length) // 2 for ids in chosen]
    return np.stack([ids[first : first + length] for ids, first in zip(chosen, middles, strict=True)]).astype(np.int64)


def better_with(spec: TokenizerSpec, found: StartLoss) -> bool:
    """Whether rows are to begin with the prefix: the tokenizer's own way, unless the other is plainly better."""
    plain = max(MARGIN_NATS, 3 * found.stderr)
    return found.gain > (-plain if spec.adds_prefix else plain)


def own_framing(spec: TokenizerSpec) -> Framing:
    """What the tokenizer's own encoding does. Where EOS is its prefix, the end of a document begins the next."""
    prefix = spec.prefix if spec.adds_prefix else ()
    return Framing(() if prefix == (spec.eos_id,) else prefix, prefix)


def framing_of(
    readout: Readout, spec: TokenizerSpec, documents: list[NDArray[Any]]
) -> tuple[Framing, StartLoss | None]:
    """How the model reads text best, and what that was measured by; None where there is nothing to choose or to measure
    on. `documents` are token ids without any frame."""
    own, known = own_framing(spec), readout.model.get_input_embeddings().weight.shape[0]
    limit = context_tokens(readout.model.config)
    rows = sample_rows(
        [ids for ids in documents if ids.max(initial=0) < known], None if limit is None else limit - len(spec.prefix)
    )
    if not spec.prefix or rows is None or max(spec.prefix) >= known:
        return own, None
    found = measure_start(readout, rows, spec.prefix)
    return own._replace(rows=spec.prefix if better_with(spec, found) else ()), found


def framing_in(folder: Path, spec: TokenizerSpec, documents: list[NDArray[Any]]) -> tuple[Framing, StartLoss | None]:
    """`framing_of` the model in a folder, which is loaded for it; the tokenizer's own way where there are no weights,
    or no memory for them, and for a masked LM, which was trained that way."""
    if not spec.prefix or sample_rows(documents) is None or not _has_weights(folder) or _is_masked(folder):
        return own_framing(spec), None
    readout = _load(folder)
    return (own_framing(spec), None) if readout is None else framing_of(readout, spec, documents)


def describe(framing: Framing, found: StartLoss | None, tokenizer: Any) -> str:
    """What was decided, and why, in a sentence."""
    names = "".join(tokenizer.convert_ids_to_tokens(list(framing.rows))) if framing.rows else "no BOS token"
    why = (
        "as its tokenizer does"
        if found is None
        else f"a token costs {found.with_prefix:.2f} nats after one and {found.without:.2f} without"
    )
    return f"Rows of text begin with {names}: {why}."


def _has_weights(folder: Path) -> bool:
    try:
        return (folder / "config.json").is_file() and bool(check_weight_files(folder))
    except CompressError:
        return False


def _is_masked(folder: Path) -> bool:
    return kind_of(load_config(folder)) == "masked"


def _load(folder: Path) -> Readout | None:
    """The model in the precision that there is memory for: on the CPU float32, or as it is stored."""
    device = find_device(None)
    stored, free = sum(path.stat().st_size for path in check_weight_files(folder)), memory_of(device).free
    dtype = find_dtype("auto", folder, device)
    if device.type == "cpu" and 2.2 * stored > free:
        dtype = getattr(load_config(folder), "dtype", None) or torch.float32
    if 1.2 * stored > free:
        say(f"No memory to find out how {folder} reads text best: rows begin as its tokenizer begins texts (data.bos).")
        return None
    return read_out(load_model(folder, dtype=dtype, device=device), str(folder))
