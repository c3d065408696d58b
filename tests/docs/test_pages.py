"""Everything that the README and docs/ say to type is typed here."""

import contextlib
import json
import logging
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import write_rows
from tests.data.prepared_tasks import PREPARED, write_task
from tests.docs.pages import PAGES, ROOT, Block, blocks
from tests.docs.quick import FEW, NOT_RUN, Stand

#: The languages of blocks; a block without one is what a command prints.
LANGUAGES = {"bash", "python", "yaml", "json", "diff", "text", ""}
#: Pages whose sweeps are trained and not only planned.
TRAINED = {"README.md", "tutorial.md", "extending.md"}
_LONGER_THAN_SECONDS = 300


def names() -> list[str]:
    return [str(page.relative_to(ROOT)) for page in PAGES]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with two sweeps, ``one`` and ``two``, of the shipped model."""
    folder = tmp_path_factory.mktemp("finished")
    with contextlib.chdir(folder):
        for sweep, methods in (("two", "lora"), ("one", "lora,heft")):
            called("heft_pipeline", ["-m", f"method={methods}", "epochs=1", f"sweep={sweep}", *FEW])
    return folder / "outputs"


@pytest.fixture(scope="module")
def stand(outputs: Path, small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Stand:
    tasks = tmp_path_factory.mktemp("tasks")
    for task in PREPARED:
        write_task(tasks, task, copies=4)
    nli = [{"premise": f"w{n}", "hypothesis": "w1", "label": f"{n % 3}"} for n in range(60)]
    write_rows(tasks / "mytask" / "train.jsonl", nli[:30])
    write_rows(tasks / "mytask" / "test.jsonl", nli[30:])
    plan = json.loads((outputs / "sweeps/one/plan.json").read_text())
    last = next(run["stages"] for run in plan["runs"] if len(run["stages"]) == 2)
    return Stand(small_model, tasks, (last[1][:8], last[0][:8]))


@pytest.fixture
def work(outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with the store's folder in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    shutil.copytree(outputs, tmp_path / "outputs")
    for folder in ("docs", "examples"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    return tmp_path


def called(module: str, arguments: list[str]) -> int:
    """Run ``python -m MODULE ARGUMENTS`` in this process; returns the exit status."""
    root, argv = logging.getLogger(), sys.argv
    before, sys.argv = list(root.handlers), [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__")
    except SystemExit as ended:
        return int(ended.code or 0)
    finally:
        sys.argv = argv
        for handler in [one for one in root.handlers if one not in before]:
            root.removeHandler(handler)
    return 0


class Typist:
    """Follows a page literally, in an empty folder.

    Args:
        page: The page.
        work: The folder.
        stand: What stands in for what a reader has.
        read: Returns what has been printed since it was called last.
    """

    def __init__(self, page: Path, work: Path, stand: Stand, read: Callable[[], Any]) -> None:
        self.page, self.work, self.stand, self._read = page, work, stand, read
        self._own = False  # whether the folder has a changed copy of the project
        self._environment = dict(os.environ)

    def follow(self, block: Block) -> None:
        """Do what a block says; nothing if it is what a command prints."""
        assert block.language in LANGUAGES, f"{block.where}: a block of {block.language}"
        if block.language == "bash":
            for command in block.commands():
                if command not in NOT_RUN and "..." not in command.replace("STAGE...", ""):
                    self._command(command, block.where)
        elif block.language == "diff":
            self._copy_project()
            done = subprocess.run(["git", "apply", "-"], input=block.text, text=True,
                                  cwd=self.work, capture_output=True, check=False)  # fmt: skip
            assert done.returncode == 0, f"{block.where}: {done.stderr}"
        elif block.language == "json":
            json.loads(block.text)
        elif block.language == "yaml":
            self._yaml(block)
        elif block.language == "python":
            self._python(block)

    def _python(self, block: Block) -> None:
        if block.file:
            self._save(block)
            compile(block.text, block.file, "exec")
        else:
            exec(compile(self.stand.in_place(block.text), block.where, "exec"), {})

    def _yaml(self, block: Block) -> None:
        assert block.file, f"{block.where}: the first line does not say where to save it"
        shipped = ROOT / block.file
        if shipped.exists():
            parts, whole = yaml.safe_load(block.text), yaml.safe_load(shipped.read_text())
            assert parts.items() <= whole.items(), f"{block.where}: {block.file} says otherwise"
            return
        self._save(block)
        folder, group, name = Path(block.file).parts[-3:]
        chosen = f"{'+' if group == 'experiment' else ''}{group}={Path(name).stem}"
        self._run(f"python -m heft_pipeline --config-dir {folder} {chosen} --cfg job", block.where)

    def _save(self, block: Block) -> None:
        if block.file.startswith("heft_pipeline/"):
            self._copy_project()
        file = self.work / block.file
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(block.text)

    def _copy_project(self) -> None:
        if not self._own:
            self._own = True
            for folder in ("heft_pipeline", "launch", "hydra_plugins", "conf"):
                shutil.copytree(ROOT / folder, self.work / folder, dirs_exist_ok=True)
            (self.work / "docs").unlink()
            (self.work / "docs").mkdir()
            self._environment["PYTHONPATH"] = str(self.work)

    def _command(self, command: str, where: str) -> None:
        command = self.stand.in_place(PREPARE.get(command, command))
        if set_ := re.fullmatch(r"export PYTHONPATH=\$PWD/(\w+)", command):
            self._own = True
            paths = [
                self.work / set_[1],
                *filter(None, [self._environment.get("PYTHONPATH")]),
                ROOT,
            ]
            self._environment["PYTHONPATH"] = ":".join(map(str, paths))
            return
        if re.match(r"(python -m heft_pipeline|heft)( -|$)", command) and "=" in command:
            here = self.page.name in TRAINED and "hydra/launcher=slurm" not in command
            command = self.stand.quick(command, train=here)
        self._run(command, where)

    def _run(self, command: str, where: str) -> None:
        command = re.sub(r"^heft ", "python -m heft_pipeline ", command)
        words = shlex.split(command)
        if words[:2] == ["python", "-m"] and ">" not in words and not self._own:
            status, said = called(words[2], words[3:]), self._read()
        else:
            done = subprocess.run(
                ["bash", "-c", f"set -e; {command}"], cwd=self.work, env=self._environment,
                capture_output=True, text=True, check=False, timeout=_LONGER_THAN_SECONDS,
            )  # fmt: skip
            status, said = done.returncode, (done.stdout, done.stderr)
        assert status == 0, f"{where}: {command}\n{said[0][-3000:]}\n{said[1][-3000:]}"
        assert "Traceback" not in said[0] + said[1], f"{where}: {command}\n{said}"


#: What a reader has to decide, or would be asked.
PREPARE = {
    **{
        said: said.replace("heft-6-", "heft-2-")
        for said in (
            "heft predict whereabouts/heft-6-r8-s0 --data rows/test.jsonl --to answers.jsonl",
            "heft evaluate whereabouts/heft-6-r8-s0 data=demo",
            "heft export whereabouts/heft-6-r8-s0 --to whereabouts-heft",
            "heft export whereabouts/heft-6-r8-s0 --to whereabouts-merged --merge",
            "heft push whereabouts/heft-6-r8-s0 OWNER/NAME --license apache-2.0 --dry-run shared",
        )
    },
    "heft predict demo-5-seeds/heft-3-r8-s0 --data rows.jsonl": (
        "heft predict demo-5-seeds/heft-1-r8-s0 --data rows.jsonl"
    ),
    "heft export demo-5-seeds/heft-3-r8-s0 --to merged --merge": (
        "heft export demo-5-seeds/heft-1-r8-s0 --to merged --merge"
    ),
    "heft evaluate ADAPTER data=piqa,boolq": "heft evaluate ADAPTER data=demo",
    "heft chat ADAPTER": "echo 'The lamp is' | heft chat ADAPTER --max-new-tokens 3",
    "heft doctor": "bash -c 'heft doctor || test $? = 1'",
    "python -m heft_pipeline.store gc OUTPUTS": (
        "python -m heft_pipeline.store gc OUTPUTS --dry-run"
    ),
    "python -m heft_pipeline.store rm OUTPUTS STAGE...": (
        "python -m heft_pipeline.store rm OUTPUTS STAGE --dry-run"
    ),
    "python -m heft_pipeline.store adopt OUTPUTS FOLDER KEY=VALUE...": (
        "python -m heft_pipeline.store adopt OUTPUTS my-lora method=lora epochs=2"
    ),
    "python -m heft_pipeline.store adopt outputs my-lora method=lora data=boolq model.id=ORG/NAME "
    "lora.rank=16 epochs=3": (
        "python -m heft_pipeline.store adopt outputs my-lora method=lora epochs=3"
    ),
    "python -m heft_pipeline.report ONE --claim 'heft@20 = lora@20 +- 1' --scope seeds --pointwise":
        "python -m heft_pipeline.report ONE --claim 'heft@1 = lora@1 +- 1' --pointwise",
    "python -m heft_pipeline.report whereabouts --claim 'heft@6 = lora@6 +- 1' "
    "--claim 'heft@3 > reft@6'":
        "python -m heft_pipeline.report whereabouts --claim 'heft@2 = lora@2 +- 1'",
}  # fmt: skip


@pytest.mark.parametrize("page", PAGES, ids=names())
def test_what_a_page_says_to_type_works(
    page: Path, work: Path, stand: Stand, capfd: pytest.CaptureFixture[str]
) -> None:
    lora = work / "outputs/stages"
    shutil.copytree(next(lora.glob(f"{stand.stages[1]}*")) / "adapter", work / "my-lora")
    for stage in (work / "outputs/stages").glob(f"{stand.stages[0]}*"):
        (stage / "stage.log").write_text("what a stage in a worker or a job wrote\n")
    row = {"passage": "The lamp is in Rome.", "question": "is the lamp in Rome"}
    write_rows(work / "rows.jsonl", [row] * 3)
    (work / "other.txt").write_text("The ball is in Paris. The drum is in Rome. " * 40)
    typist = Typist(page, work, stand, capfd.readouterr)
    for block in blocks(page):
        typist.follow(block)


def test_what_is_not_run_stands_on_a_page() -> None:
    said = {command for page in PAGES for block in blocks(page) if block.language == "bash"
            for command in block.commands()}  # fmt: skip
    assert not set(NOT_RUN) - said
    assert not set(PREPARE) - said


def test_a_block_that_does_not_work_is_seen(
    work: Path, stand: Stand, capfd: pytest.CaptureFixture[str]
) -> None:
    typist = Typist(ROOT / "docs/made.md", work, stand, capfd.readouterr)
    for language, text in [
        ("bash", "python -m heft_pipeline -m method=loar"),
        ("bash", "python -m heft_pipeline.no_such_module"),
        ("python", "import no_such_module"),
        ("json", "{"),
        ("yaml", "kind: answer"),
        ("yaml", "# conf/data/gsm8k.yaml\nkind: choice"),
        ("yaml", "# FOLDER/data/wrong.yaml\nno_such_setting: 1"),
        ("diff", "--- a/heft_pipeline/errors.py\n+++ b/heft_pipeline/errors.py\n@@ -1,1 +1,1 @@\n"
         "-no such line\n+another\n"),
        ("ruby", "puts 1"),
    ]:  # fmt: skip
        with pytest.raises((AssertionError, ImportError, ValueError)):
            typist.follow(Block("made:1", language, text))


def test_links_lead_to_what_is_there() -> None:
    broken = []
    for page in [*PAGES, *ROOT.glob("*.md"), *(ROOT / "examples").glob("*.md")]:
        text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
        for link in re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", text):
            link = "".join(link)
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            if "://" in link:
                continue
            if not target.exists() or (anchor and anchor not in anchors(target)):
                broken.append(f"{page.name}: {link}")
    assert not broken, "\n".join(broken)


def anchors(page: Path) -> set[str]:
    """The anchors that a code host makes of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in headings}
