"""A report of many runs: its size has bounds, and its work grows no faster than the runs."""

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from heft_pipeline.evidence import calibration
from heft_pipeline.report import beside_accuracy, content, pictures, records, verdicts
from heft_pipeline.report.write import write_report
from heft_pipeline.store.sweep_folders import Sweep
from tests.report.made_sweeps import make_sweep, make_task

EXAMPLES = 40


def many(output_dir: Path, runs: int, *, claims: bool) -> Sweep:
    """So many runs: one method with as many learning rates, or pairs that claims compare."""
    task = make_task(output_dir / "tasks", "task", EXAMPLES)
    if claims:
        rates = [f"lora.learning_rate={n + 1}e-5" for n in range(runs // 2)]
        asked = [f"method={m} epochs=1 {rate} {task}" for rate in rates for m in ("lora", "heft")]
    else:
        asked = [f"method=lora epochs=1 lora.learning_rate={n + 1}e-5 {task}" for n in range(runs)]
    accuracy = np.random.default_rng(0).uniform(0.5, 0.9, len(asked))
    return make_sweep(output_dir, list(zip(asked, accuracy, strict=True)), claims=None)


@pytest.fixture(scope="module")
def of_400(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    return many(tmp_path_factory.mktemp("four-hundred"), 400, claims=True)


def counted(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, counts: Counter[str]) -> None:
    plain: Callable[..., Any] = getattr(module, name)

    def count(*given: Any, **named: Any) -> Any:
        counts[name] += 1
        return plain(*given, **named)

    monkeypatch.setattr(module, name, count)


def test_the_work_of_a_report_grows_no_faster_than_the_runs(
    of_400: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: Counter[str] = Counter()
    for module, name in (
        (beside_accuracy, "calibration"),
        (calibration, "resamples"),
        (records, "choice_table"),
        (verdicts, "compare"),
        (records.pd, "read_parquet"),
        (Path, "open"),
        (Path, "read_bytes"),
    ):
        counted(monkeypatch, module, name, counts)
    write_report([many(tmp_path, 100, claims=True)], tmp_path / "report")
    of_100 = dict(counts)
    counts.clear()
    write_report([of_400], tmp_path / "large")
    assert {"calibration", "compare", "read_parquet"} <= set(of_100)
    faster = {name: (of_100[name], counts[name]) for name in of_100
              if counts[name] > 4.2 * of_100[name]}  # fmt: skip
    assert not faster


def test_a_page_of_many_runs_has_bounds_and_says_what_it_leaves_out(
    of_400: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(content, "MOST_ROWS", 150)
    monkeypatch.setattr(content, "MOST_VERDICTS", 120)
    monkeypatch.setattr("heft_pipeline.report.write.MOST_ROWS", 150)
    write_report([of_400], tmp_path)
    page, text = ((tmp_path / f"report.{ending}").read_text() for ending in ("html", "md"))
    for written in (page, text):
        assert "Not shown: 80 more claims, all in claims.json, and " in written
        assert "more rows; results.csv has all runs." in written
    assert len(re.findall(r'<li class="', page)) == 120
    assert len(json.loads((tmp_path / "claims.json").read_text())) == 200
    assert len((tmp_path / "results.csv").read_text().splitlines()) == 401
    tables = page.split("<table")[1:]
    assert [table.count("<tr") - 1 for table in tables] == [150] * len(tables)


def test_the_bytes_of_a_page_are_bounded(of_400: Sweep, tmp_path: Path) -> None:
    write_report([of_400], tmp_path)
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir() if path.is_file()}
    assert sizes["report.html"] < 2_400_000
    assert sizes["report.md"] < 400_000
    assert sizes["report.tex"] < 200_000
    assert all(path.stat().st_size < 1_500_000 for path in (tmp_path / "figures").iterdir())


def test_figures_that_a_page_has_no_room_for_are_linked_and_said_to_be_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [("method=lora epochs=1", 0.6), ("method=heft epochs=1", 0.7)]
    sweep = make_sweep(tmp_path, runs, claims=None)
    write_report([sweep], tmp_path / "whole")
    whole = (tmp_path / "whole" / "report.html").read_text()
    assert 'src="figures/' not in whole
    embedded = len(re.findall('src="data:image/svg', whole))
    monkeypatch.setattr(pictures, "MOST_BYTES", 150_000)
    write_report([sweep], tmp_path / "cut")
    page = (tmp_path / "cut" / "report.html").read_text()
    linked = re.findall('src="(figures/[^"]*)"', page)
    assert 0 < len(linked) < embedded
    assert len(linked) + len(re.findall('src="data:image/svg', page)) == embedded
    for link in linked:
        assert (tmp_path / "cut" / link).is_file()
        assert f"the figure is not in it but in {link} beside it" in page
    assert len(page) < len(whole)


def test_of_many_tasks_the_first_are_drawn_in_all_formats_and_very_many_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(content, "_IN_ALL_FORMATS", 2)
    monkeypatch.setattr(content, "_MOST_DRAWN", 3)
    tasks = [make_task(tmp_path / "tasks", f"task{n}", EXAMPLES) for n in range(3)]
    runs = [(f"method=lora epochs=1 {task}", 0.6) for task in tasks]
    write_report([make_sweep(tmp_path, runs, claims=None)], tmp_path / "report")
    figures = tmp_path / "report" / "figures"
    endings = {
        number: {path.suffix for path in figures.glob(f"accuracy_over_epochs{number}.*")}
        for number in ("-2", "-3", "-4")
    }
    assert endings == {"-2": {".png", ".svg", ".pdf", ".csv"}, "-3": {".svg", ".csv"}, "-4": set()}
    text = (tmp_path / "report" / "report.md").read_text()
    assert text.count("results.csv has all runs") == 1
    for link in re.findall(r"\]\((figures/[^)]*)\)", text):
        assert (tmp_path / "report" / link).is_file()
