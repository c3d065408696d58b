"""Sweeps over several tasks: one page that begins with the mean over them."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from heft_pipeline.evidence.claims import parse_claim
from heft_pipeline.evidence.comparison import compare
from heft_pipeline.evidence.intervals import accuracy_interval
from heft_pipeline.report import write_report
from heft_pipeline.report.content import Report, SectionContent, make_report
from heft_pipeline.report.latex import latex
from heft_pipeline.report.options import ReportOptions
from heft_pipeline.report.over_tasks import SectionOverTasks, SettingOverTasks
from tests.report.made_sweeps import make_sweep, make_task

SIZES = {"boolq": 600, "piqa": 100}
#: How much easier each task is.
EASIER = {"boolq": 0.0, "piqa": 0.2}
METHODS = (("lora", 3, 0.5), ("lora", 20, 0.6), ("heft", 3, 0.57))


def runs(
    folder: Path,
    seeds: Sequence[int] = (0, 1, 2),
    also: str = "",
    methods: Sequence[tuple[str, int, float]] = METHODS,
) -> list[tuple[str, float]]:
    """The same settings on each task, which differ in the longest prompt as well."""
    tasks = {name: make_task(folder, name, size) for name, size in SIZES.items()}
    return [
        (
            f"method={method} epochs={epochs} seed={seed} {task} "
            f"data.max_prompt_tokens={150 + len(name)} {also}",
            accuracy + EASIER[name] + 0.01 * seed,
        )
        for name, task in tasks.items()
        for method, epochs, accuracy in methods
        for seed in seeds
    ]


def reported(folder: Path, made: Sequence[tuple[str, float]], *claims: str) -> Report:
    options = ReportOptions(tuple(map(parse_claim, claims))) if claims else None
    return make_report([make_sweep(folder, made, claims=None)], options, None)


def first(report: Report) -> tuple[SectionContent, SectionOverTasks]:
    content = report.sections[0]
    assert isinstance(content.section, SectionOverTasks)
    return content, content.section


def cells(content: SectionContent) -> list[dict[str, str]]:
    headings = [heading for heading, _ in content.columns]
    return [dict(zip(headings, row.cells, strict=True)) for row in content.rows]


def test_a_mean_over_tasks_counts_each_task_the_same_and_has_its_interval(tmp_path: Path) -> None:
    content, section = first(reported(tmp_path, runs(tmp_path)))
    assert section.title == "tiny on 2 tasks (boolq, piqa)"
    always, untouched, lora, *_ = cells(content)
    assert lora["boolq"].startswith("51.0% (")
    assert lora["piqa"].startswith("71.0% (")
    assert lora["mean over tasks"] == "61.0%"  # and not 53.9 %, of all examples
    setting = section.settings[0]
    assert isinstance(setting, SettingOverTasks)
    right = np.concatenate([one.right for one in setting.on], axis=1)
    strata = np.repeat([0, 1], [600, 100])
    low, high = accuracy_interval(right, strata=strata)
    assert lora["95 % interval"] == f"{100 * low:.1f}-{100 * high:.1f}"
    assert always["method"] == "always the most frequent answer"
    for row in (always, untouched, lora):
        assert re.fullmatch(r"\d+\.\d-\d+\.\d", row["95 % interval"])
        assert re.fullmatch(r"\d+\.\d% \(\d+\.\d-\d+\.\d\)", row["piqa"])


def test_costs_are_of_all_tasks_and_parameters_of_one(tmp_path: Path) -> None:
    report = reported(tmp_path, runs(tmp_path))
    over, alone = (cells(content)[2] for content in report.sections[:2])
    assert (alone["train seconds"], over["train seconds"]) == ("6.0", "12.0")
    assert (alone["train TFLOP"], over["train TFLOP"]) == ("0.3", "0.6")
    assert over["trainable parameters"] == alone["trainable parameters"]


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_claims_over_tasks_are_judged_with_strata_and_in_one_family(
    seeds: tuple[int, ...], tmp_path: Path
) -> None:
    claims = (
        "heft@3 > lora@3",
        "heft@3 > lora@20 by logprob",
        "heft@3 > base",
        "lora@3 > majority",
    )
    report = reported(tmp_path, runs(tmp_path, seeds), *claims)
    content, section = first(report)
    assert report.tested == 12
    assert len({verdict.level for part in report.sections for verdict in part.verdicts}) == 1
    heft, lora = section.settings[2], section.settings[0]
    by_hand = compare(heft.right - lora.right, seeds=seeds, strata=np.repeat([0, 1], [600, 100]))
    found = content.verdicts[0].comparison
    assert found is not None
    assert found.difference == by_hand.difference == pytest.approx(0.07, abs=0.002)
    assert content.verdicts[0].pointwise == by_hand.estimate.interval(0.05)
    assert content.verdicts[0].budgets == pytest.approx((1.2, 0.6))
    assert all(verdict.comparison is not None for verdict in content.verdicts)
    words = {"this run only"} if seeds == (0,) else {"supported", "contradicted"}
    assert {verdict.verdict for verdict in content.verdicts[:1]} <= words
    assert "the tasks are fixed, and nothing is said of others" in content.about
    assert [record["tasks"] for record in content.claims] == [["boolq", "piqa"]] * 4


def test_what_is_not_complete_on_all_tasks_is_left_out_and_named(tmp_path: Path) -> None:
    made = runs(tmp_path, seeds=(0, 1))
    boolq = made[0][0].replace("method=lora epochs=3 seed=0", "")
    more = [
        (f"method=reft epochs=20 seed=0 {boolq}", 0.5),
        (f"method=lora epochs=3 seed=2 {boolq}", 0.5),
        (f"method=lora epochs=6 seed=0 {boolq}", 0.5),
        (
            f"method=lora epochs=6 seed=1 {made[-1][0].replace('method=heft epochs=3 seed=1', '')}",
            0.5,
        ),
    ]
    report = reported(tmp_path, [*made, *more], "heft@3 > reft@20", "heft@3 > lora@3")
    content, section = first(report)
    assert {setting.short: setting.seeds for setting in section.settings} == {
        "lora@3": (0, 1),
        "lora@20": (0, 1),
        "heft@3": (0, 1),
    }
    assert set(content.notes) == {
        "Left out because they are not complete on piqa: reft@20 r8.",
        "Left out because they are without a seed that all tasks have: lora@6 r8.",
        "Only the seeds that all tasks have are used: lora@3 r8 (0, 1).",
    }
    missing, found = content.verdicts
    assert missing.verdict == "not in this sweep"
    assert "no complete run of reft@20 on all tasks" in missing.why
    assert found.comparison is not None
    assert found.comparison.seeds == (0, 1)


def test_an_unfinished_run_on_one_task_keeps_its_setting_out(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, runs(tmp_path, (0,)), claims=["heft@3 > lora@3"])
    (sweep.store.folder(sweep.plan()["runs"][-1]["stages"][-1]) / "result.json").unlink()
    content, section = first(make_report([sweep], None, None))
    assert [setting.short for setting in section.settings] == ["lora@3", "lora@20"]
    assert content.verdicts[0].verdict == "not complete yet"
    assert {row.kind for row in content.rows} == {"reference", "setting"}


def test_tasks_that_are_scored_differently_match_and_it_is_said(tmp_path: Path) -> None:
    made = runs(tmp_path, (0,))
    changed = [
        (f"{run} evaluation.mode=generate" if "name=piqa" in run else run, accuracy)
        for run, accuracy in made
    ]
    content, section = first(reported(tmp_path, changed))
    assert len(section.settings) == 3
    assert (
        "The tasks differ in evaluation.mode: 'logprob' (boolq), 'generate' (piqa)."
        in content.notes
    )


def test_a_task_that_was_asked_in_two_ways_is_one_task(tmp_path: Path) -> None:
    made = runs(tmp_path, (0,))
    of_boolq = [one for one in made if "name=boolq" in one[0]]
    again = [(f"{run} data.eval_split=dev", accuracy) for run, accuracy in of_boolq]
    for index, two in enumerate((again, [(f"{r} evaluation.mode=generate", a) for r, a in made])):
        folder = tmp_path / str(index)
        report = reported(folder, [*made, *two])
        over = [c for c in report.sections if isinstance(c.section, SectionOverTasks)]
        assert [content.section.title for content in over] == ["tiny on 2 tasks (boolq, piqa)"] * (
            index + 1
        )
    assert not any(c.tasks for c in reported(tmp_path / "alone", [*of_boolq, *again]).sections)


def test_settings_that_vary_within_a_task_are_not_mixed_up(tmp_path: Path) -> None:
    made = [
        (f"{run} data.max_train_rows={rows}", accuracy + 0.001 * rows)
        for run, accuracy in runs(tmp_path, (0,))
        for rows in (10, 20)
    ]
    _, section = first(reported(tmp_path, made))
    assert [one.variant for one in section.settings[:2]] == [
        {"data.max_train_rows": "10"},
        {"data.max_train_rows": "20"},
    ]
    assert section.settings[1].accuracy - section.settings[0].accuracy == pytest.approx(
        0.01, abs=0.003
    )


def test_clusters_of_one_task_count_over_tasks(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, runs(tmp_path), claims=["heft@3 > lora@3"])
    options = ReportOptions((parse_claim("heft@3 > lora@3"),), cluster_column="kind")
    content, section = first(make_report([sweep], options, None))
    found = content.verdicts[0].comparison
    assert found is not None
    kinds = sum(len(set(part.clusters)) for part in section.parts if part.clusters is not None)
    assert found.clusters == kinds < 700
    assert f"count as {kinds:,} clusters" in content.about


def test_the_page_begins_with_the_mean_over_tasks_everywhere(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, runs(tmp_path), claims=["heft@3 > lora@3", "heft@3 > lora@20"])
    console = Console(width=80, record=True, file=(tmp_path / "terminal").open("w"))
    console.print(write_report([sweep], tmp_path / "report"))
    terminal, folder = console.export_text(), tmp_path / "report"
    assert max(map(len, terminal.splitlines())) <= 80
    page, markdown, tex = ((folder / f"report.{e}").read_text() for e in ("html", "md", "tex"))
    for text in (page, markdown, tex, terminal):
        places = [text.index(what) for what in ("tiny on 2 tasks", "tiny on boolq", "tiny on piqa")]
        assert places == sorted(places)
    assert "mean (95 %)" in terminal
    assert "There are 2 comparisons of single tasks" in page
    assert "of 2 tasks, up to 3 seeds" in page
    assert r"\usepackage{booktabs,amssymb,graphicx}" in tex
    assert r"boolq & piqa & Mean\ (\%) & 95\,\% interval" in tex
    records = json.loads((folder / "claims.json").read_text())
    assert [record["section"] for record in records[::2]] == [
        "tiny on 2 tasks (boolq, piqa)",
        "tiny on boolq",
        "tiny on piqa",
    ]
    assert len(pd.read_csv(folder / "results.csv")) == 18
    drawn = {file.stem for file in (folder / "figures").glob("*.csv")}
    assert {"effects", "noise", "effects-2", "disagreement-2", "effects-3"} <= drawn
    assert not {"disagreement", "accuracy_over_epochs", "training_curves"} & drawn
    effects = pd.read_csv(folder / "figures/effects.csv")
    assert list(effects.difference) == [record["difference"] for record in records[:2]]


def test_latex_has_a_column_for_each_task(tmp_path: Path) -> None:
    text = latex(reported(tmp_path, runs(tmp_path, (0,))))
    line = next(line for line in text.splitlines() if line.startswith("HEFT"))
    tasks = re.findall(r"\\shortstack\[r\]\{(\d+\.\d)\\\\\(\d+\.\d--\d+\.\d\)\}", line)
    assert tasks == ["57.0", "77.0"]
    assert "& 67.0 &" in line
