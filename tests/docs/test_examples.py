"""The examples run, and the files that others read about the project are what they should be."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.docs.pages import ROOT, blocks
from tests.docs.quick import FEW

EXAMPLES = ROOT / "examples"


def environment() -> dict[str, str]:
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": ":".join(paths), "OMP_NUM_THREADS": "1"}


def test_the_folder_for_an_own_task_answers_its_claims(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "heft_pipeline", "-m", "--config-dir", "examples/own_task",
         "+experiment=whereabouts", "seed=0", "epochs=1", *FEW,
         "hydra.sweeper.points=['method=lora,heft']",
         "report.claims=['heft@1 > lora@1']", "sweep=own", f"output_dir={tmp_path}"],
        cwd=ROOT, env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "heft@1 > lora@1: this run" in done.stdout
    assert "tiny on whereabouts: 24 examples" in done.stdout
    assert (tmp_path / "sweeps/own/report.html").is_file()


def test_the_tutorial_makes_the_folder_for_an_own_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = {block.file: block.text for block in blocks(ROOT / "docs/tutorial.md") if block.file}
    exec(compile(made["write_rows.py"], "write_rows.py", "exec"), {})
    for split in ("train", "test"):
        rows = (tmp_path / f"rows/{split}.jsonl").read_text()
        assert rows == (EXAMPLES / f"own_task/rows/{split}.jsonl").read_text()
    for name, there in {
        "my_conf/data/whereabouts.yaml": "data/whereabouts.yaml",
        "my_conf/experiment/whereabouts.yaml": "experiment/whereabouts.yaml",
    }.items():
        shipped = yaml.safe_load((EXAMPLES / "own_task" / there).read_text())
        assert yaml.safe_load(made[name]) | {"path": 0} == shipped | {"path": 0}


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(EXAMPLES / "compare.ipynb", as_version=4)
    quick = {"epochs": "1", "seed": "0"} | dict(word.split("=") for word in FEW)
    (at,) = [n for n, cell in enumerate(notebook.cells) if cell.source.startswith("from pathlib")]
    source = notebook.cells[at].source.replace("Path.cwd()", f"Path({str(ROOT)!r})")
    notebook.cells[at].source = f"{source}\nsettings |= {quick!r}"
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    where = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=where).execute()
    shown = [str(out.get("data", "")) for cell in notebook.cells for out in cell.get("outputs", [])]
    assert any("heft@1 > lora@1" in one for one in shown)
    assert any("image/png" in one for one in shown)


def test_the_notebook_is_kept_without_outputs() -> None:
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(EXAMPLES / "compare.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert not [cell for cell in notebook.cells if cell.get("outputs")]


def test_the_readme_begins_with_what_a_newcomer_needs() -> None:
    text = (ROOT / "README.md").read_text()
    lines = text.splitlines()
    assert len(lines) < 150
    assert any("epochs=3,20" in line for line in lines[:14])
    assert any(line.startswith("<img") for line in lines[:18])


def test_the_citation_has_what_the_format_asks_for() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= set(cited)
    known = {"name", "family-names", "given-names"}
    for author in [*cited["authors"], *(one for r in cited["references"] for one in r["authors"])]:
        assert known & set(author)
    project = (ROOT / "pyproject.toml").read_text()
    assert f'license = "{cited["license"]}"' in project
    (paper,) = cited["references"]
    assert {"type", "title", "authors"} <= set(paper)
    assert "2509.09801" in paper["url"]


def test_the_newest_version_stands_in_the_changes() -> None:
    (version,) = re.findall(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.M)
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"]
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert headings[0] == "Unreleased"
    assert headings[1] == version == str(cited)


@pytest.mark.parametrize(
    "file",
    [".pre-commit-config.yaml", *(f".github/{name}" for name in (
        "workflows/ci.yml", "ISSUE_TEMPLATE/bug.yml", "ISSUE_TEMPLATE/idea.yml",
        "ISSUE_TEMPLATE/config.yml"))],
)  # fmt: skip
def test_a_file_for_the_code_host_can_be_read(file: str) -> None:
    assert isinstance(yaml.safe_load((ROOT / file).read_text()), dict)


def test_the_hooks_before_a_commit_fetch_nothing() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert [one["repo"] for one in hooks["repos"]] == ["local"]
    assert {hook["language"] for one in hooks["repos"] for hook in one["hooks"]} == {"system"}


def test_the_workflow_runs_what_is_run_by_hand() -> None:
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    run = " ".join(step.get("run", "") for step in jobs["tests"]["steps"])
    assert ".ci/run" in run and os.access(ROOT / ".ci/run", os.X_OK)
    assert jobs["wheel"]["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13"]


def test_every_page_is_on_the_site_but_those_that_are_not_pages() -> None:
    site = (ROOT / "mkdocs.yml").read_text()
    listed = set(re.findall(r": (\w+\.md)", site))
    here = {page.name for page in (ROOT / "docs").glob("*.md")}
    made = {"index.md", "benchmarks.md", "examples.md", "contributing.md", "changelog.md"}
    assert listed - here == made
    assert not here - listed, "add it to nav in mkdocs.yml"
