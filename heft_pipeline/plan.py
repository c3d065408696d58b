"""From configs to runs, and from runs to the unique stages that they stand on."""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from heft_pipeline.config import HeftConfig, JointConfig, LoraConfig, ReftConfig, method_name
from heft_pipeline.sources import Sources
from heft_pipeline.spec import (
    DataSpec,
    EvaluationSpec,
    LoraSpec,
    ModelSpec,
    ReftSpec,
    StageSpec,
    TrainingSpec,
    from_json,
    to_json,
)


@dataclass(frozen=True)
class Run:
    """One point of a sweep.

    Attributes:
        name: Its folder's name in the sweep.
        overrides: What was asked on the command line for it.
        method: ``lora``, ``reft``, ``heft``, ``joint``, ``base`` or kinds joined with ``+``.
        epochs: The config's ``epochs``.
        stages: Its stages in training order; one ``base`` stage where nothing is trained.
    """

    name: str
    overrides: tuple[str, ...]
    method: str
    epochs: int
    stages: tuple[StageSpec, ...]

    @property
    def last(self) -> StageSpec:
        """The stage whose predictions are the run's."""
        return self.stages[-1]

    def to_json(self) -> dict[str, Any]:
        """The run as it stands in ``plan.json``."""
        loras = [s.lora for s in self.stages if s.lora]
        refts = [s.reft for s in self.stages if s.reft]
        return {
            "name": self.name,
            "overrides": list(self.overrides),
            "method": self.method,
            "epochs": self.epochs,
            "total_epochs": sum(s.training.epochs for s in self.stages if s.training),
            "lora_rank": loras[-1].rank if loras else None,
            "reft_rank": refts[-1].rank if refts else None,
            "seed": self.last.seed,
            "model": self.last.model.name,
            "data": self.last.data.name,
            "stages": [s.fingerprint for s in self.stages],
        }


@dataclass(frozen=True)
class Plan:
    """The graph of unique stages that a sweep needs.

    Attributes:
        runs: The sweep's runs, in the order they were asked for.
        baselines: Evaluations of the untouched models, for the report; see :func:`untouched`.
    """

    runs: tuple[Run, ...]
    baselines: tuple[StageSpec, ...] = ()

    @cached_property
    def stages(self) -> dict[str, StageSpec]:
        """Each unique stage once, by fingerprint, parents before children."""
        found: dict[str, StageSpec] = {}
        for stage in (*(s for run in self.runs for s in run.stages), *self.baselines):
            found.setdefault(stage.fingerprint, stage)
        return dict(sorted(found.items(), key=lambda item: len(item[1].chain)))

    @property
    def asked(self) -> int:
        """How many stages the runs ask for, counted with repeats."""
        return sum(len(run.stages) for run in self.runs)

    @property
    def unique(self) -> int:
        """How many of :attr:`stages` the runs need; the others are baselines alone."""
        return len({stage.fingerprint for run in self.runs for stage in run.stages})

    def to_json(self) -> dict[str, Any]:
        """The plan as it stands in ``plan.json``."""
        return {
            "runs": [run.to_json() for run in self.runs],
            "baselines": [stage.fingerprint for stage in self.baselines],
            "stages": {key: to_json(stage) for key, stage in self.stages.items()},
        }


def read_plan(data: Mapping[str, Any]) -> Plan:
    """Read what ``plan.json`` holds.

    Args:
        data: The decoded JSON.

    Returns:
        The plan.
    """
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


def untouched(runs: Iterable[Run]) -> tuple[StageSpec, ...]:
    """The evaluations of the models before any training that runs are to be compared with.

    Args:
        runs: The runs.

    Returns:
        One ``base`` stage for each model and evaluation among them. Nothing is trained, so the
        seed says nothing; it is 0, for all sweeps to share the stage.
    """
    found: dict[str, StageSpec] = {}
    for run in runs:
        base = dataclasses.replace(
            run.stages[0], kind="base", lora=None, reft=None, training=None, seed=0
        )
        found.setdefault(base.fingerprint, base)
    return tuple(found.values())


def make_run(config: HeftConfig, sources: Sources, name: str, overrides: Iterable[str]) -> Run:
    """Work out a run's stages.

    Args:
        config: The run's checked config.
        sources: Locates the model, the data and the adapters to start from.
        name: The run's folder name.
        overrides: What was asked on the command line for it.

    Returns:
        The run.

    Raises:
        UserError: The model, the data or an adapter cannot be found.
    """
    model = _model(config, sources)
    data = _data(config, sources)
    stages: list[StageSpec] = []
    for kind in config.method.stages or ["base"]:
        stages.append(
            StageSpec(
                kind=kind,
                model=model,
                data=data,
                lora=_lora(config.lora, sources) if kind in ("lora", "joint") else None,
                reft=_reft(config.reft, sources) if kind in ("reft", "joint") else None,
                training=_training(config, kind),
                evaluation=EvaluationSpec(config.evaluation.mode, config.evaluation.batch_size),
                seed=config.seed,
                parent=stages[-1] if stages else None,
                device=config.device,
            )
        )
    method = method_name(config.method.stages)
    return Run(name, tuple(overrides), method, config.epochs, tuple(stages))


def _model(config: HeftConfig, sources: Sources) -> ModelSpec:
    model = config.model
    source = sources.model(model.id, model.revision)
    return ModelSpec(
        id=source.location,
        revision=source.revision,
        name=model.name or Path(source.location).name,
        content=source.content,
        dtype=model.dtype,
        quantization=model.quantization,
        attn_implementation=model.attn_implementation,
        trust_remote_code=model.trust_remote_code,
    )


def _data(config: HeftConfig, sources: Sources) -> DataSpec:
    data = config.data
    source = sources.data(data.id, data.path, data.revision)
    return DataSpec(
        location=source.location,
        revision=source.revision,
        name=data.name or Path(source.location).name,
        content=source.content,
        subset=data.subset,
        train_split=data.train_split,
        dev_split=data.dev_split,
        eval_split=data.eval_split,
        dev_size=data.dev_size,
        max_train_rows=data.max_train_rows,
        max_eval_rows=data.max_eval_rows,
        prompt=data.prompt,
        answer_column=data.answer_column,
        choices=tuple((str(label), text) for label, text in data.choices.items()),
        id_column=data.id_column,
        truncate_column=data.truncate_column,
        max_prompt_tokens=data.max_prompt_tokens,
    )


def _lora(lora: LoraConfig, sources: Sources) -> LoraSpec:
    modules = lora.target_modules
    return LoraSpec(
        rank=lora.rank,
        alpha=lora.alpha if lora.alpha is not None else 2.0 * lora.rank,
        dropout=lora.dropout,
        target_modules=modules if isinstance(modules, str) else tuple(sorted(modules)),
        use_rslora=lora.use_rslora,
        init_from=lora.init_from,
        init_content=sources.adapter("lora.init_from", lora.init_from),
        learning_rate=lora.learning_rate,
        weight_decay=lora.weight_decay,
    )


def _reft(reft: ReftConfig, sources: Sources) -> ReftSpec:
    return ReftSpec(
        intervention=reft.intervention,
        rank=reft.rank,
        layers=reft.layers if isinstance(reft.layers, str) else tuple(sorted(reft.layers)),
        positions=reft.positions,
        share_weights=reft.share_weights,
        dropout=reft.dropout,
        add_bias=reft.add_bias,
        engine=reft.engine,
        reuse=reft.reuse,
        reuse_budget_gib=reft.reuse_budget_gib,
        merge_parent=reft.merge_parent,
        init_from=reft.init_from,
        init_content=sources.adapter("reft.init_from", reft.init_from),
        learning_rate=reft.learning_rate,
        weight_decay=reft.weight_decay,
    )


def _training(config: HeftConfig, kind: str) -> TrainingSpec | None:
    if kind == "base":
        return None
    of_kind: dict[str, LoraConfig | ReftConfig | JointConfig] = {
        "lora": config.lora,
        "reft": config.reft,
        "joint": config.joint,
    }
    stage = of_kind[kind]
    training = config.training
    return TrainingSpec(
        epochs=stage.epochs,
        batch_size=stage.batch_size,
        warmup_ratio=stage.warmup_ratio,
        lr_scheduler=training.lr_scheduler,
        max_grad_norm=training.max_grad_norm,
        selection=training.selection,
        early_stopping_patience=training.early_stopping_patience,
        micro_batch_tokens=training.micro_batch_tokens,
        gradient_checkpointing=training.gradient_checkpointing,
        compile=training.compile,
        log_every_steps=training.log_every_steps,
        checkpoint_every_seconds=training.checkpoint_every_seconds,
    )
