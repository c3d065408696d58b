"""A trained HEFT stage that the tests of one file share."""

from collections.abc import Callable
from pathlib import Path

import pytest

from heft_pipeline.plan.graph import Run
from heft_pipeline.plan.stage_spec import StageSpec
from heft_pipeline.stage.run_stage import run_stage
from heft_pipeline.store.stage_folders import Store
from tests.conftest import composed_run

#: Trains what a method and more overrides ask for, and returns the last stage.
Train = Callable[..., StageSpec]


def trained(run: Run, store: Store) -> StageSpec:
    for stage in run.stages:
        run_stage(stage, store)
    return run.last


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store that a file's tests only read."""
    return Store(tmp_path_factory.mktemp("kept"))


@pytest.fixture(scope="module")
def heft(kept: Store, small: list[str]) -> StageSpec:
    return trained(composed_run(*small, "method=heft", "epochs=2"), kept)


@pytest.fixture(scope="module")
def heft_folder(heft: StageSpec, kept: Store) -> Path:
    return kept.folder(heft.fingerprint)
