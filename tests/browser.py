"""A page as a browser lays it out: what is cut, what overlaps, what is too small to read (headless Chromium)."""

import base64
import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
)  # fmt: skip
SMALLEST_PX = 9

# Text is measured line by line, as ranges: an element's box says nothing of where its words are. What scrolls is there
# to be scrolled, so only what lies beyond all that can be scrolled to is cut.
MEASURE = """
const smallest = SMALLEST, faults = [], lines = [], range = document.createRange();
const seen = (node) => node.checkVisibility({checkOpacity: true, checkVisibilityCSS: true});
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
const root = document.documentElement;
if (root.scrollWidth > root.clientWidth) faults.push(['wider than the window', root.scrollWidth + ' px']);
for (const details of document.querySelectorAll('details')) details.open = true;
while (walker.nextNode()) {
  const node = walker.currentNode, owner = node.parentElement, said = node.data.trim().slice(0, 60);
  if (!said || owner.closest('style, script, title') || !seen(owner)) continue;
  range.selectNodeContents(node);
  const svg = owner.closest('svg'), boxes = [...range.getClientRects()].filter(b => b.width > 0.5 && b.height > 0.5);
  const scale = svg && svg.viewBox.baseVal.width ? svg.getBoundingClientRect().width / svg.viewBox.baseVal.width : 1;
  const size = parseFloat(getComputedStyle(owner).fontSize) * scale;
  if (size < smallest) faults.push(['too small', said, size.toFixed(1) + ' px']);
  for (const box of boxes) {
    lines.push({said, box, size, node});
    if (svg) {
      const frame = svg.getBoundingClientRect();
      if (box.left < frame.left - 1 || box.right > frame.right + 1 || box.top < frame.top - 1 ||
          box.bottom > frame.bottom + size / 3) faults.push(['outside its picture', said]);
    }
    let scrolls = false;
    for (let up = svg ? svg.parentElement : owner; up && up !== root; up = up.parentElement) {
      const style = getComputedStyle(up), frame = up.getBoundingClientRect();
      if (['auto', 'scroll'].includes(style.overflowX)) scrolls = true;
      if (['hidden', 'clip'].includes(style.overflowX) && (box.right > frame.right + 1 || box.left < frame.left - 1))
        faults.push(['cut', said]);
    }
    if (!scrolls && (box.right > root.clientWidth + 1 || box.left < -1)) faults.push(['outside the window', said]);
  }
}
// Glyphs fill the middle of their line: what meets only in the room above and below them does not overlap.
const ink = (line) => { const middle = (line.box.top + line.box.bottom) / 2, half = 0.36 * line.size;
  return {left: line.box.left + 0.5, right: line.box.right - 0.5, top: middle - half, bottom: middle + half}; };
const inks = lines.map(ink), order = [...inks.keys()].sort((a, b) => inks[a].top - inks[b].top);
order.forEach((i, place) => {
  for (const j of order.slice(place + 1)) {
    const one = inks[i], two = inks[j];
    if (two.top >= one.bottom) break;
    if (lines[i].node !== lines[j].node && one.left < two.right && two.left < one.right)
      faults.push(['overlap', lines[i].said, lines[j].said]);
  }
});
const found = JSON.stringify({width: innerWidth, lines: lines.length, faults});
parent.postMessage(btoa(unescape(encodeURIComponent(found))), '*');
"""


def needs_browser() -> pytest.MarkDecorator:
    """Skips a test where there is no Chromium."""
    return pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: pages are not laid out")


def laid_out(page: Path, width: int) -> dict[str, Any]:
    """What Chromium found of a page in a window so wide: `lines` of text, and `faults`, each [kind, text, ...].

    Chromium's own windows are no narrower than 500 px, so the page is shown in a frame of its width.
    """
    measure = MEASURE.replace("SMALLEST", str(SMALLEST_PX))
    script = f"<script>addEventListener('load', () => {{ {measure} }});</script>"
    body = page.read_text().replace("</body>", f"{script}</body>")
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "page.html").write_text(body)
        listen = "addEventListener('message', (event) => { document.body.append('MEASURED:' + event.data + ':'); });"
        frame = f'<iframe src="page.html" style="border:0;width:{width}px;height:3000px"></iframe>'
        shell = Path(scratch) / "shell.html"
        shell.write_text(f"<!doctype html><body style='margin:0'><script>{listen}</script>{frame}</body>")
        dom = chromium(shell, scratch, "--virtual-time-budget=20000", "--dump-dom")
    found = re.search(r"MEASURED:([A-Za-z0-9+/=]+):", dom)
    assert found, dom[-2000:]
    measured: dict[str, Any] = json.loads(base64.b64decode(found[1]))
    assert measured["width"] == width
    return measured


def chromium(page: Path, scratch: str, *arguments: str) -> str:
    """What Chromium prints of a page, with a profile of its own."""
    assert CHROMIUM is not None
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={scratch}/profile", *arguments, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
