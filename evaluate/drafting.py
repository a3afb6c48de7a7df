"""A student measured as the draft of its teacher: acceptance and speed beside what theory says of them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from compress.base.machine import device_name
from compress.base.progress import progress_bar
from compress.base.signals import check_interrupt
from compress.evaluate.config import EvalConfig
from compress.evaluate.text.assisted import Answer, expected_acceptance, write
from compress.evaluate.text.language import ratio_stderr
from compress.evaluate.text.samples import Encode, with_room
from compress.inference.readout import Checkpoint
from compress.model.lengths import shortest_context
from compress.report.judge.draft import speculative_speedup

_ALONE, _STUDENT = "teacher", "student"

_Round = Mapping[str | int, Answer]
"""One prompt's text by the teacher alone, by the student alone, and by the teacher with drafts of each length."""


def measure_drafts(
    checkpoint: Checkpoint, teacher: Checkpoint, prompts: Sequence[str], config: EvalConfig, encode: Encode
) -> dict[str, Any] | None:
    """The eval JSON's `fidelity.draft.measured`; None where no prompt has a token.

    Each prompt is a round, in which the teacher alone, the student alone, and the teacher with drafts of each of
    `draft_tokens` write at most `sample_tokens` tokens after it, in turns; the first round is gone through once more
    before, to warm up. Under `greedy` and `sampled` (temperature 1, seeded): `tokens_per_s` of the teacher alone,
    `cost_ratio` (a token's time of the student over the teacher's, both alone), `predicted_acceptance` (mean over the
    tokens that the teacher wrote alone), and for each of `by_draft_tokens`: `acceptance` (accepted over tested draft
    tokens), `tested`, `tokens_per_step` of the teacher, `tokens_per_s`, `speedup` against the teacher alone with
    `speedup_quartiles`, and `predicted_speedup` (`speculative_speedup` of the predicted acceptance). Rates and times
    are medians over rounds, the prompt's pass included; `_stderr` are over prompts.

    Raises:
        InputError: transformers cannot let these models do so.
    """
    context = shortest_context(model.model.config for model in (teacher, checkpoint))
    encoded = [encode(checkpoint, prompt) for prompt in prompts]
    rows = [with_room(checkpoint, ids, config.sample_tokens, context=context) for ids in encoded if ids]
    if not rows:
        return None
    variants = 2 + len(config.draft_tokens)
    devices = [] if teacher.device.type == "cpu" else [teacher.device]
    found: dict[str, Any] = {
        "prompts": len(rows),
        "new_tokens": config.sample_tokens,
        "device": device_name(teacher.device),
        "dtype": teacher.dtype,
        "threads": torch.get_num_threads(),
    }
    with (
        progress_bar("Drafts", 2 * variants * (1 + len(rows)), unit="texts") as bar,
        torch.random.fork_rng(devices, device_type=teacher.device.type),
    ):
        for name, sampled in (("greedy", False), ("sampled", True)):
            torch.manual_seed(config.seed)
            rounds = [
                _round(checkpoint, teacher, row, config, sampled=sampled, advance=bar.advance)
                for row in [rows[0], *rows]
            ]
            found[name] = _figures(checkpoint, teacher, rows, rounds[1:], sampled=sampled)
    return found


def _round(
    checkpoint: Checkpoint,
    teacher: Checkpoint,
    prompt: Sequence[int],
    config: EvalConfig,
    *,
    sampled: bool,
    advance: Callable[[], Any],
) -> _Round:
    found: dict[str | int, Answer] = {}

    def timed(name: str | int, writer: Checkpoint, **drafting: Any) -> None:
        check_interrupt()
        found[name] = write(writer, prompt, config.sample_tokens, sampled=sampled, **drafting)
        advance()

    timed(_ALONE, teacher)
    timed(_STUDENT, checkpoint)
    for count in dict.fromkeys(config.draft_tokens):
        timed(count, teacher, draft=checkpoint, draft_tokens=count)
    return found


def _figures(
    checkpoint: Checkpoint,
    teacher: Checkpoint,
    prompts: Sequence[Sequence[int]],
    rounds: Sequence[_Round],
    *,
    sampled: bool,
) -> dict[str, Any]:
    """What `measure_drafts` tells of one way to write."""
    texts = [each[_ALONE].tokens for each in rounds]
    expected = [
        expected_acceptance(teacher, checkpoint, prompt, text, sampled=sampled)
        for prompt, text in zip(prompts, texts, strict=True)
    ]
    predicted = _ratio("predicted_acceptance", [float(each.sum()) for each in expected], [len(e) for e in expected])
    rate = predicted["predicted_acceptance"]
    cost = float(np.median(1 / _rates(rounds, _STUDENT)) / np.median(1 / _rates(rounds, _ALONE)))
    assert rate is not None
    return {
        "tokens_per_s": float(np.median(_rates(rounds, _ALONE))),
        "cost_ratio": cost,
        **predicted,
        "by_draft_tokens": [
            {
                "draft_tokens": count,
                **_assisted(rounds, count),
                "predicted_speedup": speculative_speedup(rate, cost, count),
            }
            for count in rounds[0]
            if isinstance(count, int)
        ],
    }


def _assisted(rounds: Sequence[_Round], count: int) -> dict[str, Any]:
    """What was measured with drafts of `count` tokens."""
    answers = [each[count] for each in rounds]
    tested = [sum(tested for tested, _ in answer.tests) for answer in answers]
    accepted = [sum(accepted for _, accepted in answer.tests) for answer in answers]
    gains = _rates(rounds, count) / _rates(rounds, _ALONE)
    return {
        **_ratio("acceptance", accepted, tested),
        "tested": sum(tested),
        "tokens_per_step": sum(len(each.tokens) for each in answers) / sum(len(each.tests) for each in answers),
        "tokens_per_s": float(np.median(_rates(rounds, count))),
        "speedup": float(np.median(gains)),
        "speedup_quartiles": [float(np.percentile(gains, at)) for at in (25, 75)],
    }


def _rates(rounds: Sequence[_Round], name: str | int) -> Any:
    """Tokens a second of each round, float64 [rounds]."""
    return np.array([len(each[name].tokens) / each[name].seconds for each in rounds])


def _ratio(name: str, values: Sequence[float], counts: Sequence[int]) -> dict[str, float | None]:
    """sum(values) / sum(counts), both by prompt, with its standard error; None where nothing was counted."""
    if not sum(counts):
        return {name: None, f"{name}_stderr": None}
    error = ratio_stderr(np.array(values, dtype=np.float64), np.array(counts))
    return {name: sum(values) / sum(counts), f"{name}_stderr": error}
