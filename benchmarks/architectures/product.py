"""This project's own way: stages that are composed, checked, trained, stored and evaluated."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from benchmarks.architectures.task import CHOICES, PROMPT
from heft_pipeline.adapters.adapted import adapted, adapter_folder
from heft_pipeline.data.prompts import Example
from heft_pipeline.devices.resolve import resolve_device
from heft_pipeline.plan.graph import make_run
from heft_pipeline.plan.sources import Sources
from heft_pipeline.plan.stage_spec import StageSpec
from heft_pipeline.scoring.score import score
from heft_pipeline.settings.checks import typed
from heft_pipeline.settings.schema import config_dir, register
from heft_pipeline.stage.cached_inputs import cached_base
from heft_pipeline.stage.preflight import preflight
from heft_pipeline.stage.run_stage import run_stage
from heft_pipeline.store.stage_folders import Store

#: Three steps with large learning rates, so that the adapters' effect is seen.
_OVERRIDES = (
    "sweep=architectures",
    "model.dtype=float32",
    "data=boolq",
    "data.name=architectures",
    "data.dev_size=6",
    "epochs=1",
    "rank=4",
    "device=cpu",
    "lora.batch_size=4",
    "lora.learning_rate=3e-2",
    "reft.batch_size=4",
    "reft.learning_rate=3e-2",
)


class Product:
    """Runs of this project on one model and task.

    Args:
        model: The model's folder.
        data: The task's folder.
        store: An empty folder for the stages.
    """

    def __init__(self, model: Path, data: Path, store: Path) -> None:
        self._model, self._data, self._store = model, data, Store(store)

    def trained(self, method: str, *overrides: str) -> StageSpec:
        """Train and evaluate the stages of a run, and return the last.

        Raises:
            UserError: The model or the settings are refused.
        """
        choices = [f"+data.choices.maybe='{CHOICES['maybe']}'"]
        asked = [
            *_OVERRIDES,
            f"method={method}",
            f"model.id='{self._model}'",
            f"data.path='{self._data}'",
            f"data.prompt='{PROMPT}'",
            *choices,
            *overrides,
        ]
        run = make_run(_composed(asked), Sources(Path("unused")), "run", asked)
        preflight(run.stages)
        for stage in run.stages:
            run_stage(stage, self._store)
        return run.last

    def result(self, stage: StageSpec) -> dict[str, Any]:
        """What ``result.json`` of a finished stage says."""
        return self._store.result(stage.fingerprint) or {}

    def predicted(self, stage: StageSpec) -> torch.Tensor:
        """[N, C], the log-probabilities of the choices that a finished stage has reported."""
        file = self._store.folder(stage.fingerprint) / "predictions.parquet"
        table = pd.read_parquet(file)
        return torch.tensor(table[[f"logprob_{label}" for label in CHOICES]].to_numpy())

    def scored(
        self, stage: StageSpec, prompts: Sequence[Sequence[int]], choices: Sequence[Sequence[int]]
    ) -> torch.Tensor:
        """[N, C] for other choices, with the saved adapters put on the model again."""
        base = cached_base(stage.model, resolve_device(stage.device))
        saved = [
            (settings, adapter_folder(self._store.adapter(one), settings, one.adapters))
            for one in stage.chain
            for settings in one.adapters
        ]
        own = tuple(map(tuple, choices))
        texts = ("",) * len(own)
        examples = [
            Example(str(i), tuple(p), 0, choices=own, texts=texts) for i, p in enumerate(prompts)
        ]
        with adapted(base, saved) as model:
            found = score(model, examples, batch_size=len(prompts))
        return found.log_probabilities

    def adapters(self, stage: StageSpec) -> dict[str, Path]:
        """The folders of the adapters of a finished stage and its parents, by their kind."""
        return {one.adapters[0].kind: self._store.adapter(one) for one in stage.chain}


@functools.cache
def _registered() -> None:
    register()


def _composed(overrides: Sequence[str]) -> Any:
    from hydra import compose, initialize_config_dir

    _registered()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return typed(compose("config", list(overrides)))
