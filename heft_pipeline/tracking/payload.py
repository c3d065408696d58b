"""What there is to send of a run, read from a sweep's files."""

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

from heft_pipeline.adapters.kind import kinds
from heft_pipeline.declare_settings import Settings
from heft_pipeline.errors import UserError
from heft_pipeline.plan.graph import refuse_paths
from heft_pipeline.plan.stage_spec import StageSpec, from_json
from heft_pipeline.settings.checks import typed
from heft_pipeline.settings.schema import HeftConfig, register, schema
from heft_pipeline.settings.tracking import TrackingSettings
from heft_pipeline.store.example_clusters import interval_of
from heft_pipeline.store.stage_folders import Store
from heft_pipeline.store.sweep_folders import PLAN, Sweep
from heft_pipeline.training.metrics import read_metrics


@dataclass(frozen=True)
class TrackedRun:
    """What there is to send of a run.

    Attributes:
        sweep: The sweep's name.
        name: The run's name.
        method: The run's method.
        status: ``complete``, ``failed``, ``running`` or ``incomplete``.
        tags: The method, then ``tracking.tags``.
        config: The resolved config without local paths and tracking settings, with the identity
            of the model, the data and each stage.
        prefixes: The prefix of each stage's curves, e.g. ``("lora", "reft", "lora2")``.
        lines: What training logged: the lines of the first stage, then those of the second, and
            so on. A line's place is its number, which never comes to mean another line, so a
            tracker that has n lines continues at number n. Keys are prefixed (``lora/loss``).
        summary: Results and costs; only the status while the run is not complete.
        predictions: The last stage's ``predictions.parquet``; None where it does not exist or is
            not asked for.
        adapters: Prefix, stage and folder of each adapter that exists and is asked for.
        fingerprints: The fingerprints of the run's stages.
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

        So a requeued job, or a run that is sent again, continues the same run of the tracker; a
        run of the same name with other stages is a new one.
        """
        text = "/".join([self.sweep, self.name, *self.fingerprints])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def digest(self, **target: Any) -> str:
        """Hash everything that a tracker is sent.

        Args:
            **target: Where it is sent.

        Returns:
            A SHA-256 in hex.
        """
        content = {field: getattr(self, field) for field in ("config", "tags", "summary", "lines")}
        extras = [bool(self.predictions), [prefix for prefix, _, _ in self.adapters]]
        text = json.dumps([self.id, content, extras, target], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class PlannedRun:
    """A run as the sweep's plan lists it; cheap enough for sweeps of thousands of runs.

    Attributes:
        sweep: The sweep.
        entry: The run's entry in ``plan.json``.
        stages: The plan's stages by fingerprint, as JSON-ready data.
        text: What the plan says about the text that forgetting is measured on.
    """

    sweep: Sweep
    entry: Mapping[str, Any]
    stages: Mapping[str, Mapping[str, Any]]
    text: Mapping[str, Any] | None

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
        """``complete``, ``failed``, ``running`` or ``incomplete``, as its stages' files say."""
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
            raw = yaml.safe_load(path.read_text(encoding="utf-8"))
            # ${now:...} would resolve to the present; the folder has the sweep's own time.
            raw["sweep"] = self.sweep.name
            register()
            merged = OmegaConf.merge(schema(), OmegaConf.create(raw))
            assert isinstance(merged, DictConfig)
            return typed(merged)
        except (OSError, yaml.YAMLError, OmegaConfBaseException) as error:
            raise UserError(f"{path} cannot be read: {error}") from error

    def tracked(self, tracking: TrackingSettings) -> TrackedRun:
        """Read everything that there is to send of the run now.

        Args:
            tracking: The settings, which say what is sent besides curves and results.

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
            if stage.adapters and store.is_complete(stage.fingerprint)
        ]
        summary = (
            _summary(done, self.entry, interval_of(self.sweep, stages[-1], done[-1]))
            if complete
            else {}
        )
        if complete and predictions.is_file():
            summary |= _beside_accuracy(store, stages, predictions, self.text)
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
    """The runs of a sweep, in the order in which they were asked for.

    Args:
        sweep: The sweep.

    Returns:
        The runs.

    Raises:
        UserError: The folder is not a sweep, or another version wrote it.
    """
    if not (sweep.folder / PLAN).is_file():
        raise UserError(
            f"{sweep.folder} is not a sweep: it has no {PLAN}; give a folder like "
            "outputs/sweeps/NAME"
        )
    plan = sweep.plan()
    refuse_paths(plan)
    text = plan.get("forgetting")
    return [PlannedRun(sweep, entry, plan["stages"], text) for entry in plan["runs"]]


def own_files(folder: Path) -> list[Path]:
    """The files in a folder and below it, without what links lead to outside.

    Args:
        folder: The folder of an adapter.

    Returns:
        Their paths, sorted.
    """
    inside = folder.resolve()
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [file for file in files if file.resolve().is_relative_to(inside)]


def stage_prefixes(stages: Sequence[StageSpec]) -> list[str]:
    """A prefix for each stage's curves: its kind, with a number from the second of a kind on.

    Args:
        stages: A run's stages.

    Returns:
        For instance ``["lora", "reft", "lora2"]``.
    """
    names = [stage.kind for stage in stages]
    counts = [names[: i + 1].count(name) for i, name in enumerate(names)]
    return [name if n == 1 else f"{name}{n}" for name, n in zip(names, counts, strict=True)]


def _lines(
    store: Store, keys: Sequence[str], prefixes: Sequence[str]
) -> Iterator[Mapping[str, float]]:
    for key, prefix in zip(keys, prefixes, strict=True):
        # Asked before reading: a complete stage's file is whole, so the lines of the next stage
        # have their final numbers.
        complete = store.is_complete(key)
        for line in read_metrics(store.folder(key) / "metrics.jsonl"):
            yield {f"{prefix}/{name}": value for name, value in line.items() if _is_number(value)}
        if not complete:
            return


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _summary(
    results: Sequence[Mapping[str, Any]],
    entry: Mapping[str, Any],
    interval: tuple[float, float],
) -> dict[str, Any]:
    last = results[-1]
    low, high = interval

    def total(key: str) -> float | None:
        """The sum over stages; None where it is not known of one that was trained elsewhere."""
        known = [r[key] for r in results]
        return None if None in known else sum(known)

    seconds, examples = total("train_seconds"), total("train_examples")
    peaks = [r["peak_memory_mb"] for r in results]
    return {
        "accuracy": last["accuracy"],
        "accuracy_low": low,
        "accuracy_high": high,
        "n_eval": last["n_eval"],
        "trainable_params": sum(r["trainable_params"] for r in results),
        "train_seconds": seconds,
        "train_tflop": total("train_tflop"),
        "peak_memory_mb": None if None in peaks else max(peaks),
        "examples_per_second": _speed(examples, seconds),
        "total_epochs": entry["total_epochs"],
    }


def _speed(examples: float | None, seconds: float | None) -> float | None:
    """Examples per second of training; 0 where there was none, None where it is not known."""
    if examples is None or seconds is None:
        return None
    return examples / seconds if seconds else 0.0


def _beside_accuracy(
    store: Store, stages: Sequence[StageSpec], predictions: Path, text: Mapping[str, Any] | None
) -> dict[str, float]:
    """``ece``, ``brier`` and ``forgetting`` of a complete run, those that are known."""
    import pandas as pd

    from heft_pipeline.evidence.calibration import plain_scores
    from heft_pipeline.store.beside_predictions import choice_table, read_text_losses

    table = choice_table(pd.read_parquet(predictions))
    scores = table and plain_scores(table.log_probabilities, table.gold)
    found = dict(zip(("ece", "brier"), scores or (), strict=False))
    losses = read_text_losses(store, text, stages)
    if losses is not None and losses.rise is not None:
        found["forgetting"] = losses.rise
    return found


def _shown_config(
    config: HeftConfig, stages: Sequence[StageSpec], entry: Mapping[str, Any]
) -> dict[str, Any]:
    """The config as others may see it: local folders are replaced by their names and digests."""
    shown = _plain(config)
    del shown["tracking"], shown["output_dir"]
    model, data = stages[-1].model, stages[-1].data
    shown["model"]["content"], shown["data"]["content"] = model.content, data.content
    if model.revision is None and not config.model.id.startswith("builtin:"):
        shown["model"]["id"] = Path(model.id).name
    if data.revision is None:  # data.path was read and data.id ignored
        shown["data"]["id"] = None
        if not str(config.data.path).startswith("builtin:"):
            shown["data"]["path"] = Path(str(data.location)).name
    shown["report"]["forgetting"] = Path(config.report.forgetting).name
    for kind in kinds():
        folder = config.adapter(kind).init_from
        if folder is not None:
            trained = [a for stage in stages for a in stage.adapters if a.kind == kind]
            shown[kind]["init_from"] = Path(folder).name
            shown[kind]["init_content"] = trained[-1].init_content if trained else None
    shown["method"]["name"] = entry["method"]
    shown["total_epochs"] = entry["total_epochs"]
    shown["stages"] = {
        prefix: stage.fingerprint
        for prefix, stage in zip(stage_prefixes(stages), stages, strict=True)
    }
    return shown


def _plain(settings: Settings) -> dict[str, Any]:
    """A section as plain data, without what only planning finds out."""
    plain: dict[str, Any] = {}
    for one in dataclasses.fields(settings):  # type: ignore[arg-type]
        value = getattr(settings, one.name)
        if isinstance(value, Settings):
            value = _plain(value)
        elif isinstance(value, tuple):
            value = list(value)
        elif isinstance(value, dict):
            value = dict(value)
        if not one.metadata.get("omegaconf_ignore"):
            plain[one.name] = value
    return plain
