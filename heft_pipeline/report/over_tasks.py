"""Sections over several tasks: settings that were trained on each of them, and their means."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from heft_pipeline.declare_settings import comparable, identity
from heft_pipeline.evidence.clusters import Clusters
from heft_pipeline.evidence.intervals import accuracy_interval
from heft_pipeline.evidence.two_way_variance import Right
from heft_pipeline.plan.stage_spec import StageSpec, made_of
from heft_pipeline.report import words
from heft_pipeline.report.sections import Section, Setting

#: The costs that add up over tasks; each task has adapters of its own.
_SUMMED = ("train_seconds", "train_tflop", "train_examples")
#: How many settings are named that are left out for the same reason.
_MOST_NAMES = 6


@dataclass(frozen=True)
class SettingOverTasks(Setting):
    """A setting that is complete on each of several tasks, with the seeds that all of them have.

    ``runs`` are those of the first task, and ``right`` and ``logprob`` hold the tasks' examples
    one task after the other.

    Attributes:
        on: The same setting on each task.
    """

    on: tuple[Setting, ...] = ()

    @property
    def accuracy(self) -> float:
        """The unweighted mean over tasks of the mean accuracy over seeds, as a share."""
        return float(np.mean([one.accuracy for one in self.on]))

    @cached_property
    def costs(self) -> dict[str, float]:
        """The runs' costs on all tasks together.

        Seconds, operations and examples are sums over tasks; ``trainable_params``, of which each
        task has its own, is the mean, and ``peak_memory_mb`` the largest.
        """
        each = [one.costs for one in self.on]
        found = {key: sum(costs[key] for costs in each) for key in _SUMMED}
        seconds = found["train_seconds"]
        return found | {
            "trainable_params": float(np.mean([costs["trainable_params"] for costs in each])),
            "peak_memory_mb": float(np.max([costs["peak_memory_mb"] for costs in each])),
            "examples_per_second": found["train_examples"] / seconds if seconds else 0.0,
        }


@dataclass(frozen=True)
class SectionOverTasks(Section):
    """Settings that were trained and evaluated on each of several tasks.

    Its examples are those of all tasks, one task after the other.

    Attributes:
        parts: The sections of the tasks, of one model.
        notes: What is left out, and what differs between the tasks, a sentence each.
    """

    parts: tuple[Section, ...] = ()
    notes: tuple[str, ...] = ()

    @cached_property
    def tasks(self) -> tuple[str, ...]:
        """The tasks' names."""
        return _names(self.parts)

    @cached_property
    def always(self) -> Right:
        """[1, examples], how right it is to give each task's most frequent answer."""
        return np.concatenate([one.always for one in self.parts], axis=1)

    @cached_property
    def majority(self) -> tuple[str, float]:
        """The mean over tasks of the share of each one's most frequent answer."""
        return "", float(np.mean([one.majority[1] for one in self.parts]))

    @property
    def chance(self) -> None:
        """Nothing: it is a matter of each task."""

    @cached_property
    def majority_interval(self) -> tuple[float, float]:
        """The 95 % interval of that mean."""
        return accuracy_interval(self.always, self.clusters, strata=self.strata)


def sections_over_tasks(section_list: Sequence[Section]) -> list[SectionOverTasks]:
    """Find the tasks of each model, and the settings that were trained on all of them.

    Settings match where everything but the data, how answers are scored and the seed is equal, of
    the stages that they stand on as well. Two ways of asking for one task's examples are not two
    tasks: the first of them counts, among those that are scored alike if there are several.

    Args:
        section_list: The sections of single tasks.

    Returns:
        A section over tasks for each model with two tasks or more that have a trained setting in
        common.
    """
    by_model: dict[str, list[Section]] = {}
    for section in section_list:
        if section.ids and section.settings:
            by_model.setdefault(repr(identity(section.spec.model)), []).append(section)
    groups: list[list[Section]] = []
    for sections in by_model.values():
        if len(_tasks(sections)) == len(sections):
            groups.append(sections)
            continue
        by_scoring: dict[str, list[Section]] = {}
        for section in sections:
            by_scoring.setdefault(repr(identity(section.spec.evaluation)), []).append(section)
        groups.extend(by_scoring.values())
    found = (_over_tasks(group) for group in groups)
    return [section for section in found if section is not None]


def _names(parts: Sequence[Section]) -> tuple[str, ...]:
    """The tasks' names, with their subsets where two have one name."""
    tasks = [part.spec.data for part in parts]
    names = [str(task.name) for task in tasks]
    return tuple(
        f"{name}/{task.subset}" if task.subset and names.count(name) > 1 else name
        for name, task in zip(names, tasks, strict=True)
    )


def _tasks(sections: Sequence[Section]) -> list[Section]:
    """The first section of each task."""
    found: list[Section] = []
    for section in sections:
        if not any(_same_task(section, other) for other in found):
            found.append(section)
    return found


def _same_task(one: Section, other: Section) -> bool:
    """Whether two sections may have rows in common: a task at two prompts, splits or revisions."""
    first, second = one.spec.data, other.spec.data
    return first.subset == second.subset and (
        first.name == second.name
        or first.content == second.content
        or first.location == second.location
    )


def _over_tasks(group: Sequence[Section]) -> SectionOverTasks | None:
    parts = tuple(_tasks(group))
    clusters = _joined_clusters(parts)
    strata = np.repeat(np.arange(len(parts)), [len(part.ids) for part in parts])
    each = [{_key(setting): setting for setting in part.settings} for part in parts]
    common = [key for key in each[0] if all(key in one for one in each)]
    matched = {key: _matched([one[key] for one in each]) for key in common}
    kept = [on for on in matched.values() if on is not None]
    if len(parts) < 2 or not kept:
        return None
    base = [part.base for part in parts]
    variants = _variants([on[0] for on in kept])
    model, names = parts[0].spec.model.name, _names(parts)
    return SectionOverTasks(
        title=f"{model} on {len(parts)} tasks ({', '.join(names)})",
        apart="",
        settings=tuple(
            _setting(on, variant, clusters, strata)
            for on, variant in zip(kept, variants, strict=True)
        ),
        base=_setting([one for one in base if one], {}, clusters, strata) if all(base) else None,
        open=tuple(run for part in parts for run in part.open),
        ids=tuple(f"{name}: {id}" for name, p in zip(names, parts, strict=True) for id in p.ids),
        gold=tuple(answer for part in parts for answer in part.gold),
        clusters=clusters,
        strata=strata,
        parts=parts,
        notes=(
            *_asked_again(group, parts),
            *_left_out(names, each, matched),
            *_fewer_seeds(each, kept),
            *_scored_differently(names, parts),
        ),
    )


def _key(setting: Setting) -> str:
    """What a setting has in common with the same one on another task."""
    # What varies within a task, such as the number of training rows, is no matter of the task.
    varied = {key: value for key, value in setting.variant.items() if key.startswith("data.")}
    return repr((_without_task(setting.runs[0].last), varied))


def _without_task(stage: StageSpec) -> dict[str, Any]:
    parent = _without_task(stage.parent) if stage.parent else None
    return made_of(stage) | {"data": None, "evaluation": None, "seed": None, "parent": parent}


def _matched(on: Sequence[Setting]) -> list[Setting] | None:
    """A setting on each task with the seeds that all have; None where they have none in common."""
    seeds = set.intersection(*(set(one.seeds) for one in on))
    return [_with_seeds(one, seeds) for one in on] if seeds else None


def _with_seeds(setting: Setting, seeds: Iterable[int]) -> Setting:
    rows = [number for number, seed in enumerate(setting.seeds) if seed in seeds]
    return replace(
        setting,
        runs=tuple(setting.runs[row] for row in rows),
        right=setting.right[rows],
        logprob=None if setting.logprob is None else setting.logprob[rows],
    )


def _setting(
    on: Sequence[Setting], variant: dict[str, str], clusters: Clusters | None, strata: Any
) -> SettingOverTasks:
    logprobs = [one.logprob for one in on if one.logprob is not None]
    return SettingOverTasks(
        runs=on[0].runs,
        variant=variant,
        right=np.concatenate([one.right for one in on], axis=1),
        logprob=np.concatenate(logprobs, axis=1) if len(logprobs) == len(on) else None,
        clusters=clusters,
        strata=strata,
        on=tuple(on),
    )


def _joined_clusters(parts: Sequence[Section]) -> Clusters | None:
    """The clusters of all tasks; examples of a task without any are one each."""
    if all(part.clusters is None for part in parts):
        return None
    found, before = [], 0
    for part in parts:
        own = np.arange(len(part.ids)) if part.clusters is None else part.clusters
        found.append(own + before)
        before += int(own.max()) + 1
    return np.concatenate(found)


def _variants(settings: Sequence[Setting]) -> list[dict[str, str]]:
    """What tells settings apart that are left, of what did in their section."""
    values: dict[str, set[str]] = {}
    for setting in settings:
        for key, value in setting.variant.items():
            values.setdefault(key, set()).add(value)
    return [{k: v for k, v in s.variant.items() if len(values[k]) > 1} for s in settings]


def _asked_again(group: Sequence[Section], parts: Sequence[Section]) -> list[str]:
    again = [section for section in group if all(section is not part for part in parts)]
    names = dict.fromkeys(str(section.spec.data.name) for section in again)
    return [f"{name} was evaluated in several ways, of which the first counts." for name in names]


def _left_out(
    names: Sequence[str], each: Sequence[dict[str, Setting]], matched: dict[str, Any]
) -> list[str]:
    """Which settings do not take part, and why."""
    why: dict[str, list[str]] = {}
    for key, setting in {k: s for one in each for k, s in one.items()}.items():
        without = [name for name, one in zip(names, each, strict=True) if key not in one]
        if without:
            why.setdefault(f"not complete on {' and '.join(without)}", []).append(_name(setting))
        elif matched[key] is None:
            why.setdefault("without a seed that all tasks have", []).append(_name(setting))
    found = []
    for reason, left in why.items():
        shown = list(dict.fromkeys(left))
        more = len(shown) - _MOST_NAMES
        others = f" and {more} others" if more > 0 else ""
        found.append(
            f"Left out because they are {reason}: {', '.join(shown[:_MOST_NAMES])}{others}."
        )
    return found


def _fewer_seeds(
    each: Sequence[dict[str, Setting]], kept: Sequence[Sequence[Setting]]
) -> list[str]:
    fewer = [
        f"{_name(on[0])} ({', '.join(map(str, on[0].seeds))})"
        for on in kept
        if any(len(one[_key(on[0])].seeds) > len(on[0].seeds) for one in each)
    ]
    return [f"Only the seeds that all tasks have are used: {', '.join(fewer)}."] if fewer else []


def _scored_differently(names: Sequence[str], parts: Sequence[Section]) -> list[str]:
    """What differs in how the tasks' answers are scored."""
    scored = [comparable(part.spec.evaluation) for part in parts]
    return [
        f"The tasks differ in evaluation.{key}: "
        f"{', '.join(f'{one[key]!r} ({name})' for name, one in zip(names, scored, strict=True))}."
        for key in scored[0]
        if any(one[key] != scored[0][key] for one in scored)
    ]


def _name(setting: Setting) -> str:
    return setting.short + (f" r{words.ranks(setting)}" if setting.ranks else "")
