"""`compress prune`: a teacher in, students with fewer layers out."""

from pathlib import Path
from typing import Any

import click

from compress.base import processes
from compress.cli.flags import flag, flags
from compress.cli.options import json_option, set_option, trust_option
from compress.cli.results import print_result

_CONFIG = "compress.prune:PruneConfig"


@click.command(short_help="Drop whole layers of a model, or experts of them.")
@click.argument("teacher")
@click.argument("out", type=click.Path(path_type=Path))
@flag(
    _CONFIG,
    "keep",
    multiple=True,
    more="Given several times: a family of students, OUT/SPEC each (`_` for `:`), in one pass over the teacher.",
)
@flag(_CONFIG, "preserve_pattern", is_flag=True)
@flags(_CONFIG, "layers", "by", "rank_after", "experts", "calibration", "calibration_tokens")
@flag(_CONFIG, "repair", is_flag=True)
@flags(_CONFIG, "repair_tokens")
@flag(_CONFIG, "check", "--check/--no-check")
@flags(_CONFIG, "cast")
@flag(_CONFIG, "stream", "--stream/--no-stream")
@click.option("--dry-run", is_flag=True, help="Plan from config.json alone; write nothing.")
@trust_option
@set_option
@json_option
def prune(
    teacher: str,
    out: Path,
    keep: tuple[str, ...],
    dry_run: bool,
    overrides: tuple[str, ...],
    as_json: bool,
    **given: Any,
) -> None:
    """Drop whole layers of TEACHER (a hub id, a folder or a GGUF file), or experts of its layers, and write the student
    to OUT.

    Further settings go through --set: `--set prune.max_shard_size=2GB --set prune.batch_tokens=4096`.
    """
    from compress import prune as step
    from compress.base.config import from_flags
    from compress.run.options import PruneOptions

    text = {}
    if given["rank_after"] and given["calibration"]:  # which candidates are then healed on, too
        text = {"data": {"dataset": given["calibration"], "tokens": given["rank_after"]}}
    family = [
        from_flags(PruneOptions, {"prune": {**given, "keep": spec}, **text}, overrides) for spec in keep or (None,)
    ]
    options, choices = family[0], [each.prune.choice for each in family]
    choice, asked = choices[0], options.prune
    if dry_run:
        from compress.run.plan import plan_students

        plans, faults = plan_students(family, teacher=teacher, out=out)
        if plans:
            _print_all([plan.to_dict() for plan in plans], [plan.describe() for plan in plans], as_json)
        faults.refuse()
        return
    if isinstance(choice, step.RankAfterConfig):
        from compress.run.rank_after import prune_ranked

        results = [prune_ranked(options, teacher=teacher, out=out)]
    elif len(choices) > 1:
        results = processes.on_main(lambda: step.prune_family(teacher, out, list(map(str, choices)), **asked.how))
    else:
        results = processes.on_main(lambda: [step.prune(teacher, out, choice, **asked.how)])
    _print_all([result.record for result in results], [result.describe() for result in results], as_json)


def _print_all(records: list[dict[str, Any]], texts: list[str], as_json: bool) -> None:
    """One record as it is, several as a list."""
    print_result(records if len(records) > 1 else records[0], "\n\n".join(texts), as_json)
