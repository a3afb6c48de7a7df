"""report.html, report.md and the terminal summary: self-contained, escaped, well-formed, and true to report.json."""

import io
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console

from compress.report import summary, write_report
from compress.report.pages import svg

VOID = {"meta", "br", "hr", "link", "img", "input"}
HOSTILE = "<script>alert('x')</script>&\"`|"


class Balance(HTMLParser):
    """Collects tags and attributes; raises when tags are not nested properly."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def parse(run: Path) -> tuple[str, Balance]:
    page = write_report(run).read_text()
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    return page, parser


def many_tasks(count: int) -> dict[str, tuple[Any, ...]]:
    return {f"a_rather_long_task_name_{i}": ("acc", 0.25, i, 60 + i, 0.7, 0.3, 0.4) for i in range(count)}


@pytest.mark.parametrize("count", [0, 1, 2, 10])
@pytest.mark.parametrize("layers", [2, 16, 80])
def test_page_is_well_formed_and_asks_for_nothing(fake_run: Callable[..., Path], count: int, layers: int) -> None:
    page, parser = parse(fake_run(many_tasks(count), layers=layers))
    assert not {"script", "link", "img", "iframe", "object"} & set(parser.tags)
    assert not {"src", "href", "srcset", "onload"} & {name for name, _ in parser.attributes}
    assert not re.search(r"https?:|url\(|@import|nan|inf\b", re.sub(r"<details>.*?</details>", "", page, flags=re.S))
    pictures = re.findall(r"<svg.*?</svg>", page, flags=re.S)
    for picture in pictures:
        ElementTree.fromstring(picture)
    figures = [p for p in pictures if 'role="img"' in p]
    assert len(figures) == 3 + (count > 0)


def test_everything_from_the_run_is_escaped(fake_run: Callable[..., Path]) -> None:
    run = fake_run({f"task {HOSTILE}": ("acc", 0.25, 0, 80, 0.7, 0.3, 0.4)}, name=HOSTILE)
    for stem in ("teacher", "student-init", "student"):
        path = run / "eval" / f"{stem}.json"
        record = json.loads(path.read_text())
        record |= {"model": HOSTILE, "samples": [{"prompt": HOSTILE, "continuation": HOSTILE}]}
        record["speed"]["device"] = HOSTILE
        record["manifest"]["command"] = [HOSTILE]
        path.write_text(json.dumps(record))
    path = run / "student-init" / "prune.json"
    cut = {"kept_layers": [1, 3], "proposed_by": [HOSTILE], "before": {"loss": 3.0}, "after": {"loss": 2.0}}
    path.write_text(json.dumps({**json.loads(path.read_text()), "ranking": {"candidates": [cut]}}))
    page, parser = parse(run)
    assert "<script" not in page
    assert parser.text.count(HOSTILE) >= 10
    markdown = (run / "report.md").read_text()
    assert "<script" not in re.sub(r"````.*?````", "", markdown, flags=re.S).replace("\\<", "")


def test_numbers_on_the_pages_are_those_of_the_report(fake_run: Callable[..., Path]) -> None:
    run = fake_run()
    _, parser = parse(run)
    report = json.loads((run / "report.json").read_text())
    markdown = (run / "report.md").read_text()
    kept = report["retention"]["demo_choice"]
    low, high = kept["ci95"]
    shown = f"{kept['chance_corrected']:.0%} [{100 * low:.0f}, {100 * high:.0f}]"
    assert shown in parser.text
    assert shown in markdown
    for text in (
        "749M of 1.24B",
        "1.8×",
        "1,235,814,400",
        "10 h 00 min",
        "1.53e+19",
        "3.42",
        "meta-llama/Llama-3.2-1B",
    ):
        assert text in parser.text
    for key, stem in (("teacher", 93.0), ("student_init", 31.0), ("student", 88.0)):
        assert report["scores"]["demo_choice"][key]["value"] == pytest.approx(stem / 100)
        assert f"{stem} ± " in markdown
    assert "0123456789abcdef" in parser.text


def test_markdown_tables_are_rectangular(fake_run: Callable[..., Path]) -> None:
    run = fake_run(many_tasks(3))
    write_report(run)
    blocks = re.findall(r"(?:^\|.*\n)+", (run / "report.md").read_text(), flags=re.M)
    assert len(blocks) == 9
    for block in blocks:
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in block.splitlines()}) == 1


def loss_references(page: str) -> list[str]:
    return re.findall(r'class="reference (\w+)"', page)


def test_teacher_and_cut_losses_are_drawn_only_beside_the_same_heldout_rows(fake_run: Callable[..., Path]) -> None:
    run = fake_run()
    assert loss_references(parse(run)[0]) == ["teacher", "student_init"]
    path = run / "eval" / "student.json"
    record = json.loads(path.read_text())
    record["heldout"]["loss_nats"] += 0.3
    path.write_text(json.dumps(record))
    assert loss_references(parse(run)[0]) == []


def test_training_without_a_teacher_shows_one_loss(fake_run: Callable[..., Path]) -> None:
    run = fake_run()
    rows = [{"step": s, "tokens": 100 * s, "loss": 5.0 / s, "soft": None, "hard": None} for s in range(1, 40)]
    rows += [{"step": 39, "tokens": 3900, "loss": 0.125, "soft": None, "hard": None}]
    rows += [{"step": 40, "tokens": 4000, "loss": float("nan"), "soft": None, "hard": None}]
    (run / "train" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page, parser = parse(run)
    assert page.count("<figcaption>") == 1
    assert "training 0.12" in parser.text


def test_every_term_of_the_loss_has_a_curve_and_so_has_kl_where_it_is_no_term(fake_run: Callable[..., Path]) -> None:
    run = fake_run()
    log = run / "train" / "metrics.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    for kl, figures in ((1.0, ["Soft", "Hard", "Term near"]), (2.0, ["Soft", "Hard", "KL", "Term near"])):
        for row in rows:
            if "heldout_loss" in row:
                row |= {"heldout_kl": kl * row["heldout_soft"], "heldout_near": 0.5}
            else:
                row["near"] = 0.5
        log.write_text("".join(json.dumps(row) + "\n" for row in rows))
        captions = re.findall(r"<figcaption>(.*?)</figcaption>", parse(run)[0])
        assert [name for name in figures if any(text.startswith(name) for text in captions)] == figures
        assert any(text.startswith("KL") for text in captions) == ("KL" in figures)


def test_summary_fits_a_terminal_and_marks_chance(fake_run: Callable[..., Path]) -> None:
    run = fake_run({"easy": ("acc", 0.25, 0, 400, 0.8, 0.26, 0.7), "odd": ("acc", 0.25, 0, 400, 0.6, 0.1, 0.3)})
    write_report(run)
    console = Console(file=io.StringIO(), width=80)
    console.print(summary(json.loads((run / "report.json").read_text())))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    for shown in ("80.0 ± 2.0", "26.0 ± 2.2 ≈", "10.0 ± 1.5 ↓", "82%", "749M", "2.431", "0.6010", "131"):
        assert shown in text
    assert max(map(len, text.splitlines())) <= 80


def test_other_text_stands_beside_the_text_where_a_model_has_it(fake_run: Callable[..., Path]) -> None:
    run = fake_run()
    path = run / "eval" / "student.json"

    def shown() -> tuple[str, str, str, dict[str, Any]]:
        _, parser = parse(run)
        console, report = Console(file=io.StringIO(), width=80), json.loads((run / "report.json").read_text())
        console.print(summary(report))
        assert isinstance(console.file, io.StringIO)
        return console.file.getvalue(), (run / "report.md").read_text(), parser.text, report

    assert not any("other text" in text.lower() for text in shown()[:3])
    record = json.loads(path.read_text())
    record["other_text"] = {
        "source": HOSTILE,
        "heldout": {"loss_nats": 3.1234, "loss_nats_stderr": 0.0261, "tokens": 77, "documents": 9},
        "fidelity": {"kl_nats": 0.70123, "kl_nats_stderr": 0.0321, "top1_agreement": 0.625},
    }
    path.write_text(json.dumps(record))
    terminal, markdown, page, report = shown()
    assert report["student"]["other_text"] == record["other_text"]
    assert re.search(r"loss, other text +– +– +3\.123 ± 0\.026 *\n", terminal)
    assert re.search(r"KL, other text +– +– +0\.7012 ± 0\.0321 *\n", terminal)
    assert "| healed, other text | 3.123 ± 0.026 | – | – | 77 | 9 |" in markdown
    assert "| healed, other text | 0.7012 ± 0.0321 | – | 62.5 | – | – | – | – | – |" in markdown
    assert "The other text is \\<script\\>" in markdown
    assert page.count(f"The other text is {HOSTILE}.") == 2


def test_ticks_are_round_and_inside() -> None:
    assert svg.Scale(0.0, 1.0, 0, 1).ticks(5) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert svg.Scale(0.7, 23.0, 0, 1, log=True).ticks() == pytest.approx([1, 2, 5, 10, 20])
    assert svg.Scale(2.0, 2.0, 0, 10)(2.0) == 0


def test_labels_are_spread_apart_inside_their_range() -> None:
    placed = svg.spread([10.0, 11.0, 50.0, 99.0], 16, 0, 100)
    assert placed == [10.0, 26.0, 50.0, 99.0]
    crowded = svg.spread([97.0, 98.0, 99.0], 16, 0, 100)
    assert crowded == [68.0, 84.0, 100.0]


def test_markdown_shows_text_as_it_is() -> None:
    from markdown_it import MarkdownIt

    from compress.report.pages.markdown import plain

    for text in (HOSTILE, "a_b_c _d_ [x](y) [z]: w ![i](j) **b** `c` # h \\ &amp; agieval_en 87% [84, 90]", "__init__"):
        inline = MarkdownIt("gfm-like", {"linkify": False}).parseInline(plain(text))[0].children or []
        assert "".join(token.content for token in inline) == text
        assert {token.type for token in inline} <= {"text", "text_special"}
    assert plain("agieval_en 87% [84, 90]") == "agieval_en 87% [84, 90]"
