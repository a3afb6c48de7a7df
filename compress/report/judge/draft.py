"""A student as the draft of its teacher: what speculative decoding would gain."""

from collections.abc import Mapping
from typing import Any

from compress.report.judge.speeds import speed_pair
from compress.report.run_files import Record, number

_MOST_DRAFT_TOKENS = 16


def speculative_speedup(acceptance: float, cost_ratio: float, draft_tokens: int) -> float:
    """How many times as fast the teacher writes when the student drafts `draft_tokens` tokens before each of its steps.

        (1 - a^(g + 1)) / ((1 - a) (g c + 1))        Leviathan et al., arXiv:2211.17192, theorem 3.8

    with a the acceptance rate, g the draft tokens and c the time of a step of the student over one of the teacher. It
    takes acceptances as independent, and checking g + 1 tokens at once as one step of the teacher.
    """
    written = sum(acceptance**power for power in range(draft_tokens + 1))
    return written / (draft_tokens * cost_ratio + 1)


def draft_figures(model: Record, teacher: Record | None = None) -> dict[str, Any] | None:
    """What a model gains its teacher as a draft, sampling at temperature 1 and greedily; None if not measured.

    `model` and `teacher` are their evaluations, with the speeds of `speed_pair`. `cost_ratio` is the ratio of the
    median times of one decoded token; for each of `sampled` and `greedy`: acceptance_rate, the best number of
    draft_tokens (at most 16; 0 where drafting only costs) and the speedup it gives.
    """
    fast, slow = speed_pair(model, teacher) or ({}, {})
    ours, theirs = number(fast.get("latency_ms_p50")), number(slow.get("latency_ms_p50"))
    rates = {"sampled": "acceptance_rate", "greedy": "top1_agreement"}
    known = {name: number((model.get("fidelity") or {}).get(key)) for name, key in rates.items()}
    if ours is None or not theirs or any(rate is None for rate in known.values()):
        return None
    found: dict[str, Any] = {"cost_ratio": ours / theirs}
    for name, rate in known.items():
        assert rate is not None
        tokens = max(
            range(_MOST_DRAFT_TOKENS + 1),
            key=lambda g, a=rate: speculative_speedup(a, ours / theirs, g),  # type: ignore[misc]
        )
        found[name] = {
            "acceptance_rate": rate,
            "draft_tokens": tokens,
            "speedup": speculative_speedup(rate, ours / theirs, tokens),
        }
    return found


def drafts(evals: Mapping[str, Record], teacher: Record | None) -> dict[str, Record]:
    """`draft_figures` of each model that has them.

    `teacher` is the teacher's evaluation in the run of them all, or None where they are of several runs.
    """
    found = {key: draft_figures(record, teacher) for key, record in evals.items()}
    return {key: figures for key, figures in found.items() if figures}
