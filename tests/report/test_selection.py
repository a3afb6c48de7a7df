"""What of the text was learned from, as the report shows it, from distill.json."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from compress.report import write_report
from compress.report.pages.selection import selection_figure

SELECTION: dict[str, Any] = {
    "by": "teacher_loss",
    "of": "rows",
    "order": "easy_to_hard",
    "taken": 500,
    "count": 1200,
    "low": 1.5,
    "high": 3.0,
    "mean": 2.0,
    "quantiles": {"0": 0.1, "0.5": 2.25, "1": 9.0},
    "histogram": {"edges": [0.0, 1.0, 2.0, 4.0, 5.0], "counts": [100, 600, 300, 200]},
}


def test_bars_are_as_high_as_their_counts_and_filled_where_scores_were_taken() -> None:
    def bars(selection: dict[str, Any]) -> list[tuple[float, str]]:
        pattern = r'<rect x="[^"]+" y="[^"]+" width="[^"]+" height="([^"]+)" class="block (\w+)"'
        return [(float(height), kind) for height, kind in re.findall(pattern, selection_figure(selection))]

    found = bars(SELECTION)
    assert [kind for _, kind in found] == ["gone", "student", "student", "gone"]
    heights = [height for height, _ in found]
    assert [round(height / heights[0], 2) for height in heights] == [1.0, 6.0, 3.0, 2.0]
    beyond = bars({**SELECTION, "low": 7.0, "high": 9.0})  # of the last bin, which has all above it
    assert [kind for _, kind in beyond] == ["gone", "gone", "gone", "student"]


def test_the_report_shows_how_hard_the_text_was(fake_run: Callable[..., Path]) -> None:
    run = fake_run()
    write_report(run)
    assert "What it learned from" not in (run / "report.html").read_text()
    path = run / "student" / "distill.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "selection": SELECTION}))
    write_report(run)
    html, markdown = ((run / f"report.{kind}").read_text() for kind in ("html", "md"))
    words = "500 of 1,200 rows, of which the teacher's loss, nats a token, is 1.5 to 3, read from easy to hard"
    assert "What it learned from" in html
    assert words in html.replace("&#x27;", "'")
    assert words in markdown
    assert "| the teacher's loss, nats a token | 0.1 | 2.25 | 9 | 2 |" in markdown
