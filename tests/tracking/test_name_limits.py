"""Names that are too long for W&B are cut to what its own checks take, and stay distinct."""

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import wandb

from heft_pipeline.plan.run_names import shortened
from heft_pipeline.settings.tracking import TrackingSettings
from heft_pipeline.store.sweep_folders import Sweep
from heft_pipeline.tracking.payload import planned_runs
from heft_pipeline.tracking.wandb_backend import (
    LABEL_LIMIT,
    NAME_LIMIT,
    WandbBackend,
)
from tests.tracking import wandb_files


def tagged(name: str) -> None:
    wandb.Settings(run_tags=[name])


def in_project(name: str) -> None:
    wandb.Settings(project=name)


@pytest.mark.parametrize(("check", "most"), [(tagged, LABEL_LIMIT), (in_project, NAME_LIMIT)])
def test_the_limits_are_wandbs_own(check: Callable[[str], None], most: int) -> None:
    check("x" * most)
    with pytest.raises((ValueError, wandb.errors.UsageError), match=str(most)):
        check("x" * (most + 1))
    for length in (most + 1, most + 100):
        check(shortened("x" * length, most))
        assert len(shortened("x" * length, most)) == most


def test_short_names_stay_and_long_ones_that_differ_at_the_end_stay_distinct() -> None:
    assert shortened("x" * 64, 64) == "x" * 64
    chains = ["+".join(kinds) for kinds in itertools.product(["lora", "reft"], repeat=14)][:500]
    assert min(map(len, chains)) > 64
    cut = [shortened(chain, 64) for chain in chains]
    assert len(set(cut)) == len(chains)
    assert all(name.startswith("lora+lora+lora") for name in cut)


def test_a_long_chain_in_a_long_sweep_is_written(sweep: Path, tmp_path: Path) -> None:
    tracking = TrackingSettings(name="wandb", mode="offline", log_adapter=True)
    run = planned_runs(Sweep(sweep))[0].tracked(tracking)
    chain = "+".join(["lora", "reft"] * 12)
    long = dataclasses.replace(
        run,
        name=f"0-{chain}-e3-r8-s0" + "x" * 20,
        method=chain,
        sweep="s" * 200,
        tags=(chain, "pilot"),
    )
    writer = WandbBackend(tracking).open(long, tmp_path / "run")
    where = writer.finish(long)
    (file,) = Path(where).glob("*.wandb")
    begun = wandb_files.begun(wandb_files.records(file))
    assert (len(begun.job_type), begun.job_type[:9]) == (LABEL_LIMIT, chain[:9])
    assert (len(begun.display_name), len(begun.run_group)) == (NAME_LIMIT, NAME_LIMIT)
    assert [len(one) for one in begun.tags] == [LABEL_LIMIT, 5]
