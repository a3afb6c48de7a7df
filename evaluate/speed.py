"""Prefill and decode speed, latency and peak memory at stated shapes, several models interleaved in one run.

Rounds go model by model, so that a slow minute of the machine falls on all of them and ratios stay fair; each is timed
with several sequences side by side.
"""

import ctypes
import dataclasses
import inspect
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor

from compress.base.machine import device_name, find_device, peak_resident_bytes, restart_peak_resident
from compress.base.progress import progress_bar
from compress.base.signals import check_interrupt
from compress.evaluate.config import EvalConfig
from compress.inference.readout import Checkpoint, load_checkpoint, read_out
from compress.model.kinds import model_class
from compress.model.lengths import fit, shortest_context
from compress.model.load import find_dtype
from compress.model.remote_code import trusted

_WARM_UP = 2


_Shape = tuple[str, int]
"""Name of a model, and sequences side by side."""


@dataclasses.dataclass
class _Rounds:
    """Seconds of each round's prefill, and of each decoded token by round."""

    prefill_s: list[float] = dataclasses.field(default_factory=list)
    step_s: list[list[float]] = dataclasses.field(default_factory=list)


def compare_speed(models: Mapping[str, str | Path], config: EvalConfig) -> dict[str, dict[str, Any]]:
    """Speed of several checkpoints (name -> folder or hub id), measured interleaved; all are in memory at once.

    Raises:
        InputError, UsageError: a model cannot be loaded (see `load_checkpoint`).
    """
    return measure_speed(
        {name: load_checkpoint(folder, dtype=config.dtype, device=config.device) for name, folder in models.items()},
        config,
    )


def speed_of_shapes(configs: Mapping[str, Any], folder: Path, config: EvalConfig) -> dict[str, dict[str, Any]]:
    """Speed of models that are not there yet, by their `PretrainedConfig`, as `compare_speed`: with random weights, in
    the dtype that a model of `folder` has."""
    device = find_device(config.device)
    checkpoints = {}
    for name, shape in configs.items():
        dtype = find_dtype(config.dtype, folder, device)
        with torch.device(device):
            model = model_class(shape).from_config(shape, dtype=dtype, trust_remote_code=trusted()).eval()
        read = read_out(model, name)
        checkpoints[name] = Checkpoint(read.name, model, read.head, read.vocab_size, folder, tokenizer=None)
    return measure_speed(checkpoints, config)


@torch.inference_mode()
def measure_speed(checkpoints: Mapping[str, Checkpoint], config: EvalConfig) -> dict[str, dict[str, Any]]:
    """The eval JSON's `speed` for each checkpoint: its figures at `speed_batch`, and `shapes`, those at every batch.

    One round: a prefill of [batch, speed_prompt_tokens] random ids (one forward pass with logits of the last
    position), then `speed_decode_tokens` greedy steps of one token through the key-value cache. Tokens a second are
    those of the whole batch over the median round, with `_quartiles` over the rounds; latency is one decoded token's
    time over all rounds; `time_to_first_token_ms` is the median prefill. `peak_gib` is the weights plus the most a
    round adds to the memory in use (device allocations on CUDA, resident memory on Linux CPUs, else null). With
    `speed_price_per_hour` the cost of a million prompt and of a million decoded tokens is that price over the rate.
    Decode figures are null for a model without a key-value cache. Memory is taken in a round of its own, after the
    timed ones.
    """
    limit = shortest_context(checkpoint.model.config for checkpoint in checkpoints.values())
    prompt, new = fit("Speed", config.speed_prompt_tokens, config.speed_decode_tokens, limit)
    config = dataclasses.replace(config, speed_prompt_tokens=prompt, speed_decode_tokens=new)
    batches = list(dict.fromkeys([config.speed_batch, *config.speed_batches]))
    order = [(name, batch) for batch in batches for name in checkpoints]
    rounds = {shape: _Rounds() for shape in order}
    shapes: dict[str, list[dict[str, Any]]] = {name: [] for name in checkpoints}
    with progress_bar("Speed", (_WARM_UP + config.speed_repeats + 1) * len(order), unit="rounds") as bar:
        for number in range(_WARM_UP + config.speed_repeats):
            for shape in order:
                check_interrupt()
                prefill_s, step_s = _run_round(checkpoints[shape[0]], config, shape[1])
                if number >= _WARM_UP:
                    rounds[shape].prefill_s.append(prefill_s)
                    rounds[shape].step_s.append(step_s)
                bar.advance()
        for name, batch in order:
            check_interrupt()
            peak = _peak_bytes(checkpoints[name], config, batch)
            shapes[name].append(_figures(config, rounds[name, batch], batch, peak))
            bar.advance()
    return {
        name: {**_place(checkpoint), **shapes[name][0], "shapes": shapes[name]}
        for name, checkpoint in checkpoints.items()
    }


def _run_round(checkpoint: Checkpoint, config: EvalConfig, batch: int) -> tuple[float, list[float]]:
    """Seconds of one prefill, and of each greedy step after it."""
    generator = torch.Generator().manual_seed(config.seed)
    shape = (batch, config.speed_prompt_tokens)
    ids = torch.randint(0, checkpoint.vocab_size, shape, generator=generator).to(checkpoint.device)
    # Models without the option compute all positions' logits: so would any user's prefill with them.
    takes = inspect.signature(checkpoint.model.forward).parameters
    last_only = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
    start = now(checkpoint.device)
    out = checkpoint.model(input_ids=ids, use_cache=True, **last_only)
    token = out.logits[:, -1:].argmax(dim=-1)
    prefill_s = now(checkpoint.device) - start
    return prefill_s, _decode(checkpoint, token, getattr(out, "past_key_values", None), config.speed_decode_tokens)


def _decode(checkpoint: Checkpoint, token: Tensor, cache: Any, count: int) -> list[float]:
    """Seconds of each of `count` greedy steps from `token` [B, 1]; none without a cache."""
    steps: list[float] = []
    while cache is not None and len(steps) < count:
        start = now(checkpoint.device)
        out = checkpoint.model(input_ids=token, past_key_values=cache, use_cache=True)
        cache, token = out.past_key_values, out.logits[:, -1:].argmax(dim=-1)
        steps.append(now(checkpoint.device) - start)
    return steps


def now(device: torch.device) -> float:
    """Seconds of a clock, once all that was asked of the device is done."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


def _place(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "device": device_name(checkpoint.device),
        "dtype": checkpoint.dtype,
        "threads": torch.get_num_threads(),
    }


def _figures(config: EvalConfig, rounds: _Rounds, batch: int, peak: int | None) -> dict[str, Any]:
    """What one model does with one number of sequences side by side."""
    latencies = np.concatenate([np.asarray(steps) for steps in rounds.step_s]) * 1000.0
    decoded = len(rounds.step_s[0])
    record: dict[str, Any] = {"batch": batch, "prompt_tokens": config.speed_prompt_tokens, "decode_tokens": decoded}
    record |= _rate("prefill", batch * config.speed_prompt_tokens, rounds.prefill_s, config.speed_price_per_hour)
    record |= _rate("decode", batch * decoded, [sum(steps) for steps in rounds.step_s], config.speed_price_per_hour)
    return {
        **record,
        "latency_ms_p50": float(np.percentile(latencies, 50)) if decoded else None,
        "latency_ms_p95": float(np.percentile(latencies, 95)) if decoded else None,
        "time_to_first_token_ms": float(np.median(rounds.prefill_s)) * 1000.0,
        "peak_gib": None if peak is None else peak / 2**30,
        "rounds": len(rounds.prefill_s),
    }


def _rate(what: str, tokens: int, seconds: list[float], price: float | None) -> dict[str, Any]:
    """Tokens a second over the median round, its quartiles, and the cost of a million tokens; nulls for no tokens."""
    slow, median, fast = (float(np.percentile(seconds, at)) for at in (75, 50, 25))
    found = {
        f"{what}_tokens_per_s": tokens / median if tokens else None,
        f"{what}_tokens_per_s_quartiles": [tokens / slow, tokens / fast] if tokens else None,
    }
    if price is not None:
        found[f"{what}_cost_per_million_tokens"] = price / 3600 * median / tokens * 1e6 if tokens else None
    return found


def _peak_bytes(checkpoint: Checkpoint, config: EvalConfig, batch: int) -> int | None:
    """Bytes of the weights and of the most that one round adds to them; None where the platform cannot tell."""
    weights, device = _weight_bytes(checkpoint.model), checkpoint.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = int(torch.cuda.memory_allocated(device))
        _run_round(checkpoint, config, batch)
        return weights + int(torch.cuda.max_memory_allocated(device)) - before
    if device.type != "cpu" or not _trim_and_restart_peak():
        return None
    before = int(psutil.Process().memory_info().rss)
    _run_round(checkpoint, config, batch)
    return weights + max(0, peak_resident_bytes() - before)


def _weight_bytes(model: Any) -> int:
    """Bytes of a model's weights, tied ones counted once; of quantised ones, those of the tensors they are made of."""
    found: dict[int, int] = {}
    left = list(model.state_dict(keep_vars=True).values())
    while left:
        tensor = left.pop()
        if hasattr(tensor, "__tensor_flatten__"):
            left += [getattr(tensor, part) for part in tensor.__tensor_flatten__()[0]]
        else:
            found[int(tensor.data_ptr())] = int(tensor.nbytes)
    return sum(found.values())


def _trim_and_restart_peak() -> bool:
    """Give free heap pages back (glibc), then count the process's peak resident memory afresh."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        return False
    return restart_peak_resident()
