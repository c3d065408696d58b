"""The whole config: all its sections, and their registration with Hydra.

Hydra composes ``conf/`` into :class:`HeftConfig`. While composing, it refuses unknown keys and
values of the wrong type.
"""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from heft_pipeline.adapters.kind import MOST_EPOCHS, AdapterSettings, Schedule, joined, kinds
from heft_pipeline.data.settings import DataSettings
from heft_pipeline.declare_settings import Settings, section, setting
from heft_pipeline.errors import UserError
from heft_pipeline.models.settings import ModelSettings
from heft_pipeline.scoring.settings import EvaluationSettings
from heft_pipeline.settings.report import ReportSettings
from heft_pipeline.settings.tracking import TrackingSettings
from heft_pipeline.training.settings import TrainingSettings

METHOD_NAMES = {
    (): "base",
    ("lora",): "lora",
    ("reft",): "reft",
    ("lora", "reft"): "heft",
    ("lora+reft",): "joint",
}


def _check_device(key: str, value: str) -> None:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps", value):
        raise UserError(f"{key}={value} is not one of auto, cpu, cuda, cuda:N, mps")


#: How the folder of a run is called until it is known what the run is called.
STARTING = ".starting-"
_LONGEST_NAME = 100


def _check_sweep(key: str, value: str) -> None:
    if not re.fullmatch(r"[\w@=+][\w.@=+-]*", value) or len(value) > _LONGEST_NAME:
        raise UserError(
            f"{key}={value!r} names a folder: use letters, digits and . _ - + = @ only, at most "
            f"{_LONGEST_NAME} characters, and begin with none of . and -"
        )


def _check_stages(_key: str, value: Any) -> None:
    joined(value)


@dataclass(frozen=True)
class MethodSettings(Settings):
    """Which stages a run trains, in order."""

    stages: list[str] = setting(
        MISSING,
        "a kind of adapter for each stage, or several kinds joined with + to train them at once",
        rule=_check_stages,
        example=["lora", "reft"],
    )


@dataclass(frozen=True)
class SharedSettings(Settings):
    """Everything a run is made from, except the sections of the kinds of adapter."""

    method: MethodSettings = section(MethodSettings, "which stages a run trains")
    model: ModelSettings = section(ModelSettings, "the frozen base model")
    data: DataSettings = section(DataSettings, "the task")
    joint: Schedule = section(
        Schedule, "the schedule of a stage that trains several adapters at once"
    )
    training: TrainingSettings = section(TrainingSettings, "how stages are trained")
    evaluation: EvaluationSettings = section(EvaluationSettings, "how answers are scored")
    tracking: TrackingSettings = section(TrackingSettings, "where runs are shown", identity=False)
    report: ReportSettings = section(ReportSettings, "what the report compares", identity=False)
    epochs: int = setting(3, "epochs of each stage of a method", least=1, most=MOST_EPOCHS)
    rank: int = setting(8, "the rank of all adapters that have one", above=0)
    seed: int = setting(
        0,
        "seeds the initial adapters, the order of examples, dropout, and the choice of dev rows",
        least=0,
        most=2**31 - 1,
    )
    output_dir: str = setting("outputs", "the folder of all stages and sweeps", identity=False)
    sweep: str = setting(
        MISSING,
        "the name of the sweep's folder, output_dir/sweeps/NAME",
        rule=_check_sweep,
        example="pilot",
        identity=False,
    )
    device: str = setting(
        "auto",
        "auto (CUDA if there is a GPU), cpu, cuda, cuda:N or mps",
        rule=_check_device,
        identity=False,
    )

    def check(self, key: str) -> None:
        """Refuse adapters that do not support the evaluation mode, and choosing without rows."""
        written = self.data.written
        evaluation = self.evaluation.for_task(written=written)
        evaluation.check("evaluation")
        if written and (evaluation.mode != "generate" or evaluation.match != "begins"):
            raise UserError(
                "data.kind=answer: answers are generated and compared with data.extract and "
                "data.compare; leave evaluation.mode and evaluation.match as they are"
            )
        for name in kinds():
            self.adapter(name).check_mode(evaluation.mode)
        chosen = self.method.stages and self.training.selection == "best"
        if chosen and not self.data.has_dev:
            raise UserError(
                "data.dev_size=0 leaves no rows to choose the best epoch on; keep the last one "
                "with training.selection=last, or hold rows out"
            )

    def adapter(self, kind: str) -> AdapterSettings:
        """The section of a kind of adapter."""
        found = getattr(self, kind)
        assert isinstance(found, AdapterSettings)
        return found


if TYPE_CHECKING:
    HeftConfig = SharedSettings
else:
    HeftConfig = make_dataclass(
        "HeftConfig",
        [(name, kind, section(kind, kind.__doc__)) for name, kind in kinds().items()],
        bases=(SharedSettings,),
        frozen=True,
    )
    # So that processes elsewhere find it by its name instead of getting a copy of the class.
    HeftConfig.__module__ = __name__
    HeftConfig.__doc__ = "Everything a run is made from, with a section for each kind of adapter."


def method_name(stages: Iterable[str]) -> str:
    """The name of a list of stages.

    Args:
        stages: Entries of ``method.stages`` in training order.

    Returns:
        ``lora``, ``reft``, ``heft`` or ``joint`` for these methods, and ``base`` for no stages. Any
        other list is named after its stages, joined with ``+`` (``reft+lora``); in such a name, a
        stage that trains several adapters at once is ``joint`` if it is that method's stage, and
        otherwise its kinds joined with ``_`` (``lora_red``).
    """
    entries = joined(stages)
    names = (METHOD_NAMES.get((entry,), entry.replace("+", "_")) for entry in entries)
    return METHOD_NAMES.get(entries, "+".join(names))


def run_name(config: SharedSettings) -> str:
    """What a run is called where no other of its sweep would be called the same.

    Args:
        config: The run's config.

    Returns:
        For instance ``heft-3-r8-s0``.
    """
    method = method_name(config.method.stages)
    return f"{method}-{config.epochs}-r{config.rank}-s{config.seed}"


def sweep_folder(output_dir: str, sweep: str) -> str:
    """The folder of a sweep, which Hydra creates before the settings are checked.

    Args:
        output_dir: The config's ``output_dir``.
        sweep: The config's ``sweep``.

    Returns:
        The folder.

    Raises:
        UserError: The name is not a folder's within ``output_dir/sweeps``.
    """
    _check_sweep("sweep", str(sweep))
    return f"{output_dir}/sweeps/{sweep}"


def config_dir() -> Path:
    """The folder of Hydra configs: beside the package in a checkout, inside it when installed."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"


def schema() -> DictConfig:
    """The config's schema, which Hydra can write to although the dataclasses are frozen."""
    return _writable(OmegaConf.structured(HeftConfig))


def register() -> None:
    """Register the schema with Hydra, and the resolvers that ``conf/`` uses with OmegaConf.

    ``${sweep_folder:...}`` is :func:`sweep_folder`, and ``${starting:}`` a name for the folder of a
    run until it is known what the run is called. ``${tiny_or:ID,A,B}`` is A for the model that
    ships with the package and B for any other: a model with under a million parameters needs
    far larger learning rates than the published ones.
    """
    store = ConfigStore.instance()
    if "heft_schema.yaml" not in store.repo:  # Hydra 1.5 refuses a name that is there
        store.store(name="heft_schema", node=schema(), provider="heft_pipeline")
    OmegaConf.register_new_resolver("sweep_folder", sweep_folder, replace=True)
    OmegaConf.register_new_resolver(
        "starting", lambda number=0: f"{STARTING}{os.getpid()}-{number}", replace=True
    )
    OmegaConf.register_new_resolver(
        "tiny_or", lambda id, tiny, other: tiny if id == "builtin:tiny" else other, replace=True
    )


def _writable(node: Any) -> Any:
    OmegaConf.set_readonly(node, None)
    for key in node:
        child = node._get_node(key)
        if isinstance(child, DictConfig) and not child._is_none() and not child._is_missing():
            _writable(child)
    return node
