"""The benchmark of stages: it runs, both sides compute the same, and its arithmetic is right."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import stages, work
from benchmarks.piece import Measured, Piece
from benchmarks.results import DTYPES, GRID, PARTS, Results
from benchmarks.summary import paid_off, summary

ROOT = Path(__file__).resolve().parents[2]
RATIOS = ["fine_f7l7_ratio", "fine_suffix_ratio", "coarse_ratio", "eval_ratio", "grid_ratio"]
FAST = ["--rows", "16", "--epochs", "2", "--threads", "1"]


def in_this_process(piece: Piece, threads: int | None) -> Measured:
    return work.done(piece)


def test_a_piece_runs_in_a_process_of_its_own() -> None:
    found = stages._run(Piece("own", "peak"), 1)
    assert min(found.gflops.values()) > 0


def test_the_command_prints_the_five_ratios(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    # Processes of their own are for memory and noise; the work is the same in this one.
    monkeypatch.setattr(stages, "_run", in_this_process)
    asked = [*FAST, "--only", "fine_suffix", "--json", str(tmp_path / "found.json")]
    monkeypatch.setattr(sys, "argv", ["stages", *asked])
    status, printed = stages.main(), capsys.readouterr()
    assert status == 0, printed.err
    lines = printed.out.splitlines()
    assert max(map(len, lines[:-6])) <= 100
    assert [line.split("=")[0] for line in lines[-5:]] == RATIOS
    found = json.loads((tmp_path / "found.json").read_text())
    assert list(found["ratios"]) == RATIOS
    assert found["ratios"]["fine_suffix_ratio"] > 0
    assert found["ratios"]["coarse_ratio"] is None, "it was not asked for"
    speeds = {
        dtype: found["measured"][f"fine_suffix/peer_{dtype}"]["epoch_seconds"][-1]
        for dtype in DTYPES
    }
    faster = min(speeds, key=lambda dtype: speeds[dtype])
    others = found["summary"]["others"]
    headline = found["ratios"]["fine_suffix_ratio"]
    assert headline == others[f"fine_suffix_ratio_against_{faster}"]
    assert headline <= min(others[f"fine_suffix_ratio_against_{dtype}"] for dtype in DTYPES)
    machine = found["machine"]
    assert f"Machine: {machine['host']}, {machine['cpu']} (" in lines[0]
    assert machine["threads"] == 1
    assert set(machine["cpu_features"]) <= {"AMX", "AVX512-BF16", "AVX-512"}


def test_both_sides_compute_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    # Processes of their own are for memory and noise; the work is the same in this one.
    monkeypatch.setattr(stages, "_run", in_this_process)
    file = tmp_path / "found.json"
    monkeypatch.setattr(sys, "argv", ["stages", *FAST, "--json", str(file)])
    assert stages.main() == 0, capsys.readouterr().err
    found = json.loads(file.read_text())
    assert not found["failures"]
    assert list(found["ratios"]) == RATIOS
    assert all(ratio > 0 for ratio in found["ratios"].values())
    assert set(found["losses"]) == set(PARTS) - {"eval"}
    for losses in found["losses"].values():
        assert len(losses["peer"]) == len(losses["own"]) == 4
        assert losses["own"] == pytest.approx(losses["peer"], abs=1e-4)
        assert len(set(losses["own"])) > 1
    evaluated = found["measured"]
    peers, ours = evaluated["eval/peer_float32"], evaluated["eval/own_generate"]
    assert peers["predictions"] == ours["predictions"]
    for part in PARTS:
        for dtype in DTYPES:
            assert evaluated[f"{part}/peer_{dtype}"]["dtype"] == dtype
        assert evaluated[f"{part}/own"]["dtype"] == "float32"
        assert evaluated[f"{part}/own_bfloat16"]["dtype"] == "bfloat16"
        assert f"{part}/own_float32" not in evaluated, "it is the same as own"
    assert "COMPUTED from the epochs measured" in capsys.readouterr().out


def test_a_missing_data_folder_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["stages", "--data", str(tmp_path)])
    assert stages.main() == 1
    assert "has no train.jsonl" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("asked", "dtypes"),
    [
        ([], ["float32", "bfloat16"]),
        (["--peer-dtype", "float32"], ["float32"]),
        (["--model", "random:llama2_7b"], ["bfloat16"]),
        (["--model", "random:llama2_7b", "--peer-dtype", "float32"], ["float32"]),
    ],
)
def test_peers_run_in_both_dtypes_unless_one_is_asked_for_or_only_one_fits(
    monkeypatch: pytest.MonkeyPatch, asked: list[str], dtypes: list[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["stages", *asked])
    pieces = stages._timed((*PARTS, GRID), Piece("peer", "reft", dtype=dtypes[0]), dtypes)
    assert stages._options().dtypes == dtypes
    peers = [one for one in pieces if one.name.startswith("peer_")]
    assert [(one.part, one.piece.dtype) for one in peers] == [(p, d) for p in PARTS for d in dtypes]
    assert all(one.name == f"peer_{one.piece.dtype}" for one in peers)


def measured(*epoch_seconds: float, dtype: str = "float32") -> Measured:
    return Measured(dtype=dtype, epoch_seconds=list(epoch_seconds), examples=10, tokens=100)


def test_reuse_pays_off_once_its_cache_has_been_earned() -> None:
    recomputed = measured(10, 10, 10)
    assert paid_off(measured(15, 2, 2), recomputed) == 1 + 1
    assert paid_off(measured(9, 2, 2), recomputed) == 1
    assert paid_off(measured(40, 9, 9), recomputed) == 32
    assert paid_off(measured(15, 10, 10), recomputed) is None


def test_the_grid_counts_a_shared_stage_once() -> None:
    results = Results(rows=10, epochs=3)
    for part in ("fine_f7l7", "coarse"):
        results.measured[part, "peer_float32"] = measured(4, 4, 4)
        results.measured[part, "own"] = measured(3, 2, 2)
    results.measured["grid", "fine_f7l7"] = measured(5, 3, 3)
    found = summary(results)
    assert found.ratios["fine_f7l7_ratio"] == 2
    assert found.ratios["fine_suffix_ratio"] is None
    peers = 4 * (3 + 20) * 4
    own = 2 * ((1 + 3 * 2) + (1 + 20 * 2)) + (2 + 3 * 3) + (2 + 20 * 3)
    assert found.ratios["grid_ratio"] == pytest.approx(peers / own)


def test_the_headline_is_the_ratio_to_the_faster_peer_and_both_are_shown() -> None:
    results = Results(rows=10, epochs=3)
    for part, float32, bfloat16 in (("fine_f7l7", 8, 4), ("coarse", 6, 12)):
        results.measured[part, "peer_float32"] = measured(float32, float32, float32)
        seconds = (bfloat16, bfloat16, bfloat16)
        results.measured[part, "peer_bfloat16"] = measured(*seconds, dtype="bfloat16")
        results.measured[part, "own"] = measured(2, 2, 2, dtype="bfloat16")
        results.measured[part, "own_float32"] = measured(3, 3, 3)
    results.measured["grid", "fine_f7l7"] = measured(2, 2, 2, dtype="bfloat16")
    found = summary(results)
    assert (found.ratios["fine_f7l7_ratio"], found.ratios["coarse_ratio"]) == (2, 3)
    assert found.others == {
        "fine_f7l7_ratio_against_float32": 4,
        "fine_f7l7_ratio_in_float32": pytest.approx(8 / 3),
        "fine_f7l7_ratio_against_bfloat16": 2,
        "coarse_ratio_against_float32": 3,
        "coarse_ratio_in_float32": 2,
        "coarse_ratio_against_bfloat16": 6,
        "grid_ratio_against_float32": pytest.approx(2 * (8 + 6) / (3 * 2)),
        "grid_ratio_against_bfloat16": pytest.approx(2 * (4 + 12) / (3 * 2)),
    }
    assert found.ratios["grid_ratio"] == pytest.approx(2 * (4 + 6) / (3 * 2))
    ratios = {(row.part, row.who, row.dtype): row.ratio for row in found.rows}
    assert ratios["fine_f7l7", "pyreft trainer", "bfloat16"] == 1
    assert ratios["fine_f7l7", "pyreft trainer", "float32"] == 0.5
    assert ratios["grid", "own on LoRA, f7+l7", "bfloat16"] == 2
