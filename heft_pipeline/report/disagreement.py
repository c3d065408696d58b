"""Where two settings disagree: a 2 x 2 of right and wrong answers, with examples to read."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt

from heft_pipeline.data.dev_split import Row
from heft_pipeline.data.encode import render
from heft_pipeline.data.row_choices import letter, row_choices
from heft_pipeline.data.rows import read_eval
from heft_pipeline.data.settings import DataSettings
from heft_pipeline.errors import UserError
from heft_pipeline.report.drawing import SIZE, Figure, save
from heft_pipeline.report.sections import Section, Setting
from heft_pipeline.report.verdicts import Verdict

log = logging.getLogger(__name__)
_EXAMPLES, _MOST_TEXT = 3, 900


@dataclass(frozen=True)
class DisputedExample:
    """An evaluated example that exactly one of two settings answers correctly.

    Attributes:
        id: Its id.
        gold: The right answer.
        right: The name of the setting that gives it.
        wrong: The name of the other setting.
        seeds: In how many of the compared seeds this is so, and how many were compared.
        text: The prompt, without its middle where it is long; empty where the data cannot be
            read.
    """

    id: str
    gold: str
    right: str
    wrong: str
    seeds: tuple[int, int]
    text: str


@dataclass(frozen=True)
class Disagreement:
    """Two settings' answers to the same examples.

    Attributes:
        figure: The 2 x 2.
        first: The first setting's name.
        second: The second's.
        counts: How many examples both answer correctly, only the first, only the second, and
            neither: means over seeds.
        examples: Some that only the first answers correctly, then some that only the second does.
    """

    figure: Figure
    first: str
    second: str
    counts: tuple[float, float, float, float]
    examples: tuple[DisputedExample, ...]


def disagreement(section: Section, verdicts: Sequence[Verdict], path: Path) -> Disagreement | None:
    """Compare HEFT's answers with LoRA's, or else those of the first two settings.

    Args:
        section: The compared runs.
        verdicts: The verdicts on the claims. The first claim about HEFT and LoRA chooses the
            settings; without such a claim, the settings with the most epochs are compared.
        path: The figure's path without an ending.

    Returns:
        The comparison; None unless there are two settings with a seed in common.
    """
    pair = _pair(section, verdicts)
    if pair is None:
        return None
    one, two = pair
    seeds = sorted({*one.seeds} & {*two.seeds})
    if not seeds:
        return None
    first = one.right[[one.seeds.index(seed) for seed in seeds]]
    second = two.right[[two.seeds.index(seed) for seed in seeds]]
    cells = [
        np.minimum(first, second),
        (first - second).clip(min=0),
        (second - first).clip(min=0),
        1 - np.maximum(first, second),
    ]
    both, only_first, only_second, neither = (float(c.sum() / len(seeds)) for c in cells)
    names = [_name(s, other=o) for s, o in ((one, two), (two, one))]
    data = pd.DataFrame(
        {
            "id": section.ids,
            "gold": section.gold,
            f"{names[0]} right": first.mean(axis=0),
            f"{names[1]} right": second.mean(axis=0),
        }
    )
    counts = (both, only_first, only_second, neither)
    figure = _draw(names, counts, len(seeds), data, path)
    texts = _texts(section)
    examples = [
        DisputedExample(
            id=section.ids[index],
            gold=section.gold[index],
            right=names[0] if cell is cells[1] else names[1],
            wrong=names[1] if cell is cells[1] else names[0],
            seeds=(int((cell[:, index] == 1).sum()), len(seeds)),
            text=texts.get(section.ids[index], ""),
        )
        for cell in cells[1:3]
        for index in np.argsort(-cell.sum(axis=0), kind="stable")[:_EXAMPLES]
        if (cell[:, index] == 1).any()
    ]
    return Disagreement(figure, names[0], names[1], counts, tuple(examples))


def _pair(section: Section, verdicts: Sequence[Verdict]) -> tuple[Setting, Setting] | None:
    for verdict in verdicts:
        one, two = verdict.pair
        if one is not None and two is not None and {one.method, two.method} == {"heft", "lora"}:
            return (one, two) if one.method == "heft" else (two, one)
    longest = {
        method: max(found, key=lambda setting: setting.total_epochs)
        for method in ("heft", "lora")
        if (found := [s for s in section.settings if s.method == method])
    }
    if len(longest) == 2:
        return longest["heft"], longest["lora"]
    return (section.settings[0], section.settings[1]) if len(section.settings) > 1 else None


def _name(setting: Setting, other: Setting) -> str:
    if setting.short != other.short:
        return setting.short
    details = [f"r{'/'.join(map(str, setting.ranks))}"] if setting.ranks != other.ranks else []
    details += [f"{k}={v}" for k, v in setting.variant.items() if other.variant.get(k) != v]
    return " ".join([setting.short, *details])


def _draw(
    names: Sequence[str],
    counts: tuple[float, float, float, float],
    seeds: int,
    data: pd.DataFrame,
    path: Path,
) -> Figure:
    both, only_first, only_second, neither = counts
    table = np.array([[both, only_first], [only_second, neither]])
    drawing, axes = plt.subplots(figsize=(SIZE[0], 2.2), layout="constrained")
    axes.imshow(table, cmap="Greys", vmin=0, vmax=table.max() * 1.6, aspect="auto")
    for row in range(2):
        for column in range(2):
            value = table[row, column]
            axes.text(
                column,
                row,
                f"{value:,.0f}\n{value / table.sum():.1%}",
                ha="center",
                va="center",
                fontsize=9,
            )
    axes.set_xticks([0, 1], [f"{names[1]} right", f"{names[1]} wrong"])
    axes.set_yticks([0, 1], [f"{names[0]} right", f"{names[0]} wrong"], rotation=90, va="center")
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return save(
        drawing,
        path,
        data,
        f"Where {names[0]} and {names[1]} disagree",
        "Each number counts the evaluated examples that both, one or neither of the two answers "
        f"correctly{f' (means over {seeds} seeds)' if seeds > 1 else ''}. A paired test uses only "
        "the two cells in which they differ.",
    )


def _texts(section: Section) -> dict[str, str]:
    """The prompts by id; empty where the data can no longer be read."""
    data = section.spec.data
    try:
        return {id: _cut(_text(data, id, row)) for id, row in read_eval(data)}
    except (UserError, OSError, ValueError, KeyError) as error:  # the hub's errors are OSErrors
        log.warning("cannot read the evaluated examples of %s: %s", data.name, error)
        return {}


def _text(data: DataSettings, id: str, row: Row) -> str:
    """A row's prompt, and its choices where the prompt does not list them."""
    rendered = render(data, id, row)
    if not data.own_choices or "{options}" in data.prompt:
        return rendered.text
    rest = "".join(text for text, _ in rendered.rest)
    choices = enumerate(row_choices(data, id, row))
    return "\n".join(
        [rendered.text, *(f"{letter(index)}. {choice}{rest}" for index, choice in choices)]
    )


def _cut(text: str) -> str:
    if len(text) <= _MOST_TEXT:
        return text
    return f"{text[: _MOST_TEXT // 2]} [...] {text[-_MOST_TEXT // 2 :]}"
