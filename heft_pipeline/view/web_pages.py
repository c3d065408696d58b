"""The pages as text: templates that escape whatever they are given, and what changes in them."""

import functools
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from heft_pipeline.command_line.printable import printable
from heft_pipeline.command_line.secrets_kept import masked
from heft_pipeline.report import words
from heft_pipeline.report.records import RunRecord
from heft_pipeline.view.prediction_pages import NONE
from heft_pipeline.view.stage_parts import UNKNOWN, StagePage
from heft_pipeline.view.sweep_looks import SweepLook, sentence
from launch.status import StageStatus, clock

#: A page of runs has so many; a browser sorts them all by any column.
RUNS = 1000
#: Shorter texts are cells of tables, which are shown again and again.
_OFTEN_SHOWN = 200
#: States that a stage does not leave without help.
_BAD = ("failed", "damaged", "lost", "timeout", "cancelled", "out_of_memory", "not read")
#: States that have a colour of their own.
_STATES = ("complete", "done", "running", "failed", "damaged", "to do", "pending", "interrupted",
           "unknown", "ending")  # fmt: skip
HEADINGS = (
    ("run", False), ("method", False), ("epochs", True), ("rank", True), ("seed", True),
    ("accuracy", True), ("95 % interval", True), ("trainable parameters", True),
    ("train seconds", True), ("TFLOP", True), ("status", False), ("stages", False),
)  # fmt: skip


@dataclass(frozen=True)
class RunRow:
    """A run in the table of its sweep.

    Attributes:
        id: The row's, unique on the page.
        kind: ``reference`` for the untouched model, which stays on top, or empty.
        cells: What the columns hold, but for the stages.
        stages: Fingerprint, short name and state of each of its stages.
        why: Why it failed or cannot be read; empty for nothing.
        status: Its status.
    """

    id: str
    kind: str
    cells: tuple[str, ...]
    stages: tuple[tuple[str, str, str], ...]
    why: str
    status: str


def sweeps_page(looks: Sequence[SweepLook]) -> str:
    """The list of sweeps."""
    live = sweeps_live(looks)
    return _render("sweeps.html.j2", looks=looks, live="/live/sweeps",
                   state=live["state"], texts=live["texts"], bars=live["bars"])  # fmt: skip


def sweeps_live(looks: Sequence[SweepLook]) -> dict[str, Any]:
    """What changes in the list of sweeps."""
    texts: dict[str, str] = {}
    bars: dict[str, float] = {}
    for look in looks:
        texts |= _sweep_cells(look)
        bars[f"bar-{look.key}"] = look.counts["done"] / max(1, len(look.runs))
    return _live(texts, bars, [(look.name, look.has_report, look.why, look.note) for look in looks])


def _sweep_cells(look: SweepLook) -> dict[str, str]:
    """The texts of a sweep's row that change, by the ids of their elements."""
    texts = {name: f"{number:,}" for name, number in look.counts.items()}
    best = look.best
    texts["best"] = words.share(best.results[-1]["accuracy"]) if best else UNKNOWN
    texts["of"] = best.name if best else ""
    return {f"{name}-{look.key}": text for name, text in texts.items()}


def sweep_page(look: SweepLook, page: int) -> str:
    """A sweep."""
    live = sweep_live(look)
    records = sorted(look.records, key=lambda record: record.name != "base")
    pages = max(1, math.ceil(len(records) / RUNS))
    page = min(page, pages)
    first = (page - 1) * RUNS
    rows = [
        _row(look, record, first + number)
        for number, record in enumerate(records[first : first + RUNS])
    ]
    return _render(
        "sweep.html.j2", look=look, rows=rows, headings=HEADINGS, page=page, pages=pages,
        running=_running(look), waiting=_waiting(look), bad=_bad(look),
        live="/live/" + _address("sweeps", look.name)[1:], state=live["state"],
        texts=live["texts"], bars=live["bars"],
    )  # fmt: skip


def sweep_live(look: SweepLook) -> dict[str, Any]:
    """What changes on a sweep's page."""
    texts = {f"count-{name}": f"{number:,}" for name, number in look.counts.items()}
    bars: dict[str, float] = {}
    running = _running(look)
    for status in running:
        more, bar = stage_texts(status)
        texts |= more
        bars |= bar
    version = [
        [(record.name, record.status) for record in look.records],
        [status.fingerprint for status in running],
        [(status.fingerprint, status.state) for status in _bad(look)],
        _waiting(look), look.has_report, look.why, look.note,
    ]  # fmt: skip
    return _live(texts, bars, version)


def stage_page(page: StagePage, asked: Callable[[int], str]) -> str:
    """A stage.

    Args:
        page: What is shown.
        asked: Gives the query for another page of its predictions.
    """
    live = stage_live(page)
    return _render("stage.html.j2", page=page, asked=asked, none=NONE, log_probability=_nats,
                   live="/live/" + _address("stages", page.fingerprint)[1:], state=live["state"],
                   texts=live["texts"], bars=live["bars"])  # fmt: skip


def stage_live(page: StagePage) -> dict[str, Any]:
    """What changes on a stage's page."""
    texts, bars = stage_texts(page.status) if page.status else ({}, {})
    return _live(texts, bars, page.version)


def message_page(status: int, text: str) -> str:
    """A page with one sentence.

    Args:
        status: The answer's status.
        text: The sentence.
    """
    return _render("message.html.j2", status=status, text=text, live="", state="")


def stage_texts(status: StageStatus) -> tuple[dict[str, str], dict[str, float]]:
    """The texts of a running stage that change, and its bar, by the ids of their elements."""
    key = status.fingerprint
    texts = {
        "progress": status.progress or status.text or status.state,
        "loss": UNKNOWN if status.loss is None else f"{status.loss:.4g}",
        "dev": UNKNOWN if status.dev_accuracy is None else words.share(status.dev_accuracy),
        "speed": UNKNOWN if status.examples_per_second is None
        else f"{words.number(status.examples_per_second)}/s",
        "left": UNKNOWN if status.eta_seconds is None else clock(status.eta_seconds),
    }  # fmt: skip
    done = status.done if status.done is not None else float(status.state == "complete")
    return {f"{name}-{key}": text for name, text in texts.items()}, {
        f"bar-{key}": min(1.0, max(0.0, done))
    }


def _live(texts: Mapping[str, str], bars: Mapping[str, float], version: object) -> dict[str, Any]:
    state = hashlib.sha256(json.dumps(version).encode()).hexdigest()[:16]
    shown = {key: _shown(text) for key, text in texts.items()}
    return {"texts": shown, "bars": {k: round(v, 4) for k, v in bars.items()}, "state": state}


def _row(look: SweepLook, record: RunRecord, number: int) -> RunRow:
    base, stages = record.name == "base", []
    for stage in record.stages:
        name = f"{stage.name}@{stage.epochs}" if stage.epochs else "untouched"
        status = look.stages.get(stage.fingerprint)
        foreign = look.foreign.get(stage.fingerprint)
        state = "not read" if foreign else status.state if status else "unknown"
        stages.append((stage.fingerprint, name, state))
    why = record.why
    for stage in record.stages:
        if foreign := look.foreign.get(stage.fingerprint):
            why = f"the stage {stage.fingerprint} {foreign}, so it is not read"
    try:
        numbers = _numbers(look, record)
    except Exception as error:  # a result that holds something else than numbers
        numbers, why = ("", "", "", "", ""), why or sentence(error)
    cells = (
        "untouched model" if base else record.name,
        "" if base else record.method,
        words.epochs(record.stage_epochs),
        words.joined(record.ranks),
        "" if base else str(record.last.seed),
        *numbers,
        {"incomplete": "to do", "complete": "done"}.get(record.status, record.status),
    )
    return RunRow(f"run-{number}", "reference" if base else "", cells, tuple(stages), why,
                  record.status)  # fmt: skip


def _numbers(look: SweepLook, record: RunRecord) -> tuple[str, ...]:
    """Accuracy, interval, parameters, seconds and TFLOP; empty unless the run is complete."""
    if not record.complete:
        return ("", "", "", "", "")
    result, costs = record.results[-1], record.costs
    interval = look.intervals.get(record.name)
    untrained = record.name == "base"
    return (
        words.share(result["accuracy"]),
        words.interval(*interval) if interval else "",
        "" if untrained else words.fixed(costs["trainable_params"]),
        "" if untrained else words.fixed(costs["train_seconds"], 1),
        "" if untrained else words.number(costs["train_tflop"]),
    )


def _running(look: SweepLook) -> list[StageStatus]:
    return [one for one in look.stages.values() if one.state == "running"]


def _waiting(look: SweepLook) -> str:
    """How many stages are in which state, where that is more than the runs say."""
    states = [one.state for one in look.stages.values()]
    return ", ".join(f"{states.count(state):,} {state}" for state in dict.fromkeys(states))


def _bad(look: SweepLook) -> list[StageStatus]:
    return [one for one in look.stages.values() if one.state in _BAD]


def _render(name: str, **values: Any) -> str:
    return _environment().get_template(name).render(**values)


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("heft_pipeline.view"),
        autoescape=True,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {"when": _when, "plain": lambda value: f"{value:,}"}
    environment.globals |= {"address": _address, "known_states": _STATES}
    return environment


def _shown(value: Any) -> Any:
    """Text as a page may show it: without secrets, and without what moves or hides other text."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return _made_plain(value) if len(value) < _OFTEN_SHOWN else printable(masked(value))


@functools.lru_cache(maxsize=2**16)
def _made_plain(value: str) -> str:
    return printable(masked(value))


def _address(*parts: str) -> str:
    """The address of what has a name, whatever characters are in it."""
    return "/" + "/".join(quote(os.fsencode(part), safe="") for part in parts)


def query_of(values: Mapping[str, str]) -> str:
    """An address's query."""
    return "?" + urlencode(values)


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def _nats(value: float) -> str:
    """A log-probability with three decimals and a true minus sign."""
    if not math.isfinite(value):
        return "\N{MINUS SIGN}\N{INFINITY}" if value < 0 else "unknown"
    return f"{value:.3f}".replace("-", "\N{MINUS SIGN}")
