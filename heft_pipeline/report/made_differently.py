"""Whether compared runs were made in ways that change their last bits.

The dtype follows from the hardware with ``model.dtype=auto``, and a stage that another machine, or
another version of a library, has made is reused. None of that changes what a result means, and all
of it changes rounding.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from heft_pipeline.report import words
from heft_pipeline.report.records import RunRecord
from heft_pipeline.report.sections import Section, Setting

_LIBRARIES = ("torch", "transformers", "peft", "pyreft")
#: What a stage's ``result.json`` says about one way of making it; empty where that is not known.
_Of = Callable[[Mapping[str, Any]], str]


@dataclass(frozen=True)
class MadeDifferently:
    """One way in which compared runs were made differently.

    Attributes:
        said: For instance ``computed in different dtypes: lora@3 in float32; heft@3 in bfloat16
            (lora) and float32 (reft)``.
        way_out: What makes all of them in the same way; empty where that is another machine.
        so: What follows for a comparison.
    """

    said: str
    way_out: str = ""
    so: str = "Some of what sets them apart may be rounding"


def _dtype(result: Mapping[str, Any]) -> str:
    return str(result.get("dtype") or "")


def _device(result: Mapping[str, Any]) -> str:
    return str(result.get("machine", {}).get("device") or "")


def _threads(result: Mapping[str, Any]) -> str:
    machine = result.get("machine", {})
    count = machine.get("threads") if machine.get("device") == "cpu" else None
    return "" if count is None else f"{count} thread{'' if count == 1 else 's'}"


def _version(library: str) -> _Of:
    def of(result: Mapping[str, Any]) -> str:
        found = result.get("machine", {}).get(library)
        return f"{library} {found}" if found else ""

    return of


#: How it is said, how each is said, what is looked at, and the way out.
_ASPECTS: tuple[tuple[str, str, _Of, str], ...] = (
    ("computed in different dtypes", "in", _dtype,
     "with model.dtype=float32, all are computed in the same one"),
    ("computed on different devices", "on", _device, ""),
    ("computed with different numbers of threads", "with", _threads,
     "set OMP_NUM_THREADS to the same number everywhere"),
    *((f"computed with different versions of {library}", "with", _version(library), "")
      for library in _LIBRARIES),
)  # fmt: skip


def made_differently(section: Section) -> tuple[MadeDifferently, ...]:
    """Say which of the compared runs were made in which way, if not all were made in one.

    A run counts with all of its stages: HEFT's LoRA stage may have been trained elsewhere than the
    ReFT stage on it.

    Args:
        section: The compared runs.

    Returns:
        The ways in which they differ: dtype, device, number of threads, versions.
    """
    found = [
        MadeDifferently(_different(section, said, how, of), way_out)
        for said, how, of, way_out in _ASPECTS
    ]
    believed = "What their folders do not show, such as epochs and learning rate, is believed"
    found.append(MadeDifferently(_elsewhere(section), so=believed))
    return tuple(one for one in found if one.said)


def _elsewhere(section: Section) -> str:
    names: dict[str, None] = {}
    for one in section.settings:
        for run in one.runs:
            for stage, _ in _stages(run, lambda result: str(result.get("trained_elsewhere", ""))):
                names[one.short if len(run.stages) == 1 else f"{one.short} ({stage})"] = None
    said = "trained elsewhere, with settings as they were stated, at a cost that is not known"
    return f"{said}: {_listed(names)}" if names else ""


def _different(section: Section, said: str, how: str, of: _Of) -> str:
    settings = [*section.settings, *([section.base] if section.base else [])]
    found = {value for one in settings for run in one.runs for _, value in _stages(run, of)}
    if len(found) < 2 and not any(", then " in value for value in found):
        return ""
    shared = {one.short for one in settings if sum(one.short == s.short for s in settings) > 1}
    names: dict[str, dict[str, None]] = {}  # the settings' names, by what is said of them
    for one in settings:
        name = _name(one, detailed=one.short in shared)
        names.setdefault(_of_setting(one, of), {})[name] = None
    each = (f"{_listed(list(those))} {how} {where}" for where, those in names.items() if where)
    return f"{said}: {'; '.join(each)}"


def _stages(run: RunRecord, of: _Of) -> list[tuple[str, str]]:
    """The name of each stage, and what is known of it."""
    pairs = zip(run.stages, run.results, strict=True)
    return [(stage.name, value) for stage, result in pairs if (value := of(result))]


def _of_setting(setting: Setting, of: _Of) -> str:
    seeds: dict[str, list[str]] = {}
    for run in setting.runs:
        seeds.setdefault(_of_run(run, of), []).append(str(run.last.seed))
    seeds.pop("", None)
    if len(seeds) < 2:
        return "".join(seeds)
    return ", and ".join(
        f"{value} with seed{'s' if len(some) > 1 else ''} {_listed(some)}"
        for value, some in seeds.items()
    )


def _of_run(run: RunRecord, of: _Of) -> str:
    stages = _stages(run, of)
    if len({value for _, value in stages}) < 2:
        return "".join(dict.fromkeys(value for _, value in stages))
    return _listed(f"{value} ({name})" for name, value in stages)


def _name(setting: Setting, *, detailed: bool) -> str:
    if setting.method == "base":
        return "the untouched model"
    more = [f"rank {words.ranks(setting)}"] if setting.ranks else []
    more += [words.variant(setting)] if setting.variant else []
    return f"{setting.short} ({', '.join(more)})" if detailed and more else setting.short


def _listed(items: Iterable[str]) -> str:
    listed: Sequence[str] = list(items)
    return " and ".join(filter(None, [", ".join(listed[:-1]), listed[-1]]))
