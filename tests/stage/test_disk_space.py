"""What stages are said to need on disk, against what they write."""

import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest

from heft_pipeline.adapters.kind import kinds
from heft_pipeline.models import base_model
from heft_pipeline.plan.graph import Run, untouched_model
from heft_pipeline.stage import forecast
from heft_pipeline.stage.disk_space import disk_need, in_bytes, room_for
from heft_pipeline.stage.run_stage import run_stage
from heft_pipeline.store.stage_folders import Store
from heft_pipeline.training import checkpoint

Compose = Callable[..., Run]
Usage = namedtuple("Usage", "total used free")


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    "asked", [["method=heft"], ["method=joint"], ["method=red"], ["method=lora", "rank=32"]]
)
def test_the_estimate_is_no_less_and_not_much_more_than_what_is_written(
    compose_run: Compose, small: list[str], store: Store, asked: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    run = compose_run(*small, *asked, "epochs=1")
    checkpoints = []
    wrote = checkpoint.write

    def write(path: Path, *rest: object) -> None:
        wrote(path, *rest)  # type: ignore[arg-type]
        checkpoints.append(size(path.parent))

    monkeypatch.setattr(checkpoint, "write", write)
    for stage in run.stages:
        need = disk_need([stage], store)
        run_stage(stage, store)
        folder = store.folder(stage.fingerprint)
        adapter = size(folder / "adapter")
        assert need.adapters <= adapter <= 1.5 * need.adapters + 20_000
        assert size(folder) <= need.adapters + need.kept
        assert need.kept < 100_000
        # A new checkpoint is written beside the last one.
        assert max(checkpoints) <= need.checkpoints <= 3 * max(checkpoints) + 25_000
        checkpoints.clear()


def test_checkpoints_count_only_for_the_stages_that_are_trained_at_once(
    compose_run: Compose, small: list[str], store: Store
) -> None:
    stages = [compose_run(*small, "method=lora", f"seed={seed}").last for seed in range(4)]
    one, two, many = (disk_need(stages, store, at_once) for at_once in (1, 2, 100))
    assert two.checkpoints == 2 * one.checkpoints
    assert many.checkpoints == 4 * one.checkpoints
    assert one.adapters == two.adapters == many.adapters
    assert disk_need([untouched_model(stages[0])], store).checkpoints == 0


def test_what_an_interrupted_stage_has_on_disk_is_not_asked_for_again(
    compose_run: Compose, small: list[str], store: Store
) -> None:
    stage = compose_run(*small, "method=lora").last
    before = disk_need([stage], store)
    folder = store.folder(stage.fingerprint) / "checkpoint"
    folder.mkdir(parents=True)
    (folder / "last.safetensors").write_bytes(b"x" * 1000)
    assert disk_need([stage], store).checkpoints == before.checkpoints - 1000


def test_a_thousand_learning_rates_take_one_look_at_the_model(
    compose_run: Compose, small: list[str], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = []
    skeleton = base_model.skeleton
    counted = lambda model: (built.append(1), skeleton(model))[1]  # type: ignore[func-returns-value]  # noqa: E731
    monkeypatch.setattr(forecast, "skeleton", counted)

    def looks(rates: int, rank: int) -> int:
        asked = [*small, "method=lora", f"rank={rank}"]
        stages = [
            compose_run(*asked, f"lora.learning_rate={n + 1}e-4", f"seed={n}").last
            for n in range(rates)
        ]
        built.clear()
        disk_need(stages, store)
        return len(built)

    assert looks(12, rank=3) <= looks(1, rank=5) + 1  # and one for the model's shape


def test_every_kind_of_adapter_has_an_estimate(
    compose_run: Compose, small: list[str], store: Store
) -> None:
    for kind in kinds():
        stage = compose_run(*small, f"method.stages=[{kind}]").last
        assert disk_need([stage], store).adapters > 0


def test_room_is_said_in_full(
    compose_run: Compose, small: list[str], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = [compose_run(*small, "method=lora", f"seed={seed}").last for seed in (0, 1)]
    need = disk_need(stages, store, 2).total
    for free, enough, ample in (
        (need - 1, False, False),
        (need, True, False),
        (2 * need, True, True),
    ):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: Usage(0, 0, free))
        room = room_for(stages, store, 2)
        assert (room.enough, room.ample) == (enough, ample)
    said = str(room)
    assert said.startswith(f"2 stages need about {in_bytes(need)} (")
    assert "of checkpoints of 2 stages at once), and " in said
    assert said.endswith(f"{in_bytes(2 * need)} are free")


@pytest.mark.parametrize(
    ("size", "said"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (12_345, "12 kB"), (4.2e9, "4.2 GB"),
     (3e15, "3,000 TB")],
)  # fmt: skip
def test_bytes_are_said_with_a_unit(size: float, said: str) -> None:
    assert in_bytes(size) == said
