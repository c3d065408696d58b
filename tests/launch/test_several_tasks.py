"""Tasks of all three kinds of answers in one sweep, each a file of a user's own."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.conftest import WORDS, CliResult, make_rows, write_rows
from tests.scoring.test_own_choices import rows as rows_with_choices

Cli = Callable[..., CliResult]

TASKS = {
    "shared": """
prompt: "{passage} Question: {question} Answer:"
choices: {"true": " yes", "false": " no"}
""",
    "own": """
prompt: "{passage} Question: {question} Answer:"
choices_column: endings
answer_column: label
""",
    "written": """
kind: answer
prompt: "Question: {question} yes"
extract: "Answer: (.+)"
""",
}


def written_rows(count: int, seed: int) -> list[dict[str, Any]]:
    source = random.Random(seed)
    words = [source.choice(WORDS[:8]) for _ in range(count)]
    return [
        {"question": f"{word} {source.choice(WORDS)}", "answer": f"Answer: {word}"}
        for word in words
    ]


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A folder of configs with the three tasks."""
    made = {"shared": make_rows, "own": rows_with_choices, "written": written_rows}
    (tmp_path / "conf" / "data").mkdir(parents=True)
    for number, (name, text) in enumerate(TASKS.items()):
        for split, count in (("train", 60), ("validation", 30 + 10 * number)):
            rows = made[name](count, len(split))
            write_rows(tmp_path / "rows" / name / f"{split}.jsonl", rows)
        where = f"path: {tmp_path / 'rows' / name}\nname: {name}\n"
        config = where + text.lstrip() + "max_prompt_tokens: 80\nallow_overlap: true\n"
        assert len(config.splitlines()) < 9, "a new task is a few lines"
        (tmp_path / "conf" / "data" / f"{name}.yaml").write_text(config)
    return tmp_path / "conf"


def test_tasks_of_all_kinds_get_one_page(
    cli: Cli, tasks: Path, small_model: Path, tmp_path: Path
) -> None:
    asked = [f"model.id={small_model}", "model.dtype=float32", "reft.positions=l2"]
    sweep = ["method=lora,heft", "epochs=1", "seed=0,1", "sweep=s", "report.forgetting=off"]
    given = ["data=shared,own,written", "-m", *asked, *sweep]
    status, out, err = cli(f"--config-dir={tasks}", *given)
    assert status == 0, err
    assert "lora@1 r8 s0 on own: accuracy" in out
    folder = tmp_path / "outputs" / "sweeps" / "s"
    table = pd.read_csv(folder / "results.csv")
    assert set(table.status) == {"complete"} and len(table) == 12
    text = (folder / "report.md").read_text()
    titles = [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]
    model = small_model.name
    assert titles[0] == f"{model} on 3 tasks (shared, own, written)"
    assert titles[1:4] == [f"{model} on {name}" for name in TASKS]
    claims = json.loads((folder / "claims.json").read_text())
    over, *each = claims
    means = table.groupby(["data", "method"]).accuracy.mean()
    apart = [means[name, "heft"] - means[name, "lora"] for name in TASKS]
    assert [one["difference"] for one in each] == pytest.approx(apart)
    assert over["difference"] == pytest.approx(np.mean(apart)), "each task counts the same"
    assert over["low"] < over["difference"] < over["high"]
    assert over["tasks"] == list(TASKS)
    assert "written: written as ' {choice}', first match of Answer: (.+)" in text
    assert "own: endings, each as ' {choice}'" in text
    assert "there are no choices" not in text
