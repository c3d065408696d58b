"""The report's table beside accuracy."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from heft_pipeline.files.sealed import copy_of
from heft_pipeline.report import write_report
from heft_pipeline.report.beside_accuracy import BesideAccuracy
from heft_pipeline.report.content import make_report
from heft_pipeline.report.records import read_runs
from heft_pipeline.store.sweep_folders import Sweep
from tests.report.made_sweeps import forget, make_sweep, reseal

RUNS = [
    (f"method={method} epochs=3 seed={seed}", accuracy)
    for method, accuracy in (("lora", 0.7), ("heft", 0.65))
    for seed in (0, 1, 2)
]


def beside(sweep: Sweep) -> BesideAccuracy:
    (content,) = make_report([sweep], None, None).sections
    assert content.beside is not None
    return content.beside


def rows(found: BesideAccuracy) -> list[dict[str, str]]:
    headings = [heading for heading, _ in found.columns]
    return [dict(zip(headings, cells, strict=True)) for _, cells in found.rows]


def measured(tmp_path: Path, runs: list[tuple[str, float]] = RUNS) -> Sweep:
    """A sweep in which LoRA raises the loss by 0.03 and ReFT on top of it by another 0.01."""
    sweep = make_sweep(tmp_path, runs, claims=[])
    for record in read_runs(sweep):
        for number, stage in enumerate(record.stages):
            forget(sweep.store, stage, 0.0 if not stage.adapters else 0.03 + 0.01 * number)
    return sweep


def test_each_setting_has_its_calibration_agreement_and_forgetting(tmp_path: Path) -> None:
    base, lora, heft = rows(beside(measured(tmp_path)))
    assert base["method"] == "untouched model"
    assert base["loss on other text"] and not base["rise"]
    # Sure of right and wrong answers alike: mean confidence 0.7 in bins that are right for 0.7.
    assert float(heft["calibration error"].split()[0]) > float(heft["if calibrated"])
    assert 0.4 < float(heft["Brier score"].split()[0]) < 0.6
    assert 60 < float(heft["same answers"].split("%")[0]) < 100
    assert 0 < float(heft["kappa"].split()[0]) < 1
    assert lora["rise"].startswith("+0.03")
    assert not lora["rise by stage"], "one stage's rise is said once"
    assert heft["rise"].startswith(("+0.039", "+0.040", "+0.041"))
    first, second = heft["rise by stage"].split("; ")
    assert first.startswith(("LoRA +0.029", "LoRA +0.030", "LoRA +0.031"))
    assert second.startswith(("ReFT on top +0.009", "ReFT on top +0.010", "ReFT on top +0.011"))


def test_one_seed_has_no_agreement(tmp_path: Path) -> None:
    found = beside(measured(tmp_path, RUNS[:1]))
    assert "same answers" not in dict(found.columns)
    assert "Same answers" not in found.reading


def test_the_page_markdown_terminal_and_csv_say_it(tmp_path: Path) -> None:
    sweep = measured(tmp_path)
    console = Console(width=80, record=True, file=(tmp_path / "terminal").open("w"))
    console.print(write_report([sweep], tmp_path / "report"))
    text = console.export_text()
    assert "Forgetting, nats per token: +0.03" in text
    assert max(map(len, text.splitlines())) <= 80
    for name in ("report.md", "report.html"):
        page = (tmp_path / "report" / name).read_text()
        assert "Beside accuracy" in page
        assert "ReFT on top +0.0" in page
        assert "held_out_text.txt (12 windows)" in page
    table = pd.read_csv(tmp_path / "report" / "results.csv")
    assert list(table.columns)[-3:] == ["ece", "brier", "forgetting"]
    heft = table[table.method == "heft"]
    assert heft.forgetting.between(0.037, 0.043).all()
    assert table.brier.between(0.3, 0.7).all()


def test_what_is_not_known_is_blank_and_the_reason_is_said(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, RUNS[:1], claims=[])
    found = beside(sweep)
    assert "rise" not in dict(found.columns)
    assert any("python -m launch forgetting SWEEP measures it" in gap for gap in found.gaps)
    (run, base) = read_runs(sweep)
    losses = run.text_losses
    assert losses is not None
    entry = {"text": "x", "why": "the GPU fell off"}
    sweep.store.note_text_losses(base.last.fingerprint, losses.digest, entry)
    forget(sweep.store, run.last, 0.1)
    found = beside(sweep)
    assert rows(found)[1]["loss on other text"]
    assert "rise" not in dict(found.columns)
    assert any("the GPU fell off" in gap for gap in found.gaps)
    path = sweep.store.folder(run.last.fingerprint) / "predictions.parquet"
    table = pd.read_parquet(path)
    table[["logprob_true", "logprob_false"]] = np.nan
    table.to_parquet(path, index=False)
    reseal(sweep.store, run.last.fingerprint)
    found = beside(sweep)
    assert not rows(found)[1]["Brier score"]
    assert "None of the log-probabilities is a usable number (lora@3 r8)." in found.gaps


def test_examples_without_finite_log_probabilities_are_counted(tmp_path: Path) -> None:
    sweep = measured(tmp_path, RUNS[:1])
    run = read_runs(sweep)[0]
    path = sweep.store.folder(run.last.fingerprint) / "predictions.parquet"
    table = pd.read_parquet(path)
    table.loc[:6, "logprob_true"] = np.nan
    table.to_parquet(path, index=False)
    reseal(sweep.store, run.last.fingerprint)
    (gap,) = beside(sweep).gaps
    assert gap.startswith("Calibration leaves out 7 of 1,200 examples")
    assert gap.endswith("(lora@3 r8).")


def test_a_reason_that_many_settings_have_is_said_once(tmp_path: Path) -> None:
    runs = [(f"method=lora epochs={epochs}", 0.6) for epochs in range(1, 8)]
    (gap,) = beside(make_sweep(tmp_path, runs, claims=[])).gaps
    assert gap.startswith("Forgetting is not known in full: not measured yet")
    assert gap.endswith("(base, lora@1 r8, lora@2 r8, lora@3 r8 and 4 others).")


def test_broken_or_uneven_files_of_forgetting_break_no_report(tmp_path: Path) -> None:
    sweep = measured(tmp_path, RUNS[:1])
    run, base = read_runs(sweep)
    forget(sweep.store, base.last, 0.0, windows=9)
    (gap,) = beside(sweep).gaps
    assert "measured on different windows (lora@3 r8)" in gap
    path = sweep.store.folder(run.last.fingerprint) / "forgetting.json"
    path.write_text('{"half')
    (gap,) = beside(sweep).gaps
    assert "measured on different windows" in gap, "its copy is read"
    copy_of(path).write_text('{"half')
    assert any("not measured yet" in gap for gap in beside(sweep).gaps)


def test_a_sweep_that_measures_no_forgetting_says_nothing_of_it(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, RUNS[:2], claims=[])
    from heft_pipeline.plan.graph import Plan

    sweep.record(Plan(()), forgetting=None)
    found = beside(sweep)
    assert not found.gaps
    assert "other text" not in found.reading
    assert dict(found.columns)["Brier score"]
    assert not found.summary


def test_the_same_seeds_on_another_order_of_examples_agree_as_before(tmp_path: Path) -> None:
    sweep = measured(tmp_path)
    before = rows(beside(sweep))
    key = read_runs(sweep)[1].last.fingerprint
    path = sweep.store.folder(key) / "predictions.parquet"
    pd.read_parquet(path).sample(frac=1, random_state=0).to_parquet(path, index=False)
    reseal(sweep.store, key)
    assert rows(beside(sweep)) == before


@pytest.mark.parametrize("runs", [RUNS[:1], RUNS])
def test_a_setting_with_nothing_forgotten_has_a_rise_of_zero(
    tmp_path: Path, runs: list[tuple[str, float]]
) -> None:
    sweep = make_sweep(tmp_path, runs, claims=[])
    records = read_runs(sweep)
    (base,) = [record for record in records if record.name == "base"]
    forget(sweep.store, base.last, 0.0)
    written = sweep.store.text_losses(base.last.fingerprint)
    for record in records:
        for stage in record.stages:
            for digest, entry in written.items():
                sweep.store.note_text_losses(stage.fingerprint, digest, entry)
    for row in rows(beside(sweep))[1:]:
        assert row["rise"] == "+0.0000 (+0.0000 to +0.0000)"
