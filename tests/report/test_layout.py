"""Pages in a browser, 1200 and 400 pixels wide: nothing is cut, nothing overlaps, all of it can be read."""

from collections.abc import Callable
from pathlib import Path

import pytest
from browser import laid_out, needs_browser
from page_world import compare_page, report_page, sweep_page

from compress.report.pages import svg
from compress.report.pages.layout import page

pytestmark = needs_browser()
WIDTHS = (1200, 400)


@pytest.mark.parametrize("make", [sweep_page, compare_page, report_page])
def test_pages_are_whole_and_legible(make: Callable[[Path], Path], tmp_path: Path) -> None:
    made = make(tmp_path / "page")
    for width in WIDTHS:
        found = laid_out(made, width)
        assert found["lines"] > 100
        assert found["faults"] == [], width


SOUND = "<p>sound words</p>" + svg.figure(400, 50, "a figure", svg.text(10, 20, "inside"))
PLANTED = {
    "cut": '<div style="width:80px;overflow:hidden;white-space:nowrap">a line that is cut</div>',
    "outside the window": '<div style="margin-left:-200px">at the left</div>',
    "too small": '<p style="font-size:8px">small print</p>',
    "overlap": '<p>covered words</p><p style="margin-top:-42px">over them</p>',
    "outside its picture": svg.figure(960, 50, "a figure", svg.text(900, 20, "at the edge")),
    "wider than the window": '<div style="width:1300px;height:1px"></div>',
}


def test_each_fault_is_found_where_it_is_planted(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(page("planted", [SOUND, *PLANTED.values()]))
    faults = laid_out(tmp_path / "page.html", 1200)["faults"]
    assert sorted(kind for kind, *_ in faults) == sorted(PLANTED)
    assert all(kind == "wider than the window" or said in PLANTED[kind] for kind, said, *_ in faults)
    (tmp_path / "page.html").write_text(page("sound", [SOUND]))
    assert laid_out(tmp_path / "page.html", 1200) == {"width": 1200, "lines": 2, "faults": []}


def test_a_picture_that_is_shrunk_has_small_words(tmp_path: Path) -> None:
    wide = svg.figure(960, 50, "a figure", svg.text(10, 20, "words"))
    (tmp_path / "page.html").write_text(page("shrunk", [wide]))
    assert laid_out(tmp_path / "page.html", 1200)["faults"] == []
    assert [fault[:2] for fault in laid_out(tmp_path / "page.html", 400)["faults"]] == [["too small", "words"]]
