"""What a cut was chosen by, from its prune.json: scores of layers, and candidate cuts healed a little."""

from compress.report.run_files import Record, number

_UNITS = {
    "block-influence": "1 − mean cosine of a layer's input and output",
    "angular": "mean angle between a layer's input and output, share of 180°",
    "perplexity": "rise of the loss without the layer, nats a token",
    "perplexity-greedy": "rise of the loss without the layer alone, nats a token",
    "kl-greedy": "KL from the whole model without the layer alone, nats a token",
    "taylor": "sum of |w · dL/dw| over the layer's matrices",
    "magnitude": "sum of |w| over the layer's matrices",
    "random": "a random draw",
}


def layer_scores(prune: Record | None) -> list[float]:
    """The score of each of the teacher's layers; empty when they were not measured."""
    found = [number(score) for score in (prune or {}).get("scores") or []]
    return [score for score in found if score is not None]


def measures(prune: Record | None) -> list[Record]:
    """What layers were scored by, each with `method`, `scores`, `dropped_layers` and `ranking` as in a prune.json: the
    one measure of a cut, or those that proposed cuts to compare; a random draw measures nothing."""
    criteria = ((prune or {}).get("ranking") or {}).get("criteria") or {}
    if not criteria:
        return [prune] if prune and layer_scores(prune) else []
    return [
        {
            "method": name,
            "scores": found["scores"],
            "dropped_layers": [i for i in range(len(found["scores"])) if i not in found["kept_layers"]],
            "ranking": found,
        }
        for name, found in criteria.items()
        if not name.startswith("random")
    ]


def score_unit(prune: Record) -> str:
    """What the scores of a prune.json are."""
    return _UNITS.get(str(prune.get("method")), str(prune.get("method")))


def drop_order(prune: Record) -> dict[int, int]:
    """Layer -> its place (1-based) in the order in which a greedy search dropped it."""
    steps = (prune.get("ranking") or {}).get("steps") or []
    return {step["dropped"]: place for place, step in enumerate(steps, start=1)}


def candidates(prune: Record | None) -> list[Record]:
    """The candidates of a prune.json, the best first; empty when no cuts were compared."""
    found: list[Record] = ((prune or {}).get("ranking") or {}).get("candidates") or []
    return found


def compared_by(prune: Record | None) -> str:
    """The key of the losses by which candidates were compared: `kl`, or `loss` in a record that does not say."""
    name: str = ((prune or {}).get("ranking") or {}).get("compared_by", "loss")
    return name


def compared_in_words(measure: str) -> tuple[str, str]:
    """What candidates were compared by, and its unit."""
    return {
        "kl": ("held-out KL from the teacher", "nats a token"),
        "error": ("share of answers that are wrong", "mean over tasks"),
    }.get(measure, ("held-out loss as healing minimises it", "nats a token"))


def candidate_losses(candidate: Record, measure: str) -> tuple[float | None, float | None]:
    """A held-out measure before and after the heal, nats a token; None where it was not finite."""
    return number(candidate["before"].get(measure)), number(candidate["after"].get(measure))
