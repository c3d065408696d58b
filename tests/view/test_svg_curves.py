"""The drawings of a stage's curves."""

import json
import re
from xml.etree import ElementTree

import pytest

from heft_pipeline.view.svg_curves import stage_curves, tick_names, ticks


@pytest.mark.parametrize(
    ("low", "high", "names"),
    [
        (0, 1, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (0, 2650, ["0", "1,000", "2,000"]),
        (96.98, 97.34, ["97.0", "97.1", "97.2", "97.3"]),
        (0, 4.6e-4, ["0", "1e-4", "2e-4", "3e-4", "4e-4"]),
        (3, 3, ["3"]),
        (-2, 2, ["-2", "-1", "0", "1", "2"]),
    ],
)
def test_ticks_are_round_numbers_within_the_range(
    low: float, high: float, names: list[str]
) -> None:
    found = ticks(low, high)
    assert tick_names(found) == names
    assert all(low - 1e-9 <= value <= high + 1e-9 for value in found)
    assert len(set(names)) == len(names)


def test_nothing_is_between_two_steps() -> None:
    assert ticks(0, 2, whole=True) == [0, 1, 2]
    assert ticks(0, 2) == [0, 0.5, 1, 1.5, 2]


def test_all_curves_of_a_stage_have_the_same_steps() -> None:
    lines = [*steps(30), {"event": "epoch", "step": 15, "epoch": 1, "dev_accuracy": 0.5}]
    _, accuracy, rate = stage_curves(lines)
    (dot,) = re.findall(r'cx="([\d.]+)"', str(accuracy.drawing))
    assert dot == re.findall(r'cx="([\d.]+)"', str(rate.drawing))[14]


def steps(count: int) -> list[dict[str, object]]:
    return [
        {"event": "step", "step": n, "epoch": 1, "loss": 1 / n, "learning_rate": 1e-4}
        for n in range(1, count + 1)
    ]


def test_a_point_is_placed_by_its_value() -> None:
    lines = [*steps(2), {"event": "epoch", "step": 2, "epoch": 1, "dev_accuracy": 0.5}]
    loss, accuracy, rate = stage_curves(lines)
    assert [one.title for one in (loss, accuracy, rate)] == [
        "loss (nats)", "dev accuracy (%)", "learning rate"
    ]  # fmt: skip
    root = ElementTree.fromstring(str(loss.drawing))
    line = next(one for one in root.iter() if one.tag == "polyline")
    (x1, y1), (x2, y2) = (map(float, pair.split(",")) for pair in line.attrib["points"].split())
    assert x1 < x2, "time runs to the right"
    assert y1 < y2, "a lower loss is lower"
    assert "dev, step 2: 50" in str(accuracy.drawing)


def test_very_many_points_are_drawn_as_few_with_every_peak() -> None:
    lines = steps(100_000)
    lines[54_321]["loss"] = 9.0
    (loss, rate) = stage_curves(lines)
    assert len(str(loss.drawing)) < 20_000
    points = re.findall(r"[\d.]+,([\d.]+)", str(loss.drawing).split('points="')[1].split('"')[0])
    highest, next_highest = sorted(map(float, points))[:2]
    assert highest < next_highest - 50, "the one peak is there"
    assert len(str(rate.drawing)) < 20_000


def test_what_is_no_number_is_not_drawn() -> None:
    text = '[NaN, Infinity, -Infinity, "1", null, true, [1], 1e999, 0.5]'
    lines = [
        {"event": "step", "step": n, "epoch": 1, "loss": value}
        for n, value in enumerate(json.loads(text))
    ]
    (loss,) = stage_curves(lines)
    assert str(loss.drawing).count("<circle") == 1
    assert "nan" not in str(loss.drawing).lower()
    assert stage_curves([]) == []
    assert stage_curves([{"event": "step", "step": "x", "epoch": 1, "loss": 1.0}]) == []


def test_a_drawing_names_what_it_shows() -> None:
    (loss, _) = stage_curves(steps(3))
    root = ElementTree.fromstring(str(loss.drawing))
    assert root.attrib["role"] == "img"
    assert root.attrib["aria-label"] == "loss (nats) over steps, from 1 to 0.3333"
    texts = [one.text for one in root.iter() if one.tag == "text"]
    assert "step" in texts
    assert {"0.4", "1.0", "3"} <= set(texts)
