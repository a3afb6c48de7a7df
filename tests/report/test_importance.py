"""The picture and the table of layer importance, from prune.json."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compress.report import write_report
from compress.report.pages.importance import importance_figure


def test_the_report_shows_what_the_layers_were_chosen_by(fake_run: Callable[..., Path]) -> None:
    run = fake_run()
    path = run / "student-init" / "prune.json"
    prune = json.loads(path.read_text())
    scores = [0.5 - 0.03 * layer for layer in range(16)]
    steps = [{"dropped": layer, "loss_nats": 3.0} for layer in prune["dropped_layers"]]
    prune |= {
        "method": "perplexity-greedy",
        "scores": scores,
        "ranking": {"steps": steps, "calibration": {"tokens": 1024}},
    }
    path.write_text(json.dumps(prune))
    write_report(run)
    html, markdown = ((run / f"report.{kind}").read_text() for kind in ("html", "md"))
    assert "How much each layer matters" in html
    assert "1,024 tokens" in html
    assert "| 3 | kept | 0.41 |" in markdown
    assert "| 2 | dropped 2. | 0.44 |" in markdown
    assert json.loads((run / "report.json").read_text())["prune"]["scores"] == scores


def test_a_bar_for_each_layer_filled_where_it_stays() -> None:
    record: dict[str, Any] = {"scores": [0.2, -0.1, 0.0, 0.4], "dropped_layers": [1, 2], "method": "perplexity"}
    picture = importance_figure(record)
    bars = re.findall(r'<rect x="[^"]+" y="([^"]+)" width="[^"]+" height="([^"]+)" rx="2" class="block (\w+)"', picture)
    assert [kind for _, _, kind in bars] == ["teacher", "gone", "gone", "teacher"]
    heights = [float(height) for _, height, _ in bars]
    assert heights[3] == 2 * heights[0] == 4 * heights[1]
    zero = float(bars[0][0]) + heights[0]
    assert float(bars[1][0]) == zero
    assert importance_figure({"scores": None, "dropped_layers": [1], "method": "spec"}) == ""


def test_a_ranking_of_cuts_is_shown_with_the_measures_that_named_them(fake_run: Callable[..., Path]) -> None:
    """Marks lie at the losses on one scale; each measure marks what it would drop, and the table says the same."""
    run = fake_run()
    path = run / "student-init" / "prune.json"
    prune = json.loads(path.read_text())
    kept = [layer for layer in range(16) if layer not in prune["dropped_layers"]]
    losses = [(6.0, 3.0), (4.0, 3.5), (8.0, None)]
    cuts = [(kept, ["taylor"]), (list(range(8, 16)), ["magnitude", "random"]), ([0, 1, 2, 5, 6, 9, 10, 15], ["0-2,5"])]
    prune |= {
        "method": "rank-after",
        "scores": None,
        "ranking": {
            "rank_after_tokens": 2_000_000,
            "candidates": [
                {"kept_layers": cut, "proposed_by": names, "before": {"loss": before}, "after": {"loss": after}}
                for (cut, names), (before, after) in zip(cuts, losses, strict=True)
            ],
            "criteria": {
                "taylor": {"kept_layers": kept, "scores": [float(i) for i in range(16)], "calibration": {"tokens": 64}},
                "magnitude": {"kept_layers": list(range(8, 16)), "scores": [2.0 * i for i in range(16)]},
                "random, seed 0": {"kept_layers": list(range(8, 16)), "scores": [0.5] * 16},
            },
        },
    }
    path.write_text(json.dumps(prune))
    write_report(run)
    html, markdown = ((run / f"report.{kind}").read_text() for kind in ("html", "md"))
    part = html[html.index("Which cut heals best") : html.index("How much each layer matters")]
    assert "same 2M tokens" in part
    marks = re.findall(r'<circle cx="([^"]+)" cy="([^"]+)" r="[^"]+" class="mark (hollow student_init|student)"', part)
    marks = [(float(x), float(y), kind) for x, y, kind in marks]
    assert [kind for _, _, kind in marks] == ["hollow student_init", "student"] * 2 + ["hollow student_init"]
    (six, row, _), (three, same, _), (four, _, _), (_, _, _), (eight, _, _) = marks
    assert row == same
    assert (eight - three) / (six - three) == pytest.approx(5 / 3, abs=0.01)
    assert (four - three) / (six - three) == pytest.approx(1 / 3, abs=0.01)
    assert "| 8-15 | magnitude, random | 4.0000 | 3.5000 |" in markdown
    assert "| 0-2, 5-6, 9-10, 15 | 0-2,5 | 8.0000 | – |" in markdown
    pictures = re.findall(r'aria-label="Importance of each layer: ([^"]+)".*?</svg>', html)
    assert len(pictures) == 2  # a random draw measures nothing
    assert "| 0 | dropped | 0 × | 0 × |" in markdown
    assert "| 1 | kept | 1 | 2 × |" in markdown
    assert "| 8 | dropped | 8 × | 16 |" in markdown
