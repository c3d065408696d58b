"""Text is shown in every encoding, and files are the same in all of them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

C_LOCALE = {"LC_ALL": "C", "LANG": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
POOR = [
    pytest.param({"PYTHONIOENCODING": "ascii"}, id="ascii"),
    pytest.param({"PYTHONIOENCODING": "latin-1"}, id="latin-1"),
    pytest.param(C_LOCALE, id="C locale"),
]


def ran(environment: dict[str, str], *command: str) -> "subprocess.CompletedProcess[bytes]":
    plain = {key: value for key, value in os.environ.items() if key != "PYTHONIOENCODING"}
    return subprocess.run(
        [sys.executable, "-m", *command],
        capture_output=True, check=False, env=plain | environment, timeout=300,
    )  # fmt: skip


@pytest.mark.parametrize("environment", POOR)
def test_every_command_line_goes_through_in_a_poor_encoding(
    small: list[str], tmp_path: Path, environment: dict[str, str]
) -> None:
    out = tmp_path / "out"
    asked = [*small, "method=lora,reft", "epochs=1", "sweep=s", f"output_dir={out}"]
    named = ["data.name='größe-✓'", "hydra.launcher.workers=2", "tracking=tensorboard"]
    done = ran(environment, "heft_pipeline", "-m", *asked, *named)
    said = done.stdout.decode("latin-1")
    assert done.returncode == 0, said + done.stderr.decode("latin-1")
    assert len(list(out.glob("stages/*/result.json"))) == 3
    assert re.search(r"^\+ .*lora.*accuracy", said, re.M), said
    assert "\u2713" not in said
    assert "größe-✓" in (out / "sweeps/s/report.html").read_text(encoding="utf-8")

    stage = next(path.parent.name for path in out.glob("stages/*/adapter"))
    for command in (
        ["heft_pipeline.report", "s", "--output-dir", str(out)],
        ["launch", "status", "s", "--output-dir", str(out)],
        ["launch", "logs", stage, "--output-dir", str(out)],
        ["heft_pipeline.tracking", str(out / "sweeps/s"), "--to", "tensorboard", "--again"],
        ["heft_pipeline.use.export", stage, "--to", str(tmp_path / "to"), "--output-dir", str(out)],
        ["heft_pipeline.settings", "--markdown"],
    ):
        done = ran(environment, *command)
        assert done.returncode == 0, (command, done.stderr.decode("latin-1"))
        assert b"Traceback" not in done.stderr
        done.stdout.decode("latin-1" if "latin-1" in environment.values() else "ascii")


@pytest.mark.parametrize("environment", POOR)
def test_a_message_with_the_words_of_the_user_is_shown(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    for command in (
        ["heft_pipeline", "method=größe-✓"],
        ["heft_pipeline.report", "größe-✓", "--output-dir", str(tmp_path)],
        ["launch", "status", "größe-✓", "--output-dir", str(tmp_path)],
        ["heft_pipeline.use.export", "größe-✓", "--to", "x", "--output-dir", str(tmp_path)],
    ):
        done = ran(environment, *command)
        assert done.returncode == 1
        assert b"Error: " in done.stderr
        assert b"Traceback" not in done.stderr


def test_boxes_and_marks_have_plain_forms() -> None:
    code = (
        "from heft_pipeline.command_line.streams import prepare_streams\n"
        "prepare_streams(); print('✓ ✗ ┏━┳┓ │ ⠋ 5 ± 1 größe \\udcff')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, check=True, env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert done.stdout == b"+ x +-++ | . 5 +- 1 gr\\xf6\\xdfe \\udcff\n"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, check=True, env=os.environ | {"PYTHONIOENCODING": "utf-8"},
    )  # fmt: skip
    assert done.stdout.decode() == "✓ ✗ ┏━┳┓ │ ⠋ 5 ± 1 größe \\udcff\n"
