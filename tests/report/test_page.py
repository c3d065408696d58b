"""The page in a real browser: headless Chromium, at the width of a desktop and of a phone."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from heft_pipeline.report import write_report
from tests.report.made_sweeps import make_sweep

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")

#: Reports into the page what a reader would see: the widths, images without a picture, and
#: elements that reach past the right edge.
LOOK = """
<script>addEventListener("load", () => {
  const wide = document.documentElement.clientWidth;
  const past = [...document.body.querySelectorAll("*")].filter(
    e => e.getBoundingClientRect().right > wide + 1 && getComputedStyle(e).display !== "none");
  const clipped = [...document.querySelectorAll("td, th, dd, pre")].filter(
    e => e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).display !== "none");
  parent.postMessage(JSON.stringify({
    wide, scroll: document.documentElement.scrollWidth,
    images: document.images.length,
    broken: [...document.images].filter(i => !i.complete || i.naturalWidth < 50).map(i => i.alt),
    past: past.map(e => e.outerHTML.slice(0, 120)),
    clipped: clipped.map(e => e.outerHTML.slice(0, 120)),
    small: [...document.querySelectorAll("p, td, li, dd")].filter(
      e => parseFloat(getComputedStyle(e).fontSize) < 11).length,
    head: getComputedStyle(document.querySelector("thead")).display,
  }), "*");
});</script>
"""
#: Chromium's window is never as narrow as a phone; a frame is.
FRAME = """<!doctype html><body><pre id="told"></pre><script>
addEventListener("message", e => { document.getElementById("told").textContent = e.data; });
</script><iframe src="SOURCE" style="border:0;width:WIDTHpx;height:900px"></iframe></body>"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    runs = [
        (f"method={method} epochs={epochs} rank={rank} seed={seed}", accuracy)
        for method, accuracy in (("lora", 0.7), ("reft", 0.6), ("heft", 0.71))
        for epochs in (3, 20)
        for rank in (8, 16)
        for seed in (0, 1)
    ]
    long = "data.prompt='{passage}\\nQuestion: {question}? " + "x" * 300 + "\\nAnswer:'"
    sweep = make_sweep(folder, [*runs, ("method=lora lora.learning_rate=0.01", 0.5)], extra=[long])
    write_report([sweep], folder)
    return folder / "report.html"


def look(page: Path, width: int, script: str = LOOK) -> dict[str, Any]:
    seen = page.with_name(f"seen{width}.html")
    (text,) = re.findall(r"<script>(.*)</script>", script, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    allowed = page.read_text().replace("script-src ", f"script-src 'sha256-{digest}' ")
    seen.write_text(allowed.replace("</body>", f"{script}</body>"))
    frame = page.with_name(f"frame{width}.html")
    frame.write_text(FRAME.replace("SOURCE", seen.name).replace("WIDTH", str(width)))
    done = subprocess.run(
        [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom",
         "--hide-scrollbars", f"--user-data-dir={page.parent / 'profile'}",
         "--window-size=1400,1000", "--virtual-time-budget=5000", frame.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    told = re.search(r'<pre id="told">(.*?)</pre>', done.stdout, re.DOTALL)
    assert told, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(unescape(told.group(1)))
    return found


#: Sorts the page as a reader would, and tells what came of it.
SORT = """
<script>addEventListener("load", () => {
  const table = document.querySelector("table.comparison"), told = {};
  const heads = [...table.tHead.rows[0].cells], names = heads.map(h => h.textContent);
  const rows = table.tBodies[0].rows;
  const cells = name => [...rows].map(r => r.cells[names.indexOf(name)].textContent);
  const press = name => heads[names.indexOf(name)].querySelector("button").click();
  told.first = cells("method");
  told.keys = heads.every(h => h.querySelector("button").tabIndex === 0);
  for (const name of names) {
    press(name); told[name] = cells(name);
    const up = heads[names.indexOf(name)].getAttribute("aria-sort");
    press(name); told["down " + name] = cells(name);
    told["aria " + name] = [up, heads[names.indexOf(name)].getAttribute("aria-sort"),
      heads.filter(h => h.hasAttribute("aria-sort")).length];
  }
  const list = document.querySelector(".sorter select");
  told.list = getComputedStyle(document.querySelector(".sorter")).display;
  const choose = value => { list.value = value; list.dispatchEvent(new Event("change")); };
  choose(names.indexOf("accuracy")); told.chosen = cells("accuracy");
  document.querySelector(".sorter button").click(); told.turned = cells("accuracy");
  choose(-1); told.restored = cells("method");
  parent.postMessage(JSON.stringify(told), "*");
});</script>
"""


@pytest.mark.parametrize(("width", "listed"), [(1280, "none"), (390, "block")])
def test_the_comparison_sorts_by_each_heading(width: int, listed: str, tmp_path: Path) -> None:
    runs = [("method=lora epochs=20", 0.7), ("method=lora epochs=3", 0.6)]
    runs += [("method=heft epochs=3", 0.64), ("method=reft epochs=100 rank=16", 0.55)]
    sweep = make_sweep(tmp_path, [*runs, ("method=lora epochs=4", 0.6)], cost=50.0)
    unfinished = sweep.plan()["runs"][-1]["stages"][-1]
    (sweep.store.folder(unfinished) / "result.json").unlink()
    write_report([sweep], tmp_path)
    page = tmp_path / "report.html"
    seen = look(page, width, SORT)
    top = [
        "always \N{LEFT DOUBLE QUOTATION MARK}true\N{RIGHT DOUBLE QUOTATION MARK}",
        "untouched model",
    ]
    assert seen["first"] == [*top, "lora", "lora", "heft", "reft", "lora"]
    assert seen["keys"], "a heading can be reached and pressed with the keyboard"
    assert seen["method"] == [*top, "heft", "lora", "lora", "lora", "reft"]
    assert seen["epochs"][2:] == ["3", "3 (6)", "4", "20", "100"]
    assert seen["down epochs"][2:] == ["100", "20", "4", "3 (6)", "3"]
    assert seen["accuracy"][2:] == ["55.0%", "60.0%", "64.0%", "70.0%", "incomplete"]
    assert seen["train seconds"][2:] == ["300.0", "600.0", "2,000.0", "10,000.0", ""]
    assert seen["aria accuracy"] == ["ascending", "descending", 1]
    assert seen["list"] == listed, "a phone has no headings to press"
    assert seen["chosen"] == seen["accuracy"]
    assert seen["turned"] == seen["down accuracy"]
    assert seen["restored"] == seen["first"]


@pytest.mark.parametrize(("width", "head"), [(1280, "table-header-group"), (390, "none")])
def test_nothing_overflows_and_every_image_is_there(page: Path, width: int, head: str) -> None:
    seen = look(page, width)
    assert seen["wide"] == width
    assert seen["scroll"] <= width
    assert seen["past"] == []
    assert seen["clipped"] == []
    assert seen["images"] == 8
    assert seen["broken"] == []
    assert seen["small"] == 0
    assert seen["head"] == head, "a phone shows each row as a card"


def test_the_page_prints(page: Path) -> None:
    printed = page.with_name("page.pdf")
    subprocess.run(
        [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu",
         f"--user-data-dir={page.parent / 'profile'}", f"--print-to-pdf={printed}", page.as_uri()],
        capture_output=True, timeout=120, check=True,
    )  # fmt: skip
    assert printed.read_bytes()[:5] == b"%PDF-"
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", printed.read_bytes())) <= 12
