"""The table beside accuracy: calibration, agreement between seeds, and forgetting."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from heft_pipeline.evidence.agreement import agreement
from heft_pipeline.evidence.calibration import BINS, Calibration, calibration
from heft_pipeline.evidence.resampling import Measurement
from heft_pipeline.evidence.rise import mean_over_windows
from heft_pipeline.report import words
from heft_pipeline.report.sections import Section, Setting
from heft_pipeline.store.beside_predictions import TextLosses, choice_table, given_answers

_ERROR, _CHANCE, _BRIER = "calibration error", "if calibrated", "Brier score"
_SAME, _KAPPA = "same answers", "kappa"
_LOSS, _RISE, _BY_STAGE = "loss on other text", "rise", "rise by stage"
#: How many settings are named that lack the same thing.
_MOST_NAMES = 4


@dataclass(frozen=True)
class BesideAccuracy:
    """What is said of a section's settings beside their accuracy.

    Attributes:
        columns: The table's headings, and whether their cells are numbers.
        rows: For each setting, its kind (``reference`` for the untouched model, else ``setting``)
            and a cell for each column.
        reading: How to read the table.
        gaps: Why cells are blank or examples left out, one sentence each.
        summary: The range of the forgetting, in a sentence for a terminal; empty if not known.
    """

    columns: tuple[tuple[str, bool], ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]
    reading: str
    gaps: tuple[str, ...]
    summary: str


@dataclass(frozen=True)
class _Gaps:
    """What is not known, and of which settings; a reason that many have is said once."""

    settings: dict[str, list[str]]

    def add(self, why: str, setting: Setting) -> None:
        rank = f" r{words.ranks(setting)}" if setting.ranks else ""
        names = self.settings.setdefault(why, [])
        if (name := setting.short + rank) not in names:
            names.append(name)

    def sentences(self) -> tuple[str, ...]:
        found = []
        for why, names in self.settings.items():
            more = f" and {len(names) - _MOST_NAMES} others" if len(names) > _MOST_NAMES else ""
            found.append(f"{why} ({', '.join(names[:_MOST_NAMES])}{more}).")
        return tuple(found)


@dataclass(frozen=True)
class _Forgotten:
    """The forgetting of a setting, over its seeds and the windows of a text."""

    loss: float
    rise: Measurement | None
    by_stage: tuple[tuple[str, Measurement], ...]


def beside_accuracy(section: Section) -> BesideAccuracy | None:
    """Measure what a section's files hold besides accuracy.

    Args:
        section: The section.

    Returns:
        The table; None if nothing is complete, or the files hold nothing of it.
    """
    gaps = _Gaps({})
    shown = [section.base] if section.base else []
    cells: list[tuple[str, dict[str, str]]] = []
    rises: list[tuple[Setting, Measurement]] = []
    for setting in (*shown, *section.settings):
        known = words.named(setting) | _of_choices(section, setting, gaps)
        forgotten = _forgotten(setting, gaps)
        if forgotten is not None:
            known |= _of_forgetting(forgotten)
            if setting.epochs and forgotten.rise is not None:
                rises.append((setting, forgotten.rise))
        cells.append(("setting" if setting.epochs else "reference", known))
    numbers = (_ERROR, _CHANCE, _BRIER, _SAME, _KAPPA, _LOSS, _RISE, _BY_STAGE)
    found = [name for name in numbers if any(name in known for _, known in cells)]
    if not found:
        return None
    columns = [("method", False), ("epochs", True), ("rank", True)]
    columns += [("setting", False)] if section.variants else []
    columns += [(name, True) for name in found]
    rows = [(kind, tuple(known.get(name, "") for name, _ in columns)) for kind, known in cells]
    return BesideAccuracy(
        columns=tuple(columns),
        rows=tuple(rows),
        reading=_reading(section, found),
        gaps=gaps.sentences(),
        summary=_summary(rises),
    )


def _of_choices(section: Section, setting: Setting, gaps: _Gaps) -> dict[str, str]:
    """The cells that follow from the choices' log-probabilities and the predictions."""
    ordered = []
    for run in setting.runs:
        assert run.predictions is not None  # only complete runs are in a setting
        ordered.append(run.predictions.set_index("id").loc[list(section.ids)])
    cells: dict[str, str] = {}
    same = agreement(given_answers(ordered), section.clusters)
    if same is not None:
        share = same.share
        cells[_SAME] = f"{words.share(share.value)} ({words.interval(share.low, share.high)})"
        cells[_KAPPA] = "" if math.isnan(same.kappa.value) else _number(same.kappa, 2)
    tables = [table for one in ordered if (table := choice_table(one)) is not None]
    if len(tables) < len(ordered):
        written = setting.runs[0].last.data.written
        gaps.add(
            "Answers are written, and so have no choices whose probabilities could be calibrated"
            if written
            else "There are no log-probabilities in predictions.parquet",
            setting,
        )
        return cells
    log_probabilities = np.stack([table.log_probabilities for table in tables])
    measured = calibration(log_probabilities, tables[0].gold, section.clusters)
    if measured is None:
        gaps.add("None of the log-probabilities is a usable number", setting)
    else:
        cells |= _of_calibration(measured)
        if measured.left_out:
            many = f"{measured.left_out:,} of {len(section.ids):,} examples"
            gaps.add(
                f"Calibration leaves out {many}, whose log-probabilities are not numbers", setting
            )
    return cells


def _of_calibration(measured: Calibration) -> dict[str, str]:
    return {
        _ERROR: _number(measured.error),
        _CHANCE: f"{measured.error_by_chance:.3f}",
        _BRIER: _number(measured.brier),
    }


def _forgotten(setting: Setting, gaps: _Gaps) -> _Forgotten | None:
    """How much a setting forgets, where all its seeds were measured on the same text."""
    runs = [run.text_losses for run in setting.runs]
    asked = [losses for losses in runs if losses is not None]
    if not asked:
        return None
    if len(asked) < len(runs) or len({losses.digest for losses in asked}) > 1:
        gaps.add("Forgetting of its seeds was not measured on the same text", setting)
        return None
    for why in dict.fromkeys(losses.why for losses in asked if losses.why):
        gaps.add(f"Forgetting is not known in full: {why}", setting)
    last = _stacked(asked, -1)
    if last is None:
        return None
    first, trained = _stacked(asked, 0), len(asked[0].losses) - 1
    by_stage = []
    for number, stage in enumerate(_trained(setting), start=1):
        before, after = _stacked(asked, number - 1), _stacked(asked, number)
        if before is not None and after is not None:
            name = stage if number == 1 else f"{stage} on top"
            by_stage.append((name, mean_over_windows(after - before)))
    return _Forgotten(
        loss=float(last.mean()),
        rise=mean_over_windows(last - first) if first is not None and trained else None,
        by_stage=tuple(by_stage) if trained > 1 else (),
    )


def _stacked(asked: list[TextLosses], number: int) -> np.ndarray | None:
    """[seeds, windows], the losses after a stage; None if they are not known for all seeds."""
    found = [one for losses in asked if (one := losses.losses[number]) is not None]
    return np.stack(found) if len(found) == len(asked) else None


def _trained(setting: Setting) -> list[str]:
    return [stage.title for stage in setting.runs[0].stages if stage.adapters]


def _of_forgetting(forgotten: _Forgotten) -> dict[str, str]:
    # Without an interval, which would be wide because windows differ: the rises are paired.
    cells = {_LOSS: f"{forgotten.loss:.4f}"}
    if forgotten.rise is not None:
        cells[_RISE] = _change(forgotten.rise)
    if forgotten.by_stage:
        cells[_BY_STAGE] = "; ".join(f"{name} {_change(one)}" for name, one in forgotten.by_stage)
    return cells


def _number(found: Measurement, digits: int = 3) -> str:
    value, low, high = (
        f"{one:.{digits}f}".replace("-", "\N{MINUS SIGN}")
        for one in (found.value, found.low, found.high)
    )
    return f"{value} ({low}-{high})"


def _change(found: Measurement) -> str:
    return f"{_signed(found.value)} ({_signed(found.low)} to {_signed(found.high)})"


def _signed(value: float) -> str:
    return f"{value:+.4f}".replace("-", "\N{MINUS SIGN}")


def _reading(section: Section, found: Iterable[str]) -> str:
    sentences = ["Brackets hold 95 % intervals."]
    if _ERROR in found:
        sentences.append(
            f"Calibration error: how far the likeliest choice's probability is from the share of "
            f"right answers, in {BINS} bins of equal width (0 is best). If calibrated: what a "
            "perfectly calibrated model with the same probabilities would show on so many "
            "examples. Brier score: the squared error of the choices' probabilities, from 0 (best) "
            "to 2."
        )
    if _SAME in found:
        sentences.append(
            "Same answers: the share of examples that two seeds answer alike, on average over "
            "pairs of seeds. Kappa (Fleiss) corrects it for what chance gives: 1 is full agreement."
        )
    if _LOSS in found:
        losses = [run.text_losses for setting in section.settings for run in setting.runs]
        asked = {one.text: len(known) for one in losses if one for known in one.losses
                 if known is not None}  # fmt: skip
        names = " and ".join(f"{name} ({windows} windows)" for name, windows in asked.items())
        sentences.append(
            f"Loss on other text: nats per token on {names or 'text'} that the task does not "
            "touch. Its rise over the untouched model's, window by window, is what training has "
            "made the model forget; a fall is no forgetting."
        )
    return " ".join(sentences)


def _summary(rises: Sequence[tuple[Setting, Measurement]]) -> str:
    if not rises:
        return ""
    ordered = sorted(rises, key=lambda item: item[1].value)

    def said(setting: Setting, rise: Measurement) -> str:
        rank = f" r{words.ranks(setting)}" if words.ranks(setting) else ""
        return f"{_signed(rise.value)} ({setting.short}{rank})"

    least, most = said(*ordered[0]), said(*ordered[-1])
    span = least if len(ordered) == 1 else f"{least} to {most}"
    return f"Forgetting, nats per token: {span}"
