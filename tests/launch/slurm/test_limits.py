"""What is refused before anything is checked or submitted."""

from pathlib import Path

import pytest

from heft_pipeline.errors import UserError
from launch.slurm.ask import Patience
from launch.slurm.limits import require_plain_path, require_slurm
from launch.slurm.settings import SlurmSettings
from tests.launch.slurm.conftest import CONFIG, Recorded


@pytest.fixture
def cluster(recorded: Recorded) -> Recorded:
    recorded.answers("sinfo", "main*|1:00:00\nlong|2-00:00:00\n")
    return recorded


def require(jobs: int = 1, **given: object) -> None:
    require_slurm(SlurmSettings(**{"time": "30"} | given), jobs, Patience())  # type: ignore[arg-type]


def test_what_the_cluster_allows_passes(cluster: Recorded) -> None:
    require()
    require(time="1-00:00:00", partition="long")


def test_a_controller_that_does_not_answer(cluster: Recorded) -> None:
    cluster.answers("sinfo", err="slurm_load_partitions: Unable to contact controller", status=1)
    with pytest.raises(UserError, match=r"SLURM does not answer: .*nothing was submitted"):
        require()


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ("100||\n", "MaxSubmitJobs is 100"),
        ("|150|\n", "GrpSubmitJobs is 150"),
        ("100|\n|\n", None),  # one of the user's associations has no limit
        ("300|\n", None),
    ],
)
def test_limits_on_submitted_jobs(cluster: Recorded, limits: str, said: str | None) -> None:
    cluster.answers("sacctmgr", limits)
    if said is None:
        require(jobs=200)
    else:
        with pytest.raises(UserError, match=f"200 jobs .* {said}"):
            require(jobs=200)


def test_the_most_jobs_of_a_cluster(cluster: Recorded) -> None:
    cluster.answers("scontrol", CONFIG + "MaxJobCount             = 150\n")
    with pytest.raises(UserError, match="MaxJobCount is 150"):
        require(jobs=200)


@pytest.mark.parametrize("name", ["a%j", "a\\b", "a\nb"])
def test_paths_that_slurm_would_read_as_patterns(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="choose another output_dir"):
        require_plain_path(tmp_path / name)
    require_plain_path(tmp_path / "plain name")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"time": "1"}, "signal_seconds=120 is more than half of"),
        ({"time": "30", "signal_seconds": 1000}, "signal_seconds=1000 is more than half"),
        ({"sbatch": {"clusters": "other"}}, "sbatch has clusters"),
        ({"sbatch": {"array": "0-3"}}, "sbatch has array"),
    ],
)
def test_settings_that_contradict_each_other(given: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        SlurmSettings(**given).check("hydra.launcher")  # type: ignore[arg-type]
    SlurmSettings(time="1", signal_seconds=20).check("hydra.launcher")
