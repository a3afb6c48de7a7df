"""Models of every size between: the healed student, the models grown from it, and the teacher."""

from collections.abc import Mapping

from compress.report.judge.scores import build_scores
from compress.report.run_files import Record, RunFiles, layers_of


def sizes_between(run: RunFiles, scores: Mapping[str, Record]) -> list[Record]:
    """Each model with its `layers`, `params`, `kl_nats` and `loss_nats` with standard errors, and scores by task
    (`value`, `stderr`), the smallest first; empty where none was grown.

    The KL of the teacher from itself is 0.
    """
    ends = [run.evals.get(key) for key in ("student", "teacher")]
    if not run.grown or run.prune is None or None in ends:
        return []
    kept, dropped = map(len, layers_of(run.prune))
    models = [("healed", kept, ends[0]), *(("grown", size, found) for size, found in run.grown.items())]
    models.append(("teacher", kept + dropped, ends[1]))
    made = build_scores({str(number): record for number, (_, _, record) in enumerate(models) if record})
    main = [name for name, entry in scores.items() if entry["part_of"] is None]
    return [
        {
            "model": name,
            "layers": layers,
            "params": (record or {}).get("params"),
            **_nearness(record or {}, whole=name == "teacher"),
            "tasks": {task: {**made[task][str(number)], "metric": made[task]["metric"]} for task in main}
            if all(str(number) in made.get(task, {}) for task in main)
            else {},
        }
        for number, (name, layers, record) in enumerate(models)
    ]


def _nearness(record: Record, *, whole: bool) -> Record:
    near, held = record.get("fidelity") or {}, record.get("heldout") or {}
    return {
        "kl_nats": 0.0 if whole else near.get("kl_nats"),
        "kl_nats_stderr": None if whole else near.get("kl_nats_stderr"),
        "loss_nats": held.get("loss_nats"),
        "loss_nats_stderr": held.get("loss_nats_stderr"),
    }
