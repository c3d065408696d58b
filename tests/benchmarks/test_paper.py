"""The benchmark's parts at the HEFT paper's settings."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import stages, work
from benchmarks.inputs import write_rows
from benchmarks.paper import PADDED_ROWS, PAPER_GRID, PAPER_PARTS, paper_pieces
from benchmarks.piece import Measured, Piece, composed
from benchmarks.results import DTYPES, Results
from benchmarks.summary import summary
from heft_pipeline.adapters.lora.settings import LoraSettings
from heft_pipeline.adapters.reft.settings import ReftSettings
from heft_pipeline.plan.sources import BUILTIN

RATIOS = [
    "paper_fine_ratio", "paper_fine_first_epoch_ratio", "paper_coarse_ratio",
    "paper_coarse_padded_ratio", "paper_grid_ratio", "paper_grid_padded_ratio",
]  # fmt: skip


def in_this_process(piece: Piece, threads: int | None) -> Measured:
    return work.done(piece)


def test_both_sides_compute_the_same_at_the_papers_settings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(stages, "_run", in_this_process)
    file = tmp_path / "found.json"
    asked = ["--only", PAPER_GRID, "--rows", "6", "--epochs", "2", "--threads", "1"]
    asked += ["--processor-time", "--json", str(file)]
    monkeypatch.setattr(sys, "argv", ["stages", *asked])
    assert stages.main() == 0, capsys.readouterr().err
    found = json.loads(file.read_text())
    assert list(found["ratios"]) == RATIOS
    assert all(ratio > 0 for ratio in found["ratios"].values())
    assert set(found["losses"]) == set(PAPER_PARTS)
    for losses in found["losses"].values():
        assert len(losses["own"]) == len(set(losses["own"])) == 2 * PADDED_ROWS / 2
        assert losses["own"] == pytest.approx(losses["peer"], abs=1e-5)
    pieces = found["measured"]
    for dtype in DTYPES:
        longest, padded = (pieces[f"paper_coarse/{n}_{dtype}"] for n in ("single", "padded"))
        assert padded["examples"] == PADDED_ROWS < longest["examples"] == 6
        per_row = (p["flop"] / p["examples"] / len(p["epoch_seconds"]) for p in (padded, longest))
        assert next(per_row) > 3 * next(per_row), "its rows are as wide as the model allows"
    printed = capsys.readouterr().out
    assert "COMPUTED from the epochs measured" in printed
    assert "seconds are processor time" in printed


def test_stages_have_the_papers_settings(tmp_path: Path) -> None:
    write_rows(BUILTIN["builtin:demo"], 4, tmp_path / "data")
    common = Piece("peer", "", "builtin:tiny", str(tmp_path / "data"), str(tmp_path))
    own = {
        part: composed(next(a.piece for a in paper_pieces(part, common, "", ["float32"])
                            if a.name == "own"))
        for part in (*PAPER_PARTS, PAPER_GRID)
    }  # fmt: skip
    (reft,), (lora,) = (own[part].last.adapters for part in PAPER_PARTS)
    assert isinstance(reft, ReftSettings) and isinstance(lora, LoraSettings)
    assert (reft.rank, reft.layers, reft.positions, reft.end_token) == (4, (1,), "l1", True)
    assert (lora.rank, lora.target_modules) == (8, ("q_proj", "v_proj"))
    assert (lora.dropout, lora.loss, lora.answer) == (0.05, "sequence", " {choice}")
    assert reft.batch_size == lora.batch_size == 32
    assert all(run.last.training and not run.last.training.group_by_length for run in own.values())
    assert [len(run.stages) for run in own.values()] == [1, 1, 2]


def measured(*epoch_seconds: float, examples: int = 10) -> Measured:
    return Measured("float32", list(epoch_seconds), examples=examples, tokens=100)


def test_the_papers_table_is_computed_from_epochs_and_lora_at_20_is_trained_once() -> None:
    results = Results(rows=10, epochs=2)
    results.measured["paper_fine", "peer_float32"] = measured(4, 4)
    results.measured["paper_fine", "own"] = measured(3, 1)
    results.measured["paper_coarse", "peer_float32"] = measured(8, 8)
    results.measured["paper_coarse", "single_float32"] = measured(6, 6)
    results.measured["paper_coarse", "padded_float32"] = measured(12, 12, examples=4)
    results.measured["paper_coarse", "own"] = measured(3, 3)
    results.measured[PAPER_GRID, "own"] = measured(5, 1)
    ratios = summary(results).ratios
    assert list(ratios) == RATIOS
    assert ratios["paper_fine_ratio"] == 4
    assert ratios["paper_fine_first_epoch_ratio"] == pytest.approx(4 / 3)
    assert ratios["paper_coarse_ratio"] == 2, "the faster way of cutting a batch into parts"
    assert ratios["paper_coarse_padded_ratio"] == pytest.approx(10)
    own = (2 + 20) + 20 * 3 + (3 * 3 + 4 + 3) + (4 + 20)
    assert ratios["paper_grid_ratio"] == pytest.approx(43 * (4 + 6) / own)
    assert ratios["paper_grid_padded_ratio"] == pytest.approx(43 * (4 + 30) / own)
