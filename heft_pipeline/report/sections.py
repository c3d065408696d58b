"""Which runs may be compared with each other, and which differ in nothing but their seed."""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from heft_pipeline.adapters.kind import AdapterSettings, Schedule
from heft_pipeline.data.rows import RowClusters, read_clusters
from heft_pipeline.data.settings import DataSettings
from heft_pipeline.declare_settings import Settings, comparable
from heft_pipeline.errors import UserError
from heft_pipeline.evidence.clusters import Clusters, numbered
from heft_pipeline.evidence.intervals import accuracy_interval
from heft_pipeline.evidence.strata import Strata
from heft_pipeline.evidence.two_way_variance import Right
from heft_pipeline.plan.stage_spec import StageSpec, made_of
from heft_pipeline.report.records import RunRecord, damaged
from heft_pipeline.store.beside_predictions import chance_accuracy, right_logprobs
from heft_pipeline.store.example_clusters import clusters

#: The settings of a task that decide only what is trained on; all others that can change a result
#: decide which examples are evaluated, and how they read.
_OF_TRAINING = ("train_split", "dev_split", "dev_size", "max_train_rows")
_EVALUATED = tuple(
    one.name
    for one in dataclasses.fields(DataSettings)
    if one.metadata.get("identity", True) and one.name not in _OF_TRAINING
)
_MODEL = ("content", "dtype", "quantization", "attn_implementation")
#: The settings of a stage's schedule, and those that every kind of adapter has.
_SCHEDULE, _ANY = (
    {field.name for field in dataclasses.fields(section)} for section in (Schedule, AdapterSettings)
)


@dataclass(frozen=True)
class Setting:
    """Complete runs that differ in nothing but their seed.

    Attributes:
        runs: One for each seed, ordered by seed.
        variant: The config values, besides method, epochs and rank, that not all settings of
            the section share.
        right: [seeds, examples], how right each answer was, in the section's order.
        logprob: [seeds, examples], the log-probability of the right choice in nats; None where it
            is not known.
        clusters: The examples' clusters; None where they are independent.
        strata: The examples' tasks; None for one.
    """

    runs: tuple[RunRecord, ...]
    variant: dict[str, str]
    right: Right
    logprob: NDArray[np.float64] | None = None
    clusters: Clusters | None = None
    strata: Strata | None = None

    @property
    def method(self) -> str:
        """The method's name."""
        return self.runs[0].method

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds in ascending order."""
        return tuple(run.last.seed for run in self.runs)

    @property
    def epochs(self) -> tuple[int, ...]:
        """The epochs of each stage."""
        return self.runs[0].stage_epochs

    @property
    def total_epochs(self) -> int:
        """The epochs of all stages."""
        return sum(self.epochs)

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks of the adapters, equal ones once."""
        return self.runs[0].ranks

    @property
    def accuracy(self) -> float:
        """The mean accuracy over seeds, as a share."""
        return float(self.right.mean())

    @cached_property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the accuracy, from :func:`accuracy_interval`."""
        return accuracy_interval(self.right, self.clusters, strata=self.strata)

    @cached_property
    def costs(self) -> dict[str, float]:
        """The runs' costs: means over seeds, except for the largest ``peak_memory_mb``.

        ``examples_per_second`` is the speed of training. What is not known of a run is NaN.
        """
        table = pd.DataFrame([run.costs for run in self.runs])
        costs = {str(key): float(value) for key, value in table.mean(skipna=False).items()}
        seconds = costs["train_seconds"]
        return costs | {
            "peak_memory_mb": float(table.peak_memory_mb.max(skipna=False)),
            "examples_per_second": costs["train_examples"] / seconds if seconds else 0.0,
        }

    @property
    def short(self) -> str:
        """Its name in claims, e.g. ``heft@3``."""
        if not self.epochs:
            return self.method
        same = len(set(self.epochs)) == 1
        return f"{self.method}@{self.epochs[0] if same else '+'.join(map(str, self.epochs))}"


@dataclass(frozen=True)
class Section:
    """Runs that were evaluated on the same examples, prompts and model.

    Attributes:
        title: For instance ``tiny on demo``.
        apart: Why it is kept apart from the first section; empty for that one.
        settings: The settings in the order in which they were asked for, without the untouched
            model.
        base: The untouched model; None where it was not evaluated.
        open: The runs that are not complete.
        ids: The examples' ids.
        gold: The examples' right answers.
        clustered: Which examples belong together, as the data has it; None where examples are
            independent.
        clusters: The examples' clusters; None where each example is its own.
        strata: The examples' tasks; None for one.
    """

    title: str
    apart: str
    settings: tuple[Setting, ...]
    base: Setting | None
    open: tuple[RunRecord, ...]
    ids: tuple[str, ...]
    gold: tuple[str, ...]
    clustered: RowClusters | None = None
    clusters: Clusters | None = None
    strata: Strata | None = None

    @cached_property
    def always(self) -> Right:
        """[1, examples], how right it is to give the most frequent answer to each."""
        return np.array([[answer == self.majority[0] for answer in self.gold]])

    @cached_property
    def majority(self) -> tuple[str, float]:
        """The most frequent answer and its share; ``("", 0)`` where nothing is complete."""
        counts = pd.Series(self.gold).value_counts(normalize=True)
        return (str(counts.index[0]), float(counts.iloc[0])) if len(counts) else ("", 0.0)

    @cached_property
    def chance(self) -> float | None:
        """What choosing at random gives where rows have choices of their own; None elsewhere."""
        found = [run.predictions for setting in self.settings for run in setting.runs]
        return next((chance_accuracy(one) for one in found if one is not None), None)

    @cached_property
    def majority_interval(self) -> tuple[float, float]:
        """The 95 % interval of the majority's share."""
        return accuracy_interval(self.always, self.clusters)

    @property
    def spec(self) -> StageSpec:
        """A stage of the section; all its stages have the same model and data."""
        records = [run for setting in self.settings for run in setting.runs]
        return [*records, *(self.base.runs if self.base else ()), *self.open][0].last

    @property
    def seeds(self) -> int:
        """The largest number of seeds that a setting has."""
        return max((len(setting.seeds) for setting in self.settings), default=0)

    @property
    def variants(self) -> bool:
        """Whether settings differ in more than method, epochs and rank."""
        return any(setting.variant for setting in self.settings)


def check_examples(records: Sequence[RunRecord]) -> list[RunRecord]:
    """Mark runs whose predictions are not of the examples that their stages name.

    Args:
        records: The runs of one or more sweeps.

    Returns:
        The runs; a run is damaged where most runs of the same evaluation hold other examples.
    """
    groups: dict[str, list[RunRecord]] = {}
    for record in records:
        if record.complete:
            groups.setdefault(repr(_evaluation(record.last)), []).append(record)
    strays = set()
    for group in groups.values():
        held = [_examples(record) for record in group]
        usual = Counter(held).most_common(1)[0][0]
        strays |= {r.last.fingerprint for r, e in zip(group, held, strict=True) if e != usual}
    return [
        damaged(record, "its predictions.parquet is of other examples than the others'")
        if record.complete and record.last.fingerprint in strays
        else record
        for record in records
    ]


def sections(records: Sequence[RunRecord], cluster_column: str | None = None) -> list[Section]:
    """Group runs by what they were evaluated on; a run shared by several sweeps counts once.

    Args:
        records: The runs of one or more sweeps, checked by :func:`check_examples`.
        cluster_column: The column that dependent examples have in common; empty for none; None
            for what the sweeps noted.

    Returns:
        The sections in the order in which they first appear.

    Raises:
        UserError: The sweeps noted different columns, or a cluster cannot be read.
    """
    unique: dict[str, RunRecord] = {}
    for record in records:
        known = unique.get(record.last.fingerprint)
        if known is None or (record.complete and not known.complete):
            unique[record.last.fingerprint] = record
    groups: dict[str, list[RunRecord]] = {}
    for record in unique.values():
        groups.setdefault(repr(_evaluation(record.last)), []).append(record)
    # A section with nothing but a baseline has nothing to compare.
    kept = [group for group in groups.values() if any(r.name != "base" for r in group)] or [
        *groups.values()
    ]
    first = kept[0][0].last if kept else None
    return [_section(group, first, cluster_column) for group in kept]


def _section(
    records: list[RunRecord], first: StageSpec | None, cluster_column: str | None
) -> Section:
    complete = [record for record in records if record.complete]
    by_setting: dict[str, list[RunRecord]] = {}
    for record in complete:
        by_setting.setdefault(repr(_without_seed(record.last)), []).append(record)
    predictions = complete[0].predictions if complete else None
    ids = [] if predictions is None else list(predictions.id)
    gold = [] if predictions is None else list(predictions.gold)
    own = [runs for runs in by_setting.values() if runs[0].method != "base"]
    base = [runs for runs in by_setting.values() if runs[0].method == "base"]
    variants = _variants([runs[0] for runs in own])
    last = records[0].last
    clustered, groups = _clusters(records, ids, cluster_column)
    return Section(
        title=f"{last.model.name} on {last.data.name}",
        apart=_difference(first, last) if first is not None else "",
        settings=tuple(
            _setting(runs, variant, ids, groups)
            for runs, variant in zip(own, variants, strict=True)
        ),
        # Nothing is trained, so the runs of all its seeds are the same.
        base=_setting(base[0][:1], {}, ids, groups) if base else None,
        open=tuple(record for record in records if not record.complete),
        ids=tuple(ids),
        gold=tuple(map(str, gold)),
        clustered=clustered,
        clusters=groups,
    )


def _clusters(
    records: Sequence[RunRecord], ids: Sequence[str], asked: str | None
) -> tuple[RowClusters | None, Clusters | None]:
    """Which examples belong together: as the data has it, and by number."""
    task = records[0].last.data
    if asked is None:
        sweeps = {record.sweep.folder: record.sweep for record in records}.values()
        noted = [clusters(sweep, task) for sweep in sweeps]
        columns = {one.column if one else "none" for one in noted}
        if len(columns) > 1:
            raise UserError(
                f"the sweeps have data.cluster_column={' and '.join(sorted(columns))} for "
                f"{task.name}; choose with --cluster-column COLUMN (or none)"
            )
        found = noted[0]
    else:
        found = read_clusters(task, asked) if asked else None
    if found is None or not ids:
        return found, None
    if unknown := [id for id in ids if id not in found.of]:
        raise UserError(
            f"data.cluster_column={found.column}: the data has no row {unknown[0]} any more, "
            f"which was evaluated; restore {task.name}, or use --cluster-column none"
        )
    return found, numbered([found.of[id] for id in ids])


def _examples(record: RunRecord) -> str:
    """A digest of the examples that a complete run answered."""
    assert record.predictions is not None
    pairs = zip(record.predictions.id, record.predictions.gold, strict=True)
    return hashlib.sha256(repr(sorted(pairs)).encode()).hexdigest()


def _setting(
    runs: list[RunRecord], variant: dict[str, str], ids: Sequence[str], groups: Clusters | None
) -> Setting:
    ordered = sorted(runs, key=lambda run: run.last.seed)
    right, logprob = [], []
    for run in ordered:
        assert run.predictions is not None  # only complete runs come here
        answers = run.predictions.set_index("id").loc[list(ids)]
        right.append(answers.credit.to_numpy(dtype=float))
        logprob.append(right_logprobs(answers))
    known = [one for one in logprob if one is not None]
    return Setting(
        tuple(ordered),
        variant,
        np.stack(right),
        np.stack(known) if len(known) == len(ordered) else None,
        groups,
    )


def _evaluation(stage: StageSpec) -> dict[str, Any]:
    """What must be equal for two runs to be comparable, by config key."""
    return (
        {f"model.{key}": getattr(stage.model, key) for key in _MODEL}
        | {f"data.{key}": getattr(stage.data, key) for key in _EVALUATED}
        | {f"evaluation.{key}": value for key, value in comparable(stage.evaluation).items()}
    )


def _difference(first: StageSpec, other: StageSpec) -> str:
    """Why runs of the second stage are not compared with runs of the first."""
    one, two = _evaluation(first), _evaluation(other)
    tasks = first.data, other.data
    another = tasks[0].name != tasks[1].name and tasks[0].content != tasks[1].content
    said = [f"the task is {tasks[1].name} here and {tasks[0].name} above"] if another else []
    said += [
        f"{key} is {_cut(two[key])} here and {_cut(one[key])} above"
        for key in one
        if one[key] != two[key] and not (another and key.startswith("data."))
    ]
    return "; ".join(said)


def _cut(value: Any, most: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _without_seed(stage: StageSpec) -> dict[str, Any]:
    """What runs that differ in nothing but their seed have in common."""
    parent = _without_seed(stage.parent) if stage.parent else None
    return made_of(stage) | {"seed": None, "parent": parent}


def _variants(runs: Sequence[RunRecord]) -> list[dict[str, str]]:
    """For each run, the config values (ranks and epochs aside) that not all runs share."""
    settings = [_settings(run) for run in runs]
    values: dict[str, set[str]] = {}
    for one in settings:
        for key, value in one.items():
            values.setdefault(key, set()).add(value)
    varying = {key for key, found in values.items() if len(found) > 1}
    return [{k: v for k, v in one.items() if k in varying} for one in settings]


def _settings(run: RunRecord) -> dict[str, str]:
    """A run's settings by config key; of two stages of one kind, the last counts."""
    found: dict[str, str] = {}
    for stage in run.stages:
        found |= _shown("data", stage.data)
        for adapter in stage.adapters:
            # The kind's own settings come first: they tell more than those that all kinds have.
            settings = sorted(adapter.compared().items(), key=lambda item: item[0] in _ANY)
            own = {f"{adapter.kind}.{key}": v for key, v in settings if key not in _SCHEDULE}
            schedule = {f"{stage.kind}.{key}": v for key, v in settings if key in _SCHEDULE}
            found |= own
        if stage.training is not None:
            # Adapters that are trained at once share a schedule, which has its own section.
            found |= schedule | _shown("training", stage.training)
    return found


def _shown(name: str, section: Settings) -> dict[str, str]:
    return {f"{name}.{key}": repr(value) for key, value in comparable(section).items()}
