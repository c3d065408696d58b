"""Files that have changed since a stage was planned."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from heft_pipeline.plan.graph import Run, untouched_model
from heft_pipeline.store.stage_folders import Store
from launch.check_inputs import refuse_changed_inputs


@pytest.mark.parametrize("dev", ["data.dev_split=dev", "data.dev_split=null"])
def test_an_untouched_model_is_not_refused_for_dev_rows_that_it_does_not_read(
    compose_run: Callable[..., Run], small: list[str], small_data: Path, tmp_path: Path, dev: str
) -> None:
    folder = tmp_path / "data"
    shutil.copytree(small_data, folder)
    shutil.copy(folder / "validation.jsonl", folder / "dev.jsonl")
    run = compose_run(*small, f"data.path={folder}", "method=lora", dev)
    store = Store(tmp_path / "out")
    stages = [run.last, untouched_model(run.last)]
    for stage in stages:
        store.begin(stage)
        refuse_changed_inputs(stage, store)
    with (folder / "validation.jsonl").open("a") as file:
        file.write('{"passage": "w1 w2", "question": "w1", "answer": true}\n')
    for stage in stages:
        with pytest.raises(RuntimeError, match="has changed since the job was submitted"):
            refuse_changed_inputs(stage, store)
