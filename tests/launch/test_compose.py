"""Composing many jobs quickly gives what Hydra gives for each."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from heft_pipeline.errors import UserError
from heft_pipeline.settings.checks import typed
from heft_pipeline.settings.schema import config_dir, register
from launch.compose import Composer


class BothWays:
    """Composes jobs as the launchers do, and as Hydra does; counts what Hydra composes."""

    def __init__(self, hydra: Hydra, *overrides: str) -> None:
        self._loader = hydra.config_loader
        self._config = hydra.compose_config(
            "config", ["sweep=x", *overrides], run_mode=RunMode.MULTIRUN
        )
        self.composer = Composer(self, self._config)  # type: ignore[arg-type]
        self.by_hydra = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def load_sweep_config(self, config: DictConfig, overrides: list[str]) -> DictConfig:
        self.by_hydra += 1
        return self._loader.load_sweep_config(config, overrides)

    def expected(self, number: int, overrides: Sequence[str]) -> DictConfig:
        """The config that Hydra's own launchers run a job with."""
        cfg = self._loader.load_sweep_config(self._config, list(overrides))
        with open_dict(cfg):
            cfg.hydra.job.id, cfg.hydra.job.num = str(number), number
        return cfg


@pytest.fixture
def hydra() -> Iterator[Hydra]:
    register()
    path = create_config_search_path(str(config_dir()))
    try:
        yield Hydra.create_main_hydra2(task_name="test", config_search_path=path)
    finally:
        GlobalHydra.instance().clear()


@pytest.fixture
def ways(hydra: Hydra) -> BothWays:
    return BothWays(hydra)


@pytest.fixture
def composer(ways: BothWays) -> Composer:
    return ways.composer


AXES = [
    ["method=lora", "method=heft", "method.stages=[reft,lora]"],
    ["epochs=3", "epochs=20", "lora.epochs=2"],
    ["rank=4", "reft.rank=16", "rank=8"],
    ["seed=0", "seed=5"],
    ["model.id=/some/where", "model=smollm2_135m", "model.id=builtin:tiny"],
    ["data=boolq", "data.dev_size=0.25", "reft.warmup_ratio=0.5", "reft.layers=[1,2]"],
]


def same(config: DictConfig, expected: DictConfig) -> bool:
    """Whether two configs have the same values and interpolations, and resolve to the same."""
    return OmegaConf.to_yaml(config) == OmegaConf.to_yaml(expected) and all(
        OmegaConf.select(config, key) == OmegaConf.select(expected, key)
        and type(OmegaConf.select(config, key)) is type(OmegaConf.select(expected, key))
        for key in ("hydra.sweep.dir", "hydra.sweep.subdir", "hydra.job.num", "sweep")
    )


def without_hydra(config: DictConfig) -> DictConfig:
    cfg = config.copy()
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg


def test_every_point_of_a_sweep_equals_hydras_own_composition(ways: BothWays) -> None:
    points = [["sweep=x", *point] for point in itertools.product(*AXES)]
    sample = points[::5]
    assert len(sample) > 100
    for point in [*points, *sample]:  # every point, so that no order of them can hide a leftover
        ways.composer.job(0, point)
    for number, point in enumerate(sample):
        job, expected = ways.composer.job(number, point), ways.expected(number, point)
        assert job.settings == typed(without_hydra(expected)), point
        assert same(job.hydra_config(), expected), point
    assert ways.by_hydra == 3 * 2 * 2, "once for each choice of method, model and data"


@pytest.mark.parametrize(
    "overrides",
    [
        ["rank=4", "lora.rank=2", "training.max_grad_norm=0.5"],
        ["method=lora", "seed=1"],
        ["rank=4", "rank=8"],
        ["rank=8", "rank=4", "lora.rank=${rank}"],
        ["lora.rank=16", "lora.rank=${rank}"],
        ["model=smollm2_135m", "data=boolq", "tracking=wandb", "tracking.tags=[a,b]"],
        ["tracking=wandb", "tracking.tags=[]", "tracking.project='a b'"],
        ["+experiment=rank_sweep", "rank=4"],
        ["+data.choices.maybe=' maybe'", "data.choices.true=' w1'"],
        ["++data.choices.maybe=' maybe'", "data.choices.maybe=' perhaps'"],
        ["data.choices.true=' first'", "++data.choices.true=' second'"],
        ["+data.choices={maybe: ' maybe'}", "data.choices.false=' w2'"],
        ["joint={epochs: 2}", "joint.batch_size=4"],
        ["joint.epochs=4", "joint={epochs: 2}"],
        ["~data.choices.true", "+data.choices.yes=' yes'"],
        ["~tracking", "seed=2"],
        ["reft.layers=[0,1]", "lora.target_modules=[q_proj]", "method.stages=[lora,reft]"],
        ["reft.layers=[1,2]", "reft.layers.0=0"],
        ["lora.rank=${reft.rank}", "reft.rank=2", "joint.batch_size=${lora.batch_size}"],
        ["lora.rank=${oc.select:seed,3}", "seed=7"],
        ["sweep=${now:%Y}", "output_dir=${oc.env:HOME}"],
        ["hydra.job.name=other", "rank=4"],
        ["hydra.job.config.override_dirname.exclude_keys=[seed]", "seed=3", "rank=4"],
        ["hydra.job.config.override_dirname.item_sep='__'", "seed=3", "rank=4"],
        ["hydra.output_subdir=null", "+hydra.job.env_set.A=1", "rank=4"],
        ["hydra.run.dir=/elsewhere/${seed}", "hydra.sweep.subdir=${hydra.job.num}", "seed=3"],
        ["model.revision=null", "training.early_stopping_patience=2", "report.base_model=false"],
    ],
    ids=" ".join,
)
def test_a_jobs_full_config_equals_hydras(hydra: Hydra, overrides: list[str]) -> None:
    # Hydra 1.4 refuses jobs that alone choose an experiment with settings of the sweeper.
    experiment = [one for one in overrides if one.startswith("+experiment")]
    ways = BothWays(hydra, *experiment)
    before = ["sweep=x", "rank=2", "seed=9", "lora.rank=1"]
    ways.composer.job(0, [*experiment, *before])  # may leave nothing behind
    overrides = ["sweep=x", *overrides]
    for number in (1, 2):
        job, expected = ways.composer.job(number, overrides), ways.expected(number, overrides)
        assert OmegaConf.to_yaml(job.hydra_config()) == OmegaConf.to_yaml(expected)
        assert same(job.hydra_config(), expected)
        assert job.settings == typed(without_hydra(expected))
        assert job.overrides == tuple(overrides)


def test_hydra_overrides_of_the_sweep_reach_every_job(hydra: Hydra) -> None:
    layout = "hydra.job.config.override_dirname"
    ways = BothWays(hydra, f"{layout}.kv_sep=-", f"{layout}.exclude_keys=[rank]", "seed=4")
    for number, given in enumerate((["rank=4", "epochs=2"], ["rank=8", "epochs=3", "seed=1"])):
        given = ["sweep=x", *given]
        config = ways.composer.job(number, given).hydra_config()
        assert same(config, ways.expected(number, given))
        assert "epochs-" in config.hydra.job.override_dirname
        assert "rank" not in config.hydra.job.override_dirname
    assert ways.by_hydra == 1


def test_configs_of_jobs_are_independent(composer: Composer) -> None:
    first, second = (composer.job(n, ["sweep=x", f"seed={n}"]).hydra_config() for n in (1, 2))
    first.rank = 99
    first.hydra.job.num = 7
    third = composer.job(3, ["sweep=x", "seed=3"]).hydra_config()
    assert (second.rank, third.rank) == (8, 8)
    assert (second.hydra.job.num, third.hydra.job.num) == (2, 3)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("rnak=4", "rnak"),
        ("rank=four", "rank"),
        ("rank.x=3", "rank"),
        ("lora.rank=0", "lora.rank=0"),
        ("model=nosuch", "nosuch"),
        ("reft.layers=3", "reft.layers"),
        ("rank=1,2", "rank"),
        ("+rank=2", "rank"),
        ("method.stages=???", "method.stages has no value"),
    ],
)
def test_a_bad_value_is_refused_in_any_place_of_a_sweep(
    composer: Composer, bad: str, said: str
) -> None:
    composer.job(0, ["sweep=x", "rank=4", "lora.rank=2", "reft.layers=all"])
    for _ in range(2):
        with pytest.raises((UserError, HydraException, OmegaConfBaseException)) as caught:
            composer.job(1, ["sweep=x", bad])
        assert said in f"{caught.value} {caught.value.__cause__}"
    assert composer.job(2, ["sweep=x", "rank=4"]).settings.adapter("lora").low_rank == 4
