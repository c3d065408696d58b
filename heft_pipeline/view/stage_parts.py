"""What the page of a stage shows: each part by itself, so that a broken file spoils no other."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from heft_pipeline.command_line.secrets_kept import masked
from heft_pipeline.errors import UserError
from heft_pipeline.files.untrusted import MOST_BYTES
from heft_pipeline.plan.stage_spec import StageSpec
from heft_pipeline.report import words
from heft_pipeline.store.integrity import METRICS, PREDICTIONS
from heft_pipeline.storekeeping.origins import made_by
from heft_pipeline.training.metrics import read_metrics
from heft_pipeline.view.guarded_store import GuardedStore
from heft_pipeline.view.prediction_pages import Asked, PredictionPage, prediction_page, read_table
from heft_pipeline.view.remembered import Remembered
from heft_pipeline.view.svg_curves import Curve, stage_curves
from heft_pipeline.view.sweep_looks import Looks, sentence
from launch.status import StageStatus

LOG = "stage.log"
_TAIL_BYTES = 64 * 2**10
#: Stands for what is not there.
UNKNOWN = "\N{EN DASH}"
_SECTIONS = ("model", "data", "training", "evaluation")
T = TypeVar("T")


@dataclass(frozen=True)
class Part(Generic[T]):
    """A part of a page, or why it is not there."""

    value: T | None = None
    why: str = ""


def part(make: Callable[[], T]) -> Part[T]:
    """A part of a page, whatever the files hold that it is made of.

    Args:
        make: Makes it; None where there is nothing to show.
    """
    try:
        return Part(make())
    except Exception as error:  # broken and foreign files lead to any
        return Part(why=sentence(error))


@dataclass(frozen=True)
class LogTail:
    """The end of a log, and whether something is before it."""

    text: str
    cut: bool


@dataclass(frozen=True)
class StagePage:
    """The page of a stage.

    Attributes:
        fingerprint: The stage's.
        label: A name for people.
        state: Its state, as the files and SLURM say.
        stage: Its settings; None where they cannot be read.
        status: Its progress; None where that is not known.
        why: Why its settings or progress are not known; empty if they are.
        facts: What came of it.
        users: The sweeps that need it, with their runs.
        parents: The stages that it was trained on: fingerprint, label and state.
        settings: Its settings by section.
        curves: Its curves.
        log: The end of its log.
        predictions: A page of its answers.
    """

    fingerprint: str
    label: str
    state: str
    stage: StageSpec | None
    status: StageStatus | None
    why: str
    facts: Part[list[tuple[str, str]]]
    users: list[tuple[str, list[str]]]
    parents: list[tuple[str, str, str]]
    settings: Part[list[tuple[str, list[tuple[str, str]]]]]
    curves: Part[list[Curve]]
    log: Part[LogTail | None]
    predictions: Part[PredictionPage | None]

    @property
    def version(self) -> list[object]:
        """What changes when more than the progress' numbers do."""
        shown = self.curves.value or []
        log = self.log.value.text[-200:] if self.log.value else ""
        return [self.state, [str(curve.drawing) for curve in shown], log, self.predictions.why]


class StagePages:
    """Makes the pages of stages.

    Args:
        looks: Looks at the store.
    """

    def __init__(self, looks: Looks) -> None:
        self._looks = looks
        self._tables = Remembered(most=3)

    def find(self, fingerprint: str) -> GuardedStore | None:
        """The store with a stage; None where it has no such stage."""
        store = GuardedStore(self._looks.output_dir)
        there = (store.output_dir / "stages" / fingerprint).is_dir()
        return store if fingerprint.isalnum() and there else None

    def make(self, store: GuardedStore, fingerprint: str, asked: Asked) -> StagePage:
        """The page of a stage.

        Args:
            store: What :meth:`find` gave.
            fingerprint: The stage's.
            asked: Which predictions are asked for.
        """
        stage, status, why = self._known(store, fingerprint)
        state = status.state if status else _state(store, fingerprint)
        folder = store.folder(fingerprint)
        return StagePage(
            fingerprint,
            status.label if status else "a stage that cannot be read",
            state,
            stage,
            status,
            why,
            part(lambda: list(_facts(stage, store.result(fingerprint)))),
            self._looks.users(fingerprint),
            [
                (one.fingerprint, one.label, _state(store, one.fingerprint))
                for one in (stage.chain[:-1] if stage else ())
            ],
            part(lambda: list(_settings(stage)) if stage else []),
            part(lambda: stage_curves(_metrics(folder))),
            part(lambda: _tail(folder / LOG)),
            part(lambda: self._predictions(folder, asked, state)),
        )

    def status(self, store: GuardedStore, fingerprint: str) -> StageStatus | None:
        """A stage's progress; None where that is not known."""
        return self._known(store, fingerprint)[1]

    def _known(
        self, store: GuardedStore, fingerprint: str
    ) -> tuple[StageSpec | None, StageStatus | None, str]:
        if foreign := store.foreign(fingerprint):
            return None, None, f"The stage {foreign}, so it is not read."
        stage = None
        try:
            stage = store.stage(fingerprint)
            if stage is None:
                return None, None, "Its settings are missing, broken or of another version."
            return stage, self._looks.status(store, stage), ""
        except Exception as error:  # its other files are shown
            return stage, None, f"Its progress is not known: {sentence(error)}"

    def _predictions(self, folder: Path, asked: Asked, state: str) -> PredictionPage | None:
        path = folder / PREDICTIONS
        try:
            found = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        if state == "running" and found.st_size == 0:
            return None
        key = (path, found.st_ino, found.st_mtime_ns, found.st_size)
        table = self._tables.get(key, lambda: read_table(path), least=600.0)
        return prediction_page(table, asked)


def _state(store: GuardedStore, fingerprint: str) -> str:
    try:
        return "not read" if store.foreign(fingerprint) else store.state(fingerprint)
    except OSError:
        return "unknown"


def _metrics(folder: Path) -> list[dict[str, Any]]:
    path = folder / METRICS
    if path.is_file() and path.stat().st_size > MOST_BYTES:
        raise UserError(f"{METRICS} has more than {MOST_BYTES // 2**20} MB; it is not drawn")
    return read_metrics(path)


def _tail(path: Path) -> LogTail | None:
    """The end of a log; None where there is none, or an empty one."""
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(max(0, size - _TAIL_BYTES))
            read = stream.read(_TAIL_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return None
    cut = size > _TAIL_BYTES
    if cut:  # from the first whole line on
        read = read.partition(b"\n")[2] or read
    text = masked(read.decode("utf-8", "replace"))
    return LogTail(text, cut) if text.strip() else None


def _facts(stage: StageSpec | None, result: Mapping[str, Any] | None) -> Iterator[tuple[str, str]]:
    if result is None:
        return
    correct, total = result["accuracy"] * result["n_eval"], result["n_eval"]
    within = ""
    if total and stage is not None and stage.data.cluster_column is None:
        from heft_pipeline.evidence.intervals import wilson_interval

        within = f" (95 % interval {words.interval(*wilson_interval(correct, total))})"
    yield "accuracy", f"{words.share(result['accuracy'])} of {total:,} examples{within}"
    for key, name, write in (
        ("best_dev_accuracy", "dev accuracy", words.share),
        ("best_epoch", "epoch that is kept", "{:,}".format),
        ("steps", "optimiser steps", "{:,}".format),
        ("n_train", "trained on", "{:,} examples".format),
        ("trainable_params", "trainable parameters", "{:,}".format),
        ("train_seconds", "training", words.seconds),
        ("wall_seconds", "in all", words.seconds),
        ("train_tflop", "TFLOP of training", words.number),
        ("peak_memory_mb", "peak memory", "{:,.0f} MB".format),
        ("dtype", "computed in", str),
    ):
        if result.get(key) is not None:
            yield name, write(result[key])
    for note in result.get("notes", []):
        yield "note", str(note)
    yield from made_by(dict(result))


def _settings(stage: StageSpec) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    for adapter in stage.adapters:
        yield adapter.title, _written(dataclasses.asdict(adapter))
    for name in _SECTIONS:
        section = getattr(stage, name)
        if section is not None:
            yield name, _written(dataclasses.asdict(section))
    yield "other", [("seed", str(stage.seed)), ("device", stage.device)]


def _written(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(key, UNKNOWN if value is None else str(value)) for key, value in values.items()]
