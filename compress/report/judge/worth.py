"""Whether a run was worth it: what it cost, and from how many tokens on serving the student has saved that."""

from compress.report.judge.speeds import speed_pair
from compress.report.run_files import Record, RunFiles, TrainingFiles, number


def worth(run: RunFiles) -> Record | None:
    """`seconds` of the training (of a chain or of branches, of all), `price_per_hour` where it is known, and of
    `prefill` and `decode` the seconds a token takes `before` and `after`, and the `tokens` from which on the run has
    paid (None where it never does).

    None where speeds were not measured alike. Training and serving are taken to be on devices of one price, which then
    does not matter to the tokens.
    """
    parts: list[TrainingFiles] = [*run.stages, *run.branches]
    trained = [part.distill for part in parts] or [run.distill]
    spent = [number((record or {}).get("seconds")) for record in trained]
    seconds = sum(filter(None, spent))
    if None in spent or not {"teacher", "student"} <= run.evals.keys():
        return None
    teacher, student = run.evals["teacher"], run.evals["student"]
    fast, slow = speed_pair(student, teacher) or ({}, {})
    found: Record = {}
    for what in ("prefill", "decode"):
        rates = [number(speed.get(f"{what}_tokens_per_s")) for speed in (slow, fast)]
        if all(rates):
            before, after = (1 / rate for rate in rates if rate)
            saved = before - after
            found[what] = {"before": before, "after": after, "tokens": seconds / saved if saved > 0 else None}
    cost, rate = (number(slow.get(f"decode_{name}")) for name in ("cost_per_million_tokens", "tokens_per_s"))
    price = None if cost is None or rate is None else cost * rate * 3600 / 1e6
    return {"seconds": seconds, "price_per_hour": price, "device": slow.get("device"), **found} if found else None
