"""The picture and the table of layer importance, from prune.json."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from compress.report import write_report
from compress.report.importance import importance_figure


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
