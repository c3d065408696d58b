"""A report shows as text whatever names, labels and rows say, and no spreadsheet computes it."""

import csv
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest

from heft_pipeline.files.json_files import write_json
from heft_pipeline.report import write_report
from heft_pipeline.report.markdown_text import block, code, escape
from heft_pipeline.report.spreadsheet import csv_text
from tests.report.made_sweeps import make_sweep
from tests.report.test_page import CHROMIUM, look
from tests.security.hostile import ORDERS, SCRIPT

TEX = r"\input{/etc/passwd}\write18{touch owned} 50% #1 a_b {x} $x^2$ [2pt] ~"
LINK = "[here](javascript:alert(1)) ![](https://evil.example/x.png) `code` | cell \n# heading"
EVIL = f"{SCRIPT} {TEX} {LINK} =HYPERLINK(1)"
#: What the page holds after it was opened and read.
SEEN = """
<script>addEventListener("load", () => setTimeout(() => parent.postMessage(JSON.stringify({
  title: document.title, text: document.body.innerText,
  scripts: document.querySelectorAll("script").length,
  images: [...document.images].map(i => [i.src.slice(0, 22), i.complete && i.naturalWidth > 50]),
  links: [...document.querySelectorAll("a")].map(a => a.href.slice(0, 13)),
  handlers: [...document.querySelectorAll("*")].filter(
    e => [...e.attributes].some(a => a.name.startsWith("on"))).length,
  fetched: performance.getEntriesByType("resource").map(e => e.name).filter(
    n => !n.startsWith("data:")),
}), "*"), 500));</script>
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a sweep in which all that comes from outside is hostile."""
    folder = tmp_path_factory.mktemp("hostile-report")
    data = _data(folder / "data")
    extra = [
        f"data.path={data}",
        f"data.name={_quoted(EVIL + ORDERS)}",
        f"model.name={_quoted('=1+1 ' + EVIL)}",
        f"data.prompt={_quoted('{passage} ' + EVIL + ' {question}')}",
    ]
    runs = [
        (f"method={method} seed={seed}", accuracy)
        for method, accuracy in (("lora", 0.7), ("heft", 0.6))
        for seed in (0, 1)
    ]
    runs.append(("method=lora lora.learning_rate=0.01", 0.5))
    sweep = make_sweep(folder, [*runs, ("method=reft", 0.5)], extra=extra, name="-m <b>")
    plan = sweep.plan()
    plan["command"] = f"python -m heft_pipeline {EVIL} ```"
    plan["runs"][-1]["name"] = re.sub(r"[/\\]", "|", EVIL)
    write_json(sweep.folder / "plan.json", plan)
    last = plan["runs"][-1]["stages"][-1]
    (sweep.store.folder(last) / "result.json").unlink()
    sweep.store.fail(last, {"reason": f"{EVIL} {ORDERS}", "time": 0.0})
    out = folder / "report"
    write_report([sweep], out)
    return out


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _data(folder: Path) -> Path:
    """The demo's task with hostile passages, questions and ids that begin like formulas."""
    from tests.report.made_sweeps import make_task

    make_task(folder, "task", 40)
    made = folder / "task"
    for file in made.iterdir():
        rows = pd.read_json(file, lines=True)
        for column in rows.columns:
            if column not in ("answer", "task"):
                rows[column] = [f"{EVIL} {ORDERS} {text}" for text in rows[column]]
        rows.to_json(file, orient="records", lines=True)
    return made


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_in_a_browser_no_script_runs_and_nothing_is_fetched(report: Path) -> None:
    seen = look(report / "report.html", 1200, SEEN)
    assert "owned" not in seen["title"]
    assert "<script>document.title='owned'</script>" in seen["text"], "markup is shown as text"
    assert seen["scripts"] == 2, "the page's own and this test's"
    assert seen["handlers"] == 0
    assert seen["images"]
    assert all(start == "data:image/svg+xml;bas" and whole for start, whole in seen["images"])
    assert set(seen["links"]) == {"data:text/csv"}
    assert seen["fetched"] == []


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_the_policy_stops_a_script_and_an_image_that_got_in(report: Path) -> None:
    page = report / "report.html"
    bad = page.with_name("bad.html")
    got_in = f'{SCRIPT}<img src="https://evil.example/x.png"><script src="x.js"></script>'
    bad.write_text(page.read_text().replace("<h1>", f"{got_in}<h1>", 1))
    seen = look(bad, 1200, SEEN)
    assert seen["scripts"] == 4
    assert "owned" not in seen["title"]


def test_the_page_forbids_everything_but_itself(report: Path) -> None:
    class Policy(HTMLParser):
        found = ""

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            given = dict(attrs)
            if tag == "meta" and given.get("http-equiv") == "Content-Security-Policy":
                Policy.found = given["content"] or ""

    Policy().feed((report / "report.html").read_text())
    rules = dict(rule.split(None, 1) for rule in Policy.found.split("; "))
    assert rules["default-src"] == "'none'"
    assert re.fullmatch(r"'sha256-[\w+/=]{44}'", rules["script-src"])
    assert rules["img-src"] == "data:"
    assert rules["style-src"] == "'unsafe-inline'"


def test_figures_are_drawings_without_scripts_or_links(report: Path) -> None:
    drawings = sorted((report / "figures").glob("*.svg"))
    assert drawings
    for drawing in drawings:
        root = ElementTree.fromstring(drawing.read_text())
        for element in root.iter():
            assert element.tag.rpartition("}")[2] not in ("script", "a", "foreignObject")
            for name, value in element.attrib.items():
                assert not name.startswith("on")
                if name.endswith("href"):
                    assert value.startswith(("#", "data:image/png;base64,"))


def test_markdown_has_no_html_link_or_table_from_outside(report: Path) -> None:
    text = (report / "report.md").read_text()
    shown = r"^(`{3,}).*?^\1$|(?<!`)(`+)(?!`).*?(?<!`)\2(?!`)|^ {6}.*?$"  # as code
    outside_code = re.sub(shown, "", text, flags=re.MULTILINE | re.DOTALL)
    assert not re.search(r"(?<!\\)<\s*(script|img)", outside_code)
    assert not re.search(r"(?<!\\)\]\((javascript|https?):", outside_code)
    assert not re.search(r"^# heading", outside_code, re.M)
    assert set(re.findall(r"(?<!\\)\]\(([^)]*)\)", outside_code)) <= {
        f"figures/{path.name}" for path in (report / "figures").iterdir()
    }
    tables = re.findall(r"(?m)(?:^\|.*\n\n?)+", outside_code)
    assert tables
    for table in tables:
        rows = [line for line in table.splitlines() if line]
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1
    assert "\x1b" not in text


def test_markdown_of_text() -> None:
    assert escape("heft@3 > lora@20, a_b: 61.1% (3)") == "heft@3 > lora@20, a_b: 61.1% (3)"
    assert escape("# x\n<b>") == r"\# x \<b>"
    assert code("a`b") == "``a`b``"
    assert code("`a`") == "`` `a` ``"
    assert block("```\nx", "bash") == "````bash\n```\nx\n````"


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_is_compiled_and_does_what_it_shows(report: Path, tmp_path: Path) -> None:
    text = (report / "report.tex").read_text()
    assert not re.search(r"(?<!%)\\(input|write)\b", re.sub(r"(?m)^%.*$", "", text))
    # Letters that pdflatex has no signs for are not the subject.
    plain = text.encode("ascii", "replace").decode()
    document = (
        "\\documentclass{article}\\usepackage{booktabs,amssymb,graphicx}\\begin{document}\n"
        f"{plain}\\end{{document}}\n"
    )
    (tmp_path / "paper.tex").write_text(document)
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-1500:]
    assert not (tmp_path / "owned").exists()
    assert "root:" not in (tmp_path / "paper.log").read_text(errors="replace")


def test_a_spreadsheet_finds_no_formula(report: Path) -> None:
    files = [report / "results.csv", *(report / "figures").glob("*.csv")]
    cells = [cell for file in files for row in csv.reader(file.open(newline="")) for cell in row]
    assert any(cell.startswith("'=1+1") for cell in cells)
    for cell in cells:
        if re.match(r"\s*[=+\-@\t\r]", cell):
            float(cell)  # a number


def test_only_text_is_marked_and_numbers_stay() -> None:
    table = pd.DataFrame(
        {
            "=head": ["=1", "+1+1", "-1-1", "@x", "\tx", "\rx", " =x", "\uff1dx", "-5", "x", None],
            "number": [-1.5, *[2.0] * 10],
            "whole": pd.array([-3, *[None] * 10], dtype="Int64"),
        }
    )
    rows = list(csv.reader(csv_text(table).splitlines()))
    assert rows[0] == ["'=head", "number", "whole"]
    texts = [row[0] for row in rows[1:]]
    assert texts == [
        "'=1",
        "'+1+1",
        "'-1-1",
        "'@x",
        "'\tx",
        "␍x",
        "' =x",
        "'\uff1dx",
        "-5",
        "x",
        "",
    ]
    assert rows[1][1:] == ["-1.5", "-3"]


def test_nothing_else_writes_a_csv_file() -> None:
    root = Path(__file__).parents[2]
    # The sizes of edits, by layer and position: no text from outside, and read again.
    own = {"heft_pipeline/report/spreadsheet.py", "heft_pipeline/stage/outputs.py"}
    found = {
        str(path.relative_to(root))
        for folder in ("heft_pipeline", "launch", "hydra_plugins")
        for path in (root / folder).rglob("*.py")
        if re.search(r"\.to_csv\(|csv\.writer|csv\.DictWriter", path.read_text())
    }
    assert found == own
