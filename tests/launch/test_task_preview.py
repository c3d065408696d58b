"""What a dry run shows of each task."""

from collections.abc import Callable
from pathlib import Path

from tests.conftest import CliResult, write_rows
from tests.scoring.test_own_choices import rows


def test_a_dry_run_shows_a_row_of_each_task_as_it_will_be_read(
    cli: Callable[..., CliResult], small: list[str], tmp_path: Path
) -> None:
    for split in ("train", "validation"):
        write_rows(tmp_path / "own" / f"{split}.jsonl", rows(40, seed=len(split)))
    first = rows(40, seed=len("validation"))[0]
    shared = [one for one in small if not one.startswith(("data.path", "data.name", "data="))]
    asked = ["-m", "method=lora", "hydra.launcher.dry_run=true", "hydra.launcher.dry_run_gpu=h100"]
    status, out, err = cli(
        *asked, *shared, "data=hellaswag", f"data.path={tmp_path / 'own'}",
        "data.truncate_column=null", "data.max_prompt_tokens=90",
    )  # fmt: skip
    assert status == 0, err
    shown = " ".join(out.split())
    assert "hellaswag: 36 train, 4 dev, 40 reported rows" in shown
    assert f"validation/0: <s> {first['passage']} Question: {first['question']} Answer:" in (
        shown.replace("│ ", "")
    )
    for number, ending in enumerate(first["endings"]):
        mark = "✓ " if number == first["label"] else ""
        count = len(ending.split())
        tokens = f"{count} token{'s' if count > 1 else ''}"
        assert f"{mark}{'ABCDE'[number]}: '{ending}' ({tokens})" in shown.replace("│ ", "")
    status, out, _ = cli(*asked[:-1], "hydra.launcher.dry_run_gpu=none", *small)
    assert status == 0 and "reported rows" not in out


def test_stages_of_several_tasks_are_told_apart(
    cli: Callable[..., CliResult], small: list[str]
) -> None:
    asked = ["-m", "method=lora", "hydra.launcher.dry_run=true", "hydra.launcher.dry_run_gpu=none"]
    status, out, err = cli(*asked, *small, "data.name=one,two")
    assert status == 0, err
    assert "lora@3 r8 s0: to do" in " ".join(out.split()), "they are one stage under two names"
    status, out, err = cli(*asked, *small, "data.max_train_rows=50,60", "data.name=mine")
    assert status == 0, err
    assert "lora@3 r8 s0 on mine" not in out
