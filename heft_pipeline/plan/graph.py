"""Turning settings into runs, and runs into the unique stages that they need."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from heft_pipeline.adapters.kind import AdapterSettings, kinds, kinds_of
from heft_pipeline.data.settings import DataSettings
from heft_pipeline.errors import UserError
from heft_pipeline.plan.sources import Source, Sources
from heft_pipeline.plan.stage_spec import StageSpec, from_json, to_json
from heft_pipeline.settings.schema import HeftConfig, method_name


@dataclass(frozen=True)
class Run:
    """One point of a sweep.

    Attributes:
        name: The name of its folder in the sweep.
        overrides: Its command-line overrides.
        method: Its method's name, e.g. ``heft``.
        epochs: The config's ``epochs``.
        stages: Its stages in training order; if nothing is trained, one stage that only evaluates.
    """

    name: str
    overrides: tuple[str, ...]
    method: str
    epochs: int
    stages: tuple[StageSpec, ...]

    @property
    def last(self) -> StageSpec:
        """The stage whose predictions are the run's predictions."""
        return self.stages[-1]

    def to_json(self) -> dict[str, Any]:
        """The run as it is written to ``plan.json``."""
        return {
            "name": self.name,
            "overrides": list(self.overrides),
            "method": self.method,
            "epochs": self.epochs,
            "total_epochs": sum(stage.epochs for stage in self.stages),
            **{f"{kind}_rank": rank for kind, rank in ranks(self.stages).items()},
            "seed": self.last.seed,
            "model": self.last.model.name,
            "data": self.last.data.name,
            "stages": [s.fingerprint for s in self.stages],
        }


@dataclass(frozen=True)
class Plan:
    """The graph of unique stages that a sweep needs.

    Attributes:
        runs: The sweep's runs, in the order in which they were asked for.
        baselines: Evaluations of the untouched models, for the report; see :func:`untouched`.
    """

    runs: tuple[Run, ...]
    baselines: tuple[StageSpec, ...] = ()

    @cached_property
    def stages(self) -> dict[str, StageSpec]:
        """The unique stages by fingerprint, parents before children."""
        found: dict[str, StageSpec] = {}
        for stage in (*(s for run in self.runs for s in run.stages), *self.baselines):
            found.setdefault(stage.fingerprint, stage)
        return dict(sorted(found.items(), key=lambda item: len(item[1].chain)))

    @property
    def asked(self) -> int:
        """How many stages the runs ask for, counting repeats."""
        return sum(len(run.stages) for run in self.runs)

    @property
    def unique(self) -> int:
        """How many of :attr:`stages` the runs need; the others are only baselines."""
        return len({stage.fingerprint for run in self.runs for stage in run.stages})

    def to_json(self) -> dict[str, Any]:
        """The plan as it is written to ``plan.json``."""
        return {
            "runs": [run.to_json() for run in self.runs],
            "baselines": [stage.fingerprint for stage in self.baselines],
            "stages": {key: to_json(stage) for key, stage in self.stages.items()},
        }


def labelled(stages: Iterable[StageSpec]) -> Callable[[StageSpec], str]:
    """How to call stages that are shown together.

    Args:
        stages: The stages.

    Returns:
        A function that gives a stage's label, with its task and its model where these stages have
        several: ``lora@3 r8 s0 on piqa``.
    """
    together = list(stages)
    tasks = {stage.data.name for stage in together}
    models = {stage.model.name for stage in together}

    def label(stage: StageSpec) -> str:
        task = f" on {stage.data.name}" if len(tasks) > 1 else ""
        return stage.label + task + (f" with {stage.model.name}" if len(models) > 1 else "")

    return label


def descendants(stages: Iterable[StageSpec]) -> dict[str, list[StageSpec]]:
    """The stages that are trained on each of some stages, at once or in the end.

    Args:
        stages: The stages to look among.

    Returns:
        Lists of those stages by the fingerprint of a stage that they stand on.
    """
    found: dict[str, list[StageSpec]] = {}
    for stage in stages:
        for parent in stage.chain[:-1]:
            found.setdefault(parent.fingerprint, []).append(stage)
    return found


def ranks(stages: Iterable[StageSpec]) -> dict[str, int | None]:
    """The ranks of a run's adapters.

    Args:
        stages: The run's stages.

    Returns:
        For each kind of adapter that has a rank, the rank of the run's last adapter of that kind;
        None if the run has no such adapter.
    """
    ranked = [name for name, kind in kinds().items() if "rank" in kind.__dataclass_fields__]
    found: dict[str, int | None] = dict.fromkeys(ranked)
    for stage in stages:
        found |= {a.kind: a.low_rank for a in stage.adapters if a.kind in found}
    return found


def read_plan(data: Mapping[str, Any]) -> Plan:
    """Turn the decoded JSON of a ``plan.json`` back into a plan.

    Raises:
        UserError: A name in it leads to another place than its sweep's and its store's folders.
    """
    refuse_paths(data)
    stages = {key: from_json(stage) for key, stage in data["stages"].items()}
    return Plan(
        tuple(
            Run(
                run["name"],
                tuple(run["overrides"]),
                run["method"],
                run["epochs"],
                tuple(stages[key] for key in run["stages"]),
            )
            for run in data["runs"]
        ),
        tuple(stages[key] for key in data.get("baselines", [])),
    )


def refuse_paths(data: Mapping[str, Any]) -> None:
    """Refuse a ``plan.json`` whose names of runs or stages are paths; they are folders' names.

    Args:
        data: Its decoded content.

    Raises:
        UserError: The message has the name.
    """
    runs = [str(run["name"]) for run in data.get("runs", ())]
    wrong = [name for name in runs if name in ("", ".", "..") or re.search(r"[/\\\0]", name)]
    keys = {*data.get("stages", ()), *data.get("baselines", ())}
    wrong += [key for key in keys if not re.fullmatch("[0-9A-Za-z]+", str(key))]
    if wrong:
        raise UserError(
            f"plan.json names {wrong[0][:80]!r}, which is no folder of a sweep; get the sweep from "
            "a source that you trust"
        )


def untouched(runs: Iterable[Run]) -> tuple[StageSpec, ...]:
    """The evaluations of untrained models that the report compares runs with.

    Args:
        runs: The runs.

    Returns:
        A stage without adapters for each combination of model and evaluation in the runs. Its seed
        is 0 and it has no dev rows: nothing is trained, so neither matters, and all sweeps can
        share the stage.
    """
    found: dict[str, StageSpec] = {}
    for run in runs:
        base = untouched_model(run.stages[0])
        found.setdefault(base.fingerprint, base)
    return tuple(found.values())


def untouched_model(first: StageSpec) -> StageSpec:
    """The evaluation of the untouched model that a run is compared with.

    Args:
        first: The run's first stage.

    Returns:
        The stage; see :func:`untouched`.
    """
    data = _without_dev(first.data)
    return dataclasses.replace(first, adapters=(), training=None, seed=0, data=data)


def make_run(config: HeftConfig, sources: Sources, name: str, overrides: Iterable[str]) -> Run:
    """Locate a run's inputs, and derive its stages from its config.

    Args:
        config: The run's checked config.
        sources: Locates the model, the data and the adapters to start from.
        name: The name of the run's folder.
        overrides: The run's command-line overrides.

    Raises:
        UserError: The model, the data or an adapter cannot be found.
    """
    model, data = config.model, config.data
    source = sources.model(model.id, model.revision or "main", model.trust_remote_code)
    model = dataclasses.replace(model, id=source.location, **_identified(source, model.name))
    source = sources.data(data)
    data = dataclasses.replace(data, location=source.location, **_identified(source, data.name))
    stages: list[StageSpec] = []
    for entry in config.method.stages or ("",):
        adapters = _adapters(config, kinds_of(entry), sources) if entry else ()
        stages.append(
            StageSpec(
                model=model,
                data=data if adapters else _without_dev(data),
                adapters=adapters,
                training=config.training if adapters else None,
                evaluation=config.evaluation.for_task(written=data.written),
                seed=config.seed,
                parent=stages[-1] if stages else None,
                device=config.device,
            )
        )
    method = method_name(config.method.stages)
    return Run(name, tuple(overrides), method, config.epochs, tuple(stages))


def _without_dev(data: DataSettings) -> DataSettings:
    """A task whose dev rows are not read."""
    return dataclasses.replace(data, dev_split=None, dev_size=0.0)


def _identified(source: Source, name: str | None) -> dict[str, Any]:
    """What a located model and a located task have in common; ``name`` is the asked one."""
    return {
        "revision": source.revision,
        "name": name or Path(source.location).name,
        "content": source.content,
    }


def _adapters(
    config: HeftConfig, names: Iterable[str], sources: Sources
) -> tuple[AdapterSettings, ...]:
    """The settings of the adapters that a stage trains; several adapters share one schedule."""
    adapters = [
        dataclasses.replace(adapter.resolved(), init_content=sources.adapter(adapter))
        for adapter in map(config.adapter, names)
    ]
    if len(adapters) > 1:
        shared = vars(config.joint)
        adapters = [dataclasses.replace(adapter, **shared) for adapter in adapters]
    return tuple(adapters)
