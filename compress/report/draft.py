"""A student as the draft of its teacher: what speculative decoding would gain."""

from typing import Any

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


def draft_figures(fidelity: Record | None, speed: Record | None, teacher_speed: Record | None) -> dict[str, Any] | None:
    """What the student gains its teacher as a draft, sampling at temperature 1 and greedily; None if not measured.

    `cost_ratio` is the ratio of the median times of one decoded token, measured in one run on one device; for each of
    `sampled` and `greedy`: acceptance_rate, the best number of draft_tokens (at most 16; 0 where drafting only costs)
    and the speedup it gives.
    """
    fast, slow = speed or {}, teacher_speed or {}
    ours, theirs = number(fast.get("latency_ms_p50")), number(slow.get("latency_ms_p50"))
    rates = {"sampled": "acceptance_rate", "greedy": "top1_agreement"}
    known = {name: number((fidelity or {}).get(key)) for name, key in rates.items()}
    alike = all(fast.get(key) == slow.get(key) for key in ("device", "dtype", "batch"))
    if ours is None or not theirs or not alike or any(rate is None for rate in known.values()):
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
