"""The benchmark of generation: each way writes the same texts, and they have the asked lengths."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks import generation
from heft_pipeline.adapters.adapted import adapted
from heft_pipeline.models.base_model import load_base
from heft_pipeline.models.settings import ModelSettings


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts and answers that the small model has positions for."""
    monkeypatch.setattr(generation, "PROMPT", (2, 30))
    monkeypatch.setattr(generation, "ANSWER", (1, 20))


def seconds() -> Iterator[float]:
    """A clock that says 0, 1, 3, 6, 10 ..."""
    now = step = 0.0
    while True:
        yield now
        step += 1
        now += step


def test_each_way_writes_the_same_and_ratios_are_of_tokens_per_second(
    short: None, small_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = load_base(ModelSettings(id=str(small_model)), torch.device("cpu"))
    work = generation.made_up(12, 68, 2)
    assert len(set(map(len, work.prompts))) > 4 and len(set(work.lengths)) > 4
    clock = seconds()
    with adapted(base, []) as model:
        found = generation.measured(model, work, 4, 3, lambda: next(clock))
    alone, *others = found
    assert list(map(len, alone.texts)) == list(work.lengths[:3])
    for row in others:
        assert list(map(len, row.texts)) == list(work.lengths)
        assert row.texts == others[0].texts
        assert row.texts[:3] == alone.texts
    assert [row.seconds for row in found] == [1, 3, 5, 7]
    generation.show(found)
    last = capsys.readouterr().out.splitlines()[-1]
    ratio = (sum(work.lengths) / 7) / sum(work.lengths[:3])
    assert f"{ratio:.3g}" in last.split() and last.rstrip().endswith("12 of 12")
