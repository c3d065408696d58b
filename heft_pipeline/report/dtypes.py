"""Whether compared runs were computed in different dtypes, as ``model.dtype=auto`` allows."""

from collections.abc import Iterable, Sequence

from heft_pipeline.report import words
from heft_pipeline.report.records import RunRecord
from heft_pipeline.report.sections import Section, Setting


def different_dtypes(section: Section) -> str:
    """Say which of the compared runs were computed in which dtype, if not all were in one.

    A run counts with all of its stages: HEFT's LoRA stage may have been trained elsewhere than the
    ReFT stage on it.

    Args:
        section: The compared runs.

    Returns:
        For instance ``computed in different dtypes: lora@3 in float32; heft@3 in bfloat16 (lora)
        and float32 (reft)``; empty where all were computed in one dtype.
    """
    settings = [*section.settings, *([section.base] if section.base else [])]
    found = {dtype for one in settings for run in one.runs for _, dtype in _stages(run)}
    if len(found) < 2 and not any(", then " in dtype for dtype in found):
        return ""
    shared = {one.short for one in settings if sum(one.short == s.short for s in settings) > 1}
    names: dict[str, dict[str, None]] = {}  # the settings' names, by what is said of them
    for one in settings:
        name = _name(one, detailed=one.short in shared)
        names.setdefault(_of_setting(one), {})[name] = None
    said = (f"{_listed(list(of))} in {where}" for where, of in names.items() if where)
    return f"computed in different dtypes: {'; '.join(said)}"


def _stages(run: RunRecord) -> list[tuple[str, str]]:
    """The name and the dtype of each stage of which it is known."""
    pairs = zip(run.stages, run.results, strict=True)
    return [(stage.name, dtype) for stage, result in pairs if (dtype := result.get("dtype"))]


def _of_setting(setting: Setting) -> str:
    seeds: dict[str, list[str]] = {}
    for run in setting.runs:
        seeds.setdefault(_of_run(run), []).append(str(run.last.seed))
    seeds.pop("", None)
    if len(seeds) < 2:
        return "".join(seeds)
    return ", and ".join(
        f"{dtypes} with seed{'s' if len(some) > 1 else ''} {_listed(some)}"
        for dtypes, some in seeds.items()
    )


def _of_run(run: RunRecord) -> str:
    stages = _stages(run)
    if len({dtype for _, dtype in stages}) < 2:
        return "".join(dict.fromkeys(dtype for _, dtype in stages))
    return _listed(f"{dtype} ({name})" for name, dtype in stages)


def _name(setting: Setting, *, detailed: bool) -> str:
    if setting.method == "base":
        return "the untouched model"
    more = [f"rank {words.ranks(setting)}"] if setting.ranks else []
    more += [words.variant(setting)] if setting.variant else []
    return f"{setting.short} ({', '.join(more)})" if detailed and more else setting.short


def _listed(items: Iterable[str]) -> str:
    listed: Sequence[str] = list(items)
    return " and ".join(filter(None, [", ".join(listed[:-1]), listed[-1]]))
