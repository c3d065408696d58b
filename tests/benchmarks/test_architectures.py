"""The comparison of architectures: it runs, it agrees with its page, and it can tell a mistake."""

import dataclasses
from pathlib import Path

import pytest
import torch

from benchmarks.architectures.__main__ import compared
from benchmarks.architectures.by_hand import decoder_layers
from benchmarks.architectures.compare import RUNS, TOLERANCE, Compared, compare
from benchmarks.architectures.document import row, statuses
from benchmarks.architectures.tiny_models import build, names
from heft_pipeline.adapters.reft import interventions
from heft_pipeline.data.batches import Batch

PAGE = Path(__file__).resolve().parents[2] / "docs" / "architectures.md"
SAMPLE = ("llama", "gpt2", "mixtral", "bart", "falcon_h1")


def test_a_sample_gives_the_rows_of_the_page() -> None:
    page = [statuses(line) for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    documented = {name: cells for name, *cells in page}
    found = list(compared(SAMPLE))
    assert [one.name for one in found] == list(SAMPLE)
    for one in found:
        assert statuses(row(one))[1:] == documented[one.name]
    for one in found[:2]:
        assert one.agrees
        assert max(one.differences.values()) <= TOLERANCE


def test_the_page_has_a_row_for_each_architecture() -> None:
    lines = PAGE.read_text().splitlines()
    rows = [statuses(line)[0] for line in lines if line.startswith("| `")]
    assert sorted(rows) == names()


def test_an_adapter_that_is_computed_otherwise_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    real = interventions.prompt_positions

    def one_later(batch: Batch, *given: str) -> torch.Tensor:
        return (real(batch, *given) + 1).clamp(max=batch.input_ids.shape[1] - 1)

    monkeypatch.setattr(interventions, "prompt_positions", one_later)
    found = compare("llama")
    assert found.differences["lora"] <= TOLERANCE < found.differences["reft"]
    assert not found.sound


def test_a_refusal_is_sound_and_a_crash_is_not() -> None:
    right = Compared("x", differences=dict.fromkeys(RUNS, 1e-6), effects=dict.fromkeys(RUNS, 1.0))
    assert right.agrees
    without = {run: 1e-6 for run in RUNS if run != "lora"}
    refused = dataclasses.replace(right, differences=without, failures={"lora": "refused: why"})
    crashed = dataclasses.replace(refused, failures={"lora": "ValueError: why (a/b.py)"})
    idle = dataclasses.replace(right, effects=dict.fromkeys(RUNS, 0.0))
    assert refused.sound and not refused.agrees
    assert not crashed.sound
    assert not idle.sound


def test_layers_are_those_that_run_on_text() -> None:
    _, model = build("gemma3")
    text = model.model.language_model.layers
    assert len(model.model.vision_tower.encoder.layers) == len(text)
    assert decoder_layers(model, [5, 6, 7]) == list(text)


def test_a_model_is_the_same_at_each_call() -> None:
    one, other = build("gpt2")[1], build("gpt2")[1]
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
