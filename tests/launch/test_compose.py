"""Composing many jobs quickly gives what Hydra gives for each."""

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf.errors import OmegaConfBaseException

from heft_pipeline.settings.schema import config_dir, register
from heft_pipeline.errors import UserError
from heft_pipeline.settings.checks import typed
from launch.compose import Composer, without_hydra


@pytest.fixture
def composer() -> Any:
    register()
    path = create_config_search_path(str(config_dir()))
    hydra = Hydra.create_main_hydra2(task_name="test", config_search_path=path)
    try:
        config = hydra.compose_config("config", ["sweep=x"], run_mode=RunMode.MULTIRUN)
        yield Composer(hydra.config_loader, config)
    finally:
        GlobalHydra.instance().clear()


AXES = [
    ["method=lora", "method=heft", "method.stages=[reft,lora]"],
    ["epochs=3", "epochs=20", "lora.epochs=2"],
    ["rank=4", "reft.rank=16", "rank=8"],
    ["seed=0", "seed=5"],
    ["model.id=/some/where", "model=smollm2_135m", "model.id=builtin:tiny"],
    ["data=boolq", "data.dev_size=0.25", "reft.warmup_ratio=0.5", "reft.layers=[1,2]"],
]


def test_every_point_of_a_sweep_equals_hydras_own_composition(composer: Composer) -> None:
    points = [["sweep=x", *point] for point in itertools.product(*AXES)]
    sample: Sequence[list[str]] = points[::5]
    assert len(sample) > 100
    for point in [*points, *sample]:  # every point, so that no order of them can hide a leftover
        composer.typed(point)
    for point in sample:
        assert composer.typed(point) == typed(without_hydra(composer.job(point))), point


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("rnak=4", "rnak"),
        ("rank=four", "rank"),
        ("lora.rank=0", "lora.rank=0"),
        ("model=nosuch", "nosuch"),
        ("reft.layers=3", "reft.layers"),
    ],
)
def test_a_bad_value_is_refused_in_any_place_of_a_sweep(
    composer: Composer, bad: str, said: str
) -> None:
    composer.typed(["sweep=x", "rank=4", "lora.rank=2", "reft.layers=all"])
    for _ in range(2):
        with pytest.raises((UserError, HydraException, OmegaConfBaseException)) as caught:
            composer.typed(["sweep=x", bad])
        assert said in f"{caught.value} {caught.value.__cause__}"
    assert composer.typed(["sweep=x", "rank=4"]).lora.rank == 4
