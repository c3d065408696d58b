"""A run to track, read from a sweep's files."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from heft_pipeline.config import HeftConfig, TrackingConfig, register
from heft_pipeline.errors import UserError
from heft_pipeline.metrics import read_metrics
from heft_pipeline.spec import StageSpec, from_json
from heft_pipeline.store import Store
from heft_pipeline.sweep import PLAN, Sweep
from heft_pipeline.validation import check


@dataclass(frozen=True)
class TrackedRun:
    """What there is to send of a run.

    Attributes:
        sweep: The sweep's name.
        name: The run's name.
        method: The run's method.
        status: ``complete``, ``failed``, ``running`` or ``incomplete``.
        tags: The method, and what ``tracking.tags`` says.
        config: The resolved config without local paths and tracking, with the identity of the
            model, the data and each stage.
        prefixes: Of each stage's curves, e.g. ``("lora", "reft", "lora2")``.
        lines: What training logged, numbered by their place: the lines of the first stage, then
            those of the second. A number never comes to mean another line, so a tracker that
            has taken n lines goes on at number n. Keys are prefixed (``lora/loss``).
        summary: Results and costs; the status alone while the run is not complete.
        predictions: The last stage's ``predictions.parquet`` where it is wanted and there.
        adapters: (prefix, stage, folder) of each adapter that is wanted and there.
        fingerprints: Of the run's stages.
    """

    sweep: str
    name: str
    method: str
    status: str
    tags: tuple[str, ...]
    config: Mapping[str, Any]
    prefixes: tuple[str, ...]
    lines: tuple[Mapping[str, float], ...]
    summary: Mapping[str, Any]
    predictions: Path | None
    adapters: tuple[tuple[str, StageSpec, Path], ...]
    fingerprints: tuple[str, ...]

    @property
    def id(self) -> str:
        """16 hex digits that follow from the sweep, the run and its stages.

        A requeued job or a run sent again goes on in the same place; a run of the same name that
        stands on other stages does not.
        """
        text = "/".join([self.sweep, self.name, *self.fingerprints])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def digest(self, **target: Any) -> str:
        """Hash all that a tracker is sent.

        Args:
            **target: Where it is sent to.

        Returns:
            A SHA-256 in hex.
        """
        content = {field: getattr(self, field) for field in ("config", "tags", "summary", "lines")}
        extras = [bool(self.predictions), [prefix for prefix, _, _ in self.adapters]]
        text = json.dumps([self.id, content, extras, target], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class PlannedRun:
    """A run as the sweep's plan lists it; cheap to make, for sweeps of thousands of runs.

    Attributes:
        sweep: The sweep.
        entry: The run's entry in ``plan.json``.
        stages: The plan's stages, by fingerprint, as JSON-ready data.
    """

    sweep: Sweep
    entry: Mapping[str, Any]
    stages: Mapping[str, Mapping[str, Any]]

    @property
    def name(self) -> str:
        """The run's name."""
        return str(self.entry["name"])

    @property
    def keys(self) -> list[str]:
        """The fingerprints of its stages, in training order."""
        return list(self.entry["stages"])

    @property
    def folder(self) -> Path:
        """The run's folder in the sweep."""
        return self.sweep.folder / "runs" / self.name

    @property
    def stage_at_work(self) -> str | None:
        """The fingerprint of its first stage that is not complete; None where all are."""
        return next((key for key in self.keys if not self.sweep.store.is_complete(key)), None)

    @property
    def status(self) -> str:
        """``complete``, ``failed``, ``running`` or ``incomplete``, as the stages' files tell it."""
        key = self.stage_at_work
        state = self.sweep.store.state(key) if key else "complete"
        return state if state in ("complete", "failed", "running") else "incomplete"

    @cached_property
    def config(self) -> HeftConfig:
        """The run's resolved config.

        Raises:
            UserError: It is missing or does not fit this version.
        """
        path = self.folder / ".hydra" / "config.yaml"
        try:
            raw = yaml.safe_load(path.read_text())
            # ${now:...} would be another time; the folder says which it was.
            raw["sweep"] = self.sweep.name
            register()
            merged = OmegaConf.merge(OmegaConf.structured(HeftConfig), OmegaConf.create(raw))
            assert isinstance(merged, DictConfig)
            config = OmegaConf.to_object(merged)
        except (OSError, yaml.YAMLError, OmegaConfBaseException) as error:
            raise UserError(f"{path} cannot be read: {error}") from error
        assert isinstance(config, HeftConfig)
        check(config)
        return config

    def tracked(self, tracking: TrackingConfig) -> TrackedRun:
        """Read all that there is to send of the run now.

        Args:
            tracking: Says what is wanted besides curves and results.

        Returns:
            The run.

        Raises:
            UserError: Its config cannot be read.
        """
        store = self.sweep.store
        stages = [from_json(self.stages[key]) for key in self.keys]
        status = self.status
        done = [result for result in map(store.result, self.keys) if result is not None]
        complete = len(done) == len(stages)
        prefixes = stage_prefixes(stages)
        predictions = store.folder(self.keys[-1]) / "predictions.parquet"
        adapters = [
            (prefix, stage, store.adapter(stage))
            for prefix, stage in zip(prefixes, stages, strict=True)
            if stage.training and store.is_complete(stage.fingerprint)
        ]
        summary = _summary(done, self.entry) if complete else {}
        return TrackedRun(
            sweep=self.sweep.name,
            name=self.name,
            method=self.entry["method"],
            status="complete" if complete else status,
            tags=tuple(dict.fromkeys([self.entry["method"], *tracking.tags])),
            config=_shown_config(self.config, stages, self.entry),
            prefixes=tuple(prefixes),
            lines=tuple(_lines(store, self.keys, prefixes)),
            summary={"status": "complete" if complete else status, **summary},
            predictions=predictions if complete and tracking.log_predictions else None,
            adapters=tuple(adapters) if tracking.log_adapter else (),
            fingerprints=tuple(self.keys),
        )


def planned_runs(sweep: Sweep) -> list[PlannedRun]:
    """The runs of a sweep, in the order they were asked for.

    Args:
        sweep: The sweep.

    Returns:
        The runs.

    Raises:
        UserError: The folder is no sweep.
    """
    if not (sweep.folder / PLAN).is_file():
        raise UserError(
            f"{sweep.folder} is not a sweep: it has no {PLAN}; give a folder like "
            "outputs/sweeps/NAME"
        )
    plan = sweep.plan()
    return [PlannedRun(sweep, entry, plan["stages"]) for entry in plan["runs"]]


def stage_prefixes(stages: Sequence[StageSpec]) -> list[str]:
    """A prefix for each stage's curves: its kind, numbered from the second of a kind on.

    Args:
        stages: A run's stages.

    Returns:
        For instance ``["lora", "reft", "lora2"]``.
    """
    kinds = [stage.kind for stage in stages]
    counts = [kinds[: i + 1].count(kind) for i, kind in enumerate(kinds)]
    return [kind if n == 1 else f"{kind}{n}" for kind, n in zip(kinds, counts, strict=True)]


def _lines(
    store: Store, keys: Sequence[str], prefixes: Sequence[str]
) -> Iterator[Mapping[str, float]]:
    for key, prefix in zip(keys, prefixes, strict=True):
        # Asked before reading: once complete, the file is whole, and what follows has its numbers.
        complete = store.is_complete(key)
        for line in read_metrics(store.folder(key) / "metrics.jsonl"):
            yield {f"{prefix}/{name}": value for name, value in line.items() if _is_number(value)}
        if not complete:
            return


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _summary(results: Sequence[Mapping[str, Any]], entry: Mapping[str, Any]) -> dict[str, Any]:
    from heft_pipeline.report.statistics import wilson_interval  # imports scipy

    last = results[-1]
    correct = round(last["accuracy"] * last["n_eval"])
    low, high = wilson_interval(correct, last["n_eval"])
    seconds = sum(r["train_seconds"] for r in results)
    examples = sum(r["train_examples"] for r in results)
    return {
        "accuracy": last["accuracy"],
        "accuracy_low": low,
        "accuracy_high": high,
        "n_eval": last["n_eval"],
        "trainable_params": sum(r["trainable_params"] for r in results),
        "train_seconds": seconds,
        "train_tflop": sum(r["train_tflop"] for r in results),
        "peak_memory_mb": max(r["peak_memory_mb"] for r in results),
        "examples_per_second": examples / seconds if seconds else 0.0,
        "total_epochs": entry["total_epochs"],
    }


def _shown_config(
    config: HeftConfig, stages: Sequence[StageSpec], entry: Mapping[str, Any]
) -> dict[str, Any]:
    """The config as others may see it: a folder of this machine becomes its name and digest."""
    shown = dataclasses.asdict(config)
    del shown["tracking"], shown["output_dir"]
    model, data = stages[-1].model, stages[-1].data
    shown["model"]["content"], shown["data"]["content"] = model.content, data.content
    if model.revision is None and not config.model.id.startswith("builtin:"):
        shown["model"]["id"] = Path(model.id).name
    if data.revision is None:  # data.path was read, whatever data.id says
        shown["data"]["id"] = None
        if not str(config.data.path).startswith("builtin:"):
            shown["data"]["path"] = Path(data.location).name
    for name in ("lora", "reft"):
        folder = shown[name]["init_from"]
        specs = [spec for stage in stages if (spec := getattr(stage, name)) is not None]
        if folder is not None:
            shown[name]["init_from"] = Path(folder).name
            shown[name]["init_content"] = specs[-1].init_content if specs else None
    shown["method"]["name"] = entry["method"]
    shown["total_epochs"] = entry["total_epochs"]
    shown["stages"] = {
        prefix: stage.fingerprint
        for prefix, stage in zip(stage_prefixes(stages), stages, strict=True)
    }
    return shown
