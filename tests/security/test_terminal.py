"""What comes from outside is text on a terminal: it neither moves the cursor nor hides anything."""

import ast
import io
import json
import os
import pty
import re
import select
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from heft_pipeline.command_line.console import TextConsole
from heft_pipeline.command_line.printable import printable
from launch.progress import StageProgress
from tests.conftest import composed_run
from tests.security.hostile import MARKUP, ORDERS, hostile_data

LABEL = json.dumps(f"yes {ORDERS} {MARKUP}")
ROOT = Path(__file__).parents[2]
#: What rich writes to a terminal of its own accord: colours, and how a progress bar is redrawn.
_OWN = re.compile(r"\x1b\[(?:[\d;]*m|\?25[lh]|1A|2K)|\r")


def on_terminal(*command: str, size: int = 200) -> tuple[int, str]:
    """Run a command on a pseudo-terminal; its exit status and every byte that it wrote there."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": str(size), "LINES": "50"}
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT, env=environment,
        start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    seen = bytearray()

    def read() -> None:
        while True:
            try:
                select.select([ours], [], [])
                chunk = os.read(ours, 1 << 16)
            except OSError:  # the last process with the terminal has ended
                return
            if not chunk:
                return
            seen.extend(chunk)

    reader = threading.Thread(target=read)
    reader.start()
    status = process.wait(timeout=300)
    reader.join(timeout=30)
    os.close(ours)
    return status, seen.decode()


def refuse_orders(shown: str) -> None:
    left = _OWN.sub("", shown)
    found = re.search(r"[^\n\t\x20-\x7e\xa0-\u2027\u202f-\u2065\u206a-\uffff]", left)
    assert not found, left[max(0, found.start() - 100) : found.end() + 100]
    # Its letters may be there, but only as letters.
    assert "\x1b[8m" not in shown
    assert "\x1b]" not in shown


@pytest.fixture(scope="module")
def asked(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A sweep in which everything that can be named is hostile."""
    folder = tmp_path_factory.mktemp("terminal")
    text = f"{ORDERS} {MARKUP}"
    quoted = text.replace("'", "").replace("/", "|").replace("\n", " ")
    return [
        "heft_pipeline", "-m", "method=lora", "epochs=1", "rank=1", "sweep=s",
        *hostile_data(folder / "data", text),
        f"model.id={small_model}", "model.dtype=float32", "report.base_model=false",
        "data.prompt='{passage} Question: {question} Answer:'",
        f"'model.name=\"m{quoted}\"'"[1:-1], f"data.name='d{quoted}'",
        f"output_dir={folder / 'out'}", "report.forgetting=off",
    ]  # fmt: skip


def test_a_dry_run_a_sweep_its_status_and_its_report_show_text(asked: list[str]) -> None:
    status, shown = on_terminal(*asked, "hydra.launcher.dry_run=true")
    assert status == 0, shown[-3000:]
    assert "␛]0;owned␛[2J" in shown, "what the rows hold is shown, as signs"
    assert "[red]red[/red]" in shown
    refuse_orders(shown)

    status, shown = on_terminal(*asked)
    assert status == 0, shown[-3000:]
    assert "accuracy" in shown
    refuse_orders(shown)

    out = asked[-2].partition("=")[2]
    for command in (
        ["launch", "status", "s", "--output-dir", out],
        ["heft_pipeline.report", "s", "--output-dir", out],
    ):
        status, shown = on_terminal(*command)
        assert status == 0, shown[-3000:]
        refuse_orders(shown)


def test_a_failing_stage_and_its_log_show_text(asked: list[str]) -> None:
    out = Path(asked[-2].partition("=")[2]).with_name("failed")
    given = [word for word in asked if not word.startswith(("output_dir=", "rank="))]
    # The learning rate makes the loss overflow, and the failure names the stage.
    given += [f"output_dir={out}", "lora.learning_rate=1e30"]
    status, shown = on_terminal(*given)
    assert status == 1, shown[-3000:]
    assert "✗" in shown
    refuse_orders(shown)
    (stage,) = (path.parent.name for path in out.glob("stages/*/stage.log"))
    (out / "stages" / stage / "stage.log").open("a").write(f"a library says {ORDERS}\n")
    status, shown = on_terminal("launch", "logs", stage, "--output-dir", str(out))
    assert status == 0
    assert "a library says ␛]0;owned" in shown
    refuse_orders(shown)


@pytest.mark.parametrize(
    "command",
    [
        ["heft_pipeline", f"method={ORDERS}"],
        ["heft_pipeline", f"model.id=./{ORDERS}"],
        ["heft_pipeline", f"data.path=./{ORDERS}"],
        ["heft_pipeline.report", ORDERS],
        ["launch", "status", ORDERS],
        ["launch", "logs", ORDERS],
        ["heft_pipeline.use.export", ORDERS, "--to", "x"],
    ],
    ids=lambda command: command[0] + command[1][:8],
)
def test_messages_show_text(command: list[str]) -> None:
    status, shown = on_terminal(*command)
    assert status == 1
    assert "Error" in shown
    refuse_orders(shown)


def test_a_message_from_a_file_shows_text(small: list[str], tmp_path: Path) -> None:
    asked = [*small, *hostile_data(tmp_path / "data", ORDERS)]
    for file in (tmp_path / "data").iterdir():
        file.write_text(file.read_text().replace('"answer": true', '"answer": ' + LABEL))
    asked += [f"output_dir={tmp_path / 'out'}"]
    status, shown = on_terminal("heft_pipeline", *asked)
    assert status == 1
    assert "Error" in shown and "owned" in shown
    refuse_orders(shown)


def test_what_is_piped_on_is_text_as_well(small: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "heft_pipeline", f"model.id=./{ORDERS}", f"output_dir={tmp_path}"],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert "␛]0;owned" in done.stderr
    refuse_orders(done.stdout + done.stderr)


def test_a_console_shows_markup_as_text_wherever_a_string_is_given() -> None:
    from rich.table import Table
    from rich.tree import Tree

    written = io.StringIO()
    console = TextConsole(file=written, width=400, force_terminal=True)
    table = Table(title=MARKUP)
    table.add_column(MARKUP)
    table.add_row(f"{MARKUP}{ORDERS}")
    tree = Tree(MARKUP)
    tree.add(MARKUP)
    for shown in (MARKUP, table, tree):
        console.print(shown)
    assert written.getvalue().count("[/nothing] :warning:") == 5
    refuse_orders(written.getvalue())


def test_the_live_display_shows_markup_as_text() -> None:
    written = io.StringIO()
    console = TextConsole(file=written, width=400, force_terminal=True)
    stage = composed_run("method=lora", f'model.name="{MARKUP}"').last
    with StageProgress(console, [stage]) as progress:
        progress.begin(stage)
        progress.of(stage)("train", 1, 2, f"loss {MARKUP}{ORDERS}")
        progress._live.refresh()
        progress.say("[red]✗[/]", MARKUP)
        print(f"a library prints {ORDERS}")
    assert "[/nothing]" in written.getvalue()
    refuse_orders(written.getvalue())


def test_plain_text_stays_as_it_is() -> None:
    text = "größe ✓ עברית \N{ZERO WIDTH JOINER} 日本\tx\n"
    assert printable(text) == text
    assert printable("a\r\nb") == "a\nb"


def test_only_the_safe_console_is_made() -> None:
    """Every other way to the terminal goes through the process's own streams."""
    made = []
    for folder in ("heft_pipeline", "launch", "hydra_plugins"):
        for path in (ROOT / folder).rglob("*.py"):
            tree = ast.parse(path.read_text())
            foreign = {
                alias.asname or alias.name
                for node in ast.walk(tree)
                if isinstance(node, ast.ImportFrom) and node.module == "rich.console"
                for alias in node.names
            }
            made += [
                f"{path.relative_to(ROOT)}:{node.lineno}"
                for node in ast.walk(tree)
                if isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id == "Console"
                and "Console" in foreign
            ]
    assert not made
