"""How a report's numbers were made: what is needed to trust and to repeat them."""

import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from heft_pipeline.adapters.kind import Schedule
from heft_pipeline.data.answer_text import CHOICE
from heft_pipeline.data.settings import DataSettings
from heft_pipeline.plan.graph import labelled
from heft_pipeline.plan.stage_spec import StageSpec
from heft_pipeline.report import words
from heft_pipeline.report.records import RunRecord
from heft_pipeline.store.sweep_folders import Sweep

_VERSIONS = (
    "heft_pipeline",
    "torch",
    "transformers",
    "peft",
    "pyreft",
    "pyvene",
    "accelerate",
    "python",
)


@dataclass(frozen=True)
class Fact:
    """One fact about how the runs were made.

    Attributes:
        name: What it is about.
        values: Its value, or several where the stages differ.
        code: Whether the values are text to be typed or compared exactly.
    """

    name: str
    values: tuple[str, ...]
    code: bool = False


def provenance(sweeps: Sequence[Sweep], records: Sequence[RunRecord]) -> list[Fact]:
    """Collect from sweeps' and stages' files how their runs were made.

    Args:
        sweeps: The sweeps.
        records: Their runs.

    Returns:
        The facts that are known.
    """
    stages, results = _unique(records)
    specs = list(stages.values())
    name = _Named(specs)
    facts = [
        Fact("Command", _each(sweep.plan().get("command", "") for sweep in sweeps), code=True),
        Fact("Model", _each(_model(s) for s in specs)),
        Fact("Data", _each(_data(s) for s in specs)),
        Fact("Prompt", _each(s.data.prompt for s in specs), code=True),
        Fact("Answers", _each(_answers(s.data) for s in specs), code=True),
        Fact("Examples", _each(_examples(r) for r in results)),
        Fact("Notes", _each(note for r in results for note in r.get("notes", ()))),
        Fact("Exact ties", _each(name(r) + _ties(r) for r in results if _ties(r))),
        Fact("By log-probability", _each(name(r) + _by_logprob(r) for r in _generated(records))),
        Fact("By length", _each(name(r) + _by_length(r) for r in _of_lengths(records))),
        Fact("Training", _each(_training(s) for s in specs if s.adapters)),
        Fact("Device", _each(_device(r) for r in results)),
        Fact("Computed in", _each(str(r.get("dtype", "")) for r in results)),
        Fact("Time", (_time(results),) if results else ()),
        Fact("Commit", _each(r["machine"].get("commit") or "not recorded" for r in results), True),
        Fact("Versions", _each(_versions(r) for r in results)),
        Fact("Report", (f"heft_pipeline {version('heft-pipeline')} on {platform.node()}",)),
    ]
    return [fact for fact in facts if fact.values]


def _unique(
    records: Sequence[RunRecord],
) -> tuple[dict[str, StageSpec], list[dict[str, Any]]]:
    stages: dict[str, StageSpec] = {}
    results: dict[str, dict[str, Any]] = {}
    for record in records:
        for number, stage in enumerate(record.stages):
            stages[stage.fingerprint] = stage
            if record.complete:
                results[stage.fingerprint] = record.results[number]
    return stages, list(results.values())


def _each(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(value for value in values if value))


def _model(stage: StageSpec) -> str:
    return f"{stage.model.name} ({_content(stage.model.content)})"


def _data(stage: StageSpec) -> str:
    data = stage.data
    dev = data.dev_split or (f"{words.number(data.dev_size)} of train" if data.has_dev else "none")
    return (
        f"{data.name} ({_content(data.content)}): train {data.train_split}, dev {dev}, "
        f"reported {data.eval_split}"
    )


def _content(content: str | None) -> str:
    assert content is not None  # found in planning
    return content if content.startswith("hub:") else content[: len("sha256:") + 12]


def _answers(data: DataSettings) -> str:
    if data.written:
        part = f", {data.extract_match} match of {data.extract}" if data.extract else ""
        return f"{data.name}: written as {data.choice!r}{part}, compared: {data.compare}"
    if data.own_choices:
        where = data.choices_column or ", ".join(data.choices_columns or ())
        blank = f" in place of {data.blank!r}, scored: {data.score}" if data.blank else ""
        return f"{data.name}: {where}, each as {data.choice!r}{blank}"
    return ", ".join(f"{label}: {text!r}" for label, text in data.choices.items())


def _examples(result: dict[str, Any]) -> str:
    notes = [
        f"{result.get('n_train', 0):,} trained on, {result.get('n_dev', 0):,} to choose the epoch, "
        f"{result['n_eval']:,} reported"
    ]
    for key, said in (
        ("truncated_prompts", "prompts that were cut"),
        ("short_prompts", "prompts too short for all edited positions"),
        ("unmatched_rows", "reported rows whose generated text holds no answer"),
        ("repeated_rows", "training rows that repeat an earlier one"),
        ("overlapping_rows", "reported rows that are also training or dev rows"),
    ):
        if count := result.get(key, 0):
            notes.append(f"{said}: {count:,}")
    return "; ".join(notes)


def _ties(result: dict[str, Any]) -> str:
    tied = result.get("tied_rows", 0)
    return f"{tied:,} of {result['n_eval']:,} reported rows, counted as chance" if tied else ""


def _lasts(records: Sequence[RunRecord]) -> list[RunRecord]:
    """The complete runs, those of the same last stage once."""
    return list({r.last.fingerprint: r for r in records if r.complete}.values())


def _generated(records: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """The results of the runs whose choices were generated."""
    return [
        one.results[-1]
        for one in _lasts(records)
        if one.last.evaluation.mode == "generate"
        and not one.last.data.written
        and "logprob_accuracy" in one.results[-1]
    ]


def _by_logprob(result: dict[str, Any]) -> str:
    return (
        f"{words.percent(result['logprob_accuracy'])} by the likeliest choice, "
        f"{words.percent(result['accuracy'])} as generated"
    )


def _of_lengths(records: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """The results of the runs in which it matters what log-probabilities are divided by."""
    results = [one.results[-1] for one in _lasts(records)]
    return [one for one in results if len(set(one.get("accuracies", {}).values())) > 1]


def _by_length(result: dict[str, Any]) -> str:
    each = (f"{name} {words.percent(share)}" for name, share in result["accuracies"].items())
    return f"{', '.join(each)}; compared: {result['normalize']}"


class _Named:
    """Gives what a stage's result is called among others.

    Args:
        stages: All stages that results are shown of.
    """

    def __init__(self, stages: Sequence[StageSpec]) -> None:
        label = labelled(stages)
        self._labels = {stage.fingerprint: label(stage) for stage in stages}

    def __call__(self, result: dict[str, Any]) -> str:
        return f"{self._labels.get(result['fingerprint'], result['label'])}: "


def _training(stage: StageSpec) -> str:
    training, schedule = stage.training, stage.adapters[0]
    assert training is not None
    adapters = "; ".join(adapter.describe() for adapter in stage.adapters)
    grouped = "of similar lengths" if training.group_by_length else "of any lengths"
    return (
        f"{adapters}; loss over {_trained_on(schedule)}; batches of {schedule.batch_size} "
        f"{grouped}, {training.lr_scheduler} after {schedule.warmup_ratio:.0%} warm-up, the epoch "
        f"kept: {training.selection}"
    )


def _trained_on(schedule: Schedule) -> str:
    answer = "the answer" if schedule.loss == "answer" else "prompt and answer"
    written = f" (written {schedule.answer!r})" if schedule.answer != CHOICE else ""
    return f"{answer}{written}" + (" and the end token" if schedule.end_token else "")


def _device(result: dict[str, Any]) -> str:
    machine = result["machine"]
    processes = result.get("processes", 1)
    threads = f", {machine['threads']} threads" if "threads" in machine else ""
    each = f", {processes} processes" if processes > 1 else ""
    return f"{machine.get('device', 'unknown')} on {machine.get('host', 'unknown')}{threads}{each}"


def _time(results: Sequence[dict[str, Any]]) -> str:
    def total(key: str) -> str:
        return words.seconds(sum(result.get(key) or 0.0 for result in results))

    resumed = sum(result.get("resumes", 0) for result in results)
    finished = [text for result in results if (text := result.get("finished"))]
    span = f", finished {min(finished)[:16]} to {max(finished)[:16]}" if finished else ""
    elsewhere = sum("trained_elsewhere" in result for result in results)
    unknown = f" ({elsewhere} trained elsewhere)" if elsewhere else ""
    return (
        f"{len(results)} stages{unknown}: {total('train_seconds')} of training, "
        f"{total('dev_seconds')} on dev, {total('eval_seconds')} on the reported split, "
        f"{total('wall_seconds')} in all{span}" + (f"; resumed {resumed} times" if resumed else "")
    )


def _versions(result: dict[str, Any]) -> str:
    machine: Callable[[str], Any] = result["machine"].get
    return ", ".join(f"{name} {machine(name)}" for name in _VERSIONS if machine(name))
