"""Any number of evaluated models side by side: one table, one plot, intervals and paired tests against the first."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compress.base.disk import write_json, write_rows, write_text
from compress.base.errors import Faults
from compress.base.outputs import check_outputs, into
from compress.report.compare.build import build_comparison
from compress.report.compare.pages import html_comparison, markdown_comparison
from compress.report.compare.sources import read_models
from compress.report.outputs import COMPARISON, page_outputs

__all__ = ["compare_models"]


def compare_models(sources: Sequence[str], out: Path | None = None) -> dict[str, Any]:
    """Compare what `compress eval` wrote of several models; the first is the one that others are compared with.

    A source is an eval JSON, or a run folder, which stands for its teacher, cut and healed student; `NAME=SOURCE` names
    it. An evaluation that comes twice (two runs of one teacher) is taken once. With `out`, compare.json, compare.md,
    compare.html and flips.jsonl are written into that folder.

    Raises:
        UsageError: a file of the user's is where one of the comparison's goes.
        InputError: a source is missing or no evaluation, or nothing was measured on both the first and another model.
    """
    faults = Faults()
    if out is not None:
        outputs = page_outputs(out, "compare", "a comparison", COMPARISON)
        check_outputs([into(out, "a folder for a comparison"), *outputs], faults)
    models = faults.of(lambda: read_models(sources))
    faults.refuse()
    assert models is not None
    report = build_comparison(models)
    flips = report["flips"].pop("all")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_rows(out / "flips.jsonl", flips)
        write_text(out / "compare.md", markdown_comparison(report))
        write_text(out / "compare.html", html_comparison(report))
        write_json(out / "compare.json", report)  # last: until then pages from before marks are known as ours by it
    return report
