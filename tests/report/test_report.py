"""Reports of sweeps whose results are known."""

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
from matplotlib import pyplot as plt
from rich.console import Console

from heft_pipeline.adapters.kind import kinds
from heft_pipeline.adapters.lora.settings import LoraSettings
from heft_pipeline.evidence.claims import parse_claim
from heft_pipeline.files.sealed import write_sealed
from heft_pipeline.plan import graph
from heft_pipeline.report import words, write_report
from heft_pipeline.report.__main__ import main
from heft_pipeline.report.content import Report, SectionContent, make_report
from heft_pipeline.report.drawing import plain_numbers, style
from heft_pipeline.report.options import ReportOptions
from heft_pipeline.report.paper_numbers import SOURCE
from heft_pipeline.report.records import COLUMNS, results_table
from heft_pipeline.store.stage_folders import Store
from heft_pipeline.store.sweep_folders import Sweep
from tests.report.made_sweeps import complete, make_sweep, reseal

TABLE = [
    (f"method={method} epochs={epochs} seed={seed}", accuracy + 0.004 * seed)
    for method, epochs, accuracy in (
        ("lora", 3, 0.6),
        ("lora", 20, 0.7),
        ("reft", 20, 0.55),
        ("heft", 3, 0.64),
    )
    for seed in (0, 1, 2)
]


def reported(sweep: Sweep, *claims: str, figures: Path | None = None) -> Report:
    options = ReportOptions(tuple(map(parse_claim, claims))) if claims else None
    return make_report([sweep], options, figures)


def shown(sweep: Sweep, tmp_path: Path) -> str:
    console = Console(width=80, record=True, file=(tmp_path / "terminal").open("w"))
    console.print(write_report([sweep], tmp_path / "report"))
    return console.export_text()


def test_verdicts_say_what_the_data_supports_and_contradicts(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, TABLE)
    (content,) = reported(sweep, "heft@3 > lora@20", "heft@3 > reft@20").sections
    lora, reft = content.verdicts
    assert (lora.verdict, reft.verdict) == ("contradicted", "supported")
    assert lora.comparison is not None
    assert lora.comparison.difference == pytest.approx(-0.06, abs=0.002)
    assert (lora.comparison.seeds, lora.comparison.examples) == ((0, 1, 2), 1200)
    assert lora.adjusted >= lora.comparison.p_value()
    assert lora.budgets == pytest.approx((0.6, 2.0))


def test_the_papers_margin_is_not_decided_by_as_many_examples(tmp_path: Path) -> None:
    """A tenth of a point on a thousand examples: the report must not call it better."""
    runs = [("method=heft epochs=3", 0.701), ("method=lora epochs=20", 0.7)]
    sweep = make_sweep(tmp_path, [(f"{run} seed={s}", a) for run, a in runs for s in (0, 1)])
    (content,) = reported(sweep).sections
    margin, missing = content.verdicts
    assert margin.verdict == "not decided by this data"
    assert margin.comparison is not None
    _, needed_examples = margin.needed
    assert needed_examples is None or needed_examples > 10_000
    assert missing.verdict == "not in this sweep"
    assert "method=reft epochs=20 would add it" in missing.why
    text = shown(sweep, tmp_path)
    assert re.search(r"\? heft@3 > lora@20: not decided by this data \(\+0\.\d\d points", text)
    assert "not in this sweep" in text
    assert max(map(len, text.splitlines())) <= 80


def test_the_untouched_model_and_the_majority_can_be_claimed_against(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, TABLE)
    claims = ["lora@3 > base", "lora@3 > majority", "base > lora@3"]
    (content,) = reported(sweep, *claims).sections
    assert [v.verdict for v in content.verdicts] == ["supported", "supported", "contradicted"]


def test_the_table_has_the_references_and_what_each_setting_cost(tmp_path: Path) -> None:
    report = reported(make_sweep(tmp_path, TABLE))
    (content,) = report.sections
    headings = [heading for heading, _ in content.columns]
    rows = [dict(zip(headings, row.cells, strict=True)) for row in content.rows]
    assert [row["method"] for row in rows[:2]] == ["always “true”", "untouched model"]
    heft = rows[-1]
    assert (heft["epochs"], heft["rank"], heft["seeds"]) == ("3 (6)", "8", "3")
    assert (heft["accuracy"], heft["train TFLOP"], heft["train seconds"]) == (
        "64.4%",
        "0.6",
        "12.0",
    )
    assert heft["examples/s"] == "400"
    assert heft["stages shared"] == "3 of 6"
    low, high = map(float, heft["95 % interval"].split("-"))
    assert low < 64.4 < high


def test_the_files_are_there_and_each_figure_has_its_data(tmp_path: Path) -> None:
    runs = [*TABLE, ("method=lora epochs=3 rank=16", 0.62)]
    sweep = make_sweep(tmp_path, runs)
    shown(sweep, tmp_path)
    folder = tmp_path / "report"
    names = {
        "accuracy_over_epochs", "accuracy_over_rank", "accuracy_against_compute",
        "training_curves", "reft_edits", "disagreement", "effects", "noise",
    }  # fmt: skip
    for name in names:
        assert (folder / f"figures/{name}.png").read_bytes()[:4] == b"\x89PNG"
        assert "<svg" in (folder / f"figures/{name}.svg").read_text()
        assert (folder / f"figures/{name}.pdf").read_bytes()[:5] == b"%PDF-"
        assert len(pd.read_csv(folder / f"figures/{name}.csv")) >= 1
    assert {f.stem for f in (folder / "figures").iterdir()} == names
    table = pd.read_csv(folder / "results.csv")
    assert list(table.columns) == COLUMNS
    assert len(table) == len(runs)
    page = (folder / "report.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)', page), "the page needs no other file"
    markdown = (folder / "report.md").read_text()
    for link in re.findall(r"\]\(([^)]+)\)", markdown):
        assert (folder / link).is_file(), link


def test_the_pareto_front_holds_what_nothing_cheaper_beats(tmp_path: Path) -> None:
    reported(make_sweep(tmp_path, TABLE), figures=tmp_path / "figures")
    table = pd.read_csv(tmp_path / "figures/accuracy_against_compute.csv")
    front = {f"{r.method}@{r.stage_epochs}" for r in table[table.pareto].itertuples()}
    assert front == {"lora@3", "heft@3+3", "lora@20"}


def test_disagreement_counts_and_shows_examples_with_their_text(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, TABLE)
    (content,) = reported(sweep, figures=tmp_path / "figures").sections
    found = content.disagreement
    assert found is not None
    assert (found.first, found.second) == ("heft@3", "lora@20")
    assert sum(found.counts) == pytest.approx(1200)
    (verdict, _) = content.verdicts
    assert verdict.comparison is not None
    assert found.counts[1:3] == (verdict.comparison.wins, verdict.comparison.losses)
    assert {example.right for example in found.examples} == {"heft@3", "lora@20"}
    assert all("Question:" in example.text for example in found.examples)


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("data.prompt='{passage} {question}'", "data.prompt"),
        ("data.eval_split=dev", "data.eval_split"),
        ("data.max_eval_rows=500", "data.max_eval_rows"),
        ("evaluation.mode=generate", "evaluation.mode"),
        ("evaluation.normalize=byte", "evaluation.normalize"),
    ],
)
def test_what_was_evaluated_on_something_else_is_kept_apart(
    override: str, key: str, tmp_path: Path
) -> None:
    sweep = make_sweep(tmp_path, [("method=heft epochs=3", 0.8)])
    make_sweep(tmp_path, [("method=lora epochs=20", 0.6)], name="other", extra=[override])
    other = Sweep(tmp_path / "sweeps" / "other")
    report = make_report([sweep, other], None, None)
    first, second = report.sections
    assert first.section.apart == ""
    assert key in second.section.apart
    for content in report.sections:
        assert {v.verdict for v in content.verdicts} == {"not in this sweep"}
        assert content.section.base is not None


def test_several_sweeps_make_one_report_and_share_no_run_twice(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, TABLE)
    make_sweep(tmp_path, [*TABLE[:3], ("method=lora epochs=6", 0.65)], name="other")
    other = Sweep(tmp_path / "sweeps" / "other")
    report = make_report([sweep, other], None, None)
    (content,) = report.sections
    counts = {setting.short: len(setting.seeds) for setting in content.section.settings}
    assert counts == {"lora@3": 3, "lora@20": 3, "reft@20": 3, "heft@3": 3, "lora@6": 1}
    assert report.title == "made, other"


def test_ranks_and_settings_are_compared_with_their_like(tmp_path: Path) -> None:
    sweep = make_sweep(
        tmp_path,
        [
            (f"method={method} rank={rank} lora.learning_rate={rate}", accuracy)
            for method, accuracy in (("lora", 0.6), ("heft", 0.7))
            for rank in (4, 8)
            for rate in (0.001, 0.002)
        ],
    )
    (content,) = reported(sweep, "heft@3 > lora@3", "heft@3 r4 > lora@3 r8").sections
    whats = [verdict.what for verdict in content.verdicts]
    assert [w for w in whats if "r4 > " not in w] == [
        f"heft@3 > lora@3 r{rank} lora.learning_rate={rate}"
        for rank in (4, 8)
        for rate in (0.001, 0.002)
    ]
    tested = [v for v in content.verdicts if v.comparison]
    assert len(tested) == 6
    levels = {v.level for v in tested}
    assert len(levels) == 1, "corrected for all together"
    assert 0.05 / 6 <= levels.pop() < 0.05
    assert {s.variant["lora.learning_rate"] for s in content.section.settings} == {"0.001", "0.002"}


def test_a_setting_is_named_only_where_it_varies(tmp_path: Path) -> None:
    alike = [
        ("method=lora", 0.6),
        ("method=reft", 0.6),
        ("method=joint", 0.6),
        ("method=heft", 0.7),
    ]
    (content,) = reported(make_sweep(tmp_path, alike)).sections
    assert [setting.variant for setting in content.section.settings] == [{}] * 4
    other = [*alike, ("method=joint joint.batch_size=8", 0.5), ("method=lora rank=4", 0.5)]
    (content,) = reported(make_sweep(tmp_path, other, name="other")).sections
    variants = [setting.variant for setting in content.section.settings]
    joint = "joint.batch_size"
    assert variants == [{}, {}, {joint: "16"}, {}, {joint: "8"}, {}]


def test_edits_are_drawn_wherever_a_stage_has_recorded_them(tmp_path: Path) -> None:
    runs = [("method=reft", 0.6), ("method=reft epochs=5", 0.6), ("method=heft", 0.7)]
    runs += [("method=joint", 0.6), ("method.stages=[reft,lora]", 0.6), ("method=lora", 0.6)]
    reported(make_sweep(tmp_path, runs), figures=tmp_path / "figures")
    drawn = pd.read_csv(tmp_path / "figures/reft_edits.csv")
    assert list(drawn.setting.unique()) == [
        "reft@5", "heft@3 (on LoRA)", "joint@3", "reft+lora@3",
    ]  # fmt: skip


def test_the_rank_of_another_kind_is_a_column_behind_the_fixed_ones(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(graph, "kinds", lambda: {"dora": LoraSettings, **kinds()})
    table = results_table(
        reported(make_sweep(tmp_path, [("method=heft reft.rank=4", 0.6)])).records
    )
    assert list(table.columns) == [*COLUMNS, "dora_rank"]
    assert table[["lora_rank", "reft_rank"]].to_numpy().tolist() == [[8, 4]]
    assert table.dora_rank.isna().all()


def _break(sweep: Sweep, how: str) -> None:
    store, key = sweep.store, sweep.plan()["runs"][0]["stages"][-1]
    folder = store.folder(key)
    if how == "half-written predictions":
        file = folder / "predictions.parquet"
        file.write_bytes(file.read_bytes()[:100])
    elif how == "no predictions":
        (folder / "predictions.parquet").unlink()
    elif how == "half-written result":
        (folder / "result.json").write_text('{"accuracy": 0.')
    elif how == "empty result":
        (folder / "result.json").write_text("{}")
    elif how == "other examples":
        table = pd.read_parquet(folder / "predictions.parquet")
        table[:500].to_parquet(folder / "predictions.parquet")
    elif how == "failed":
        (folder / "result.json").unlink()
        store.fail(key, {"reason": "the loss was NaN"})
    elif how == "gone":
        shutil.rmtree(folder)
        folder.mkdir()


@pytest.mark.parametrize(
    ("how", "status"),
    [
        ("half-written predictions", "damaged"),
        ("no predictions", "damaged"),
        ("half-written result", "damaged"),
        ("empty result", "damaged"),
        ("other examples", "damaged"),
        ("failed", "failed"),
        ("gone", "incomplete"),
    ],
)
def test_a_sweep_with_broken_stages_is_reported_with_them_marked(
    how: str, status: str, tmp_path: Path
) -> None:
    sweep = make_sweep(tmp_path, [TABLE[9], TABLE[3], TABLE[6]])
    _break(sweep, how)
    text = shown(sweep, tmp_path)
    assert status in text
    assert "2 of 3 runs are complete" in text
    assert "heft@3 > lora@20: not complete yet" in text
    table = pd.read_csv(tmp_path / "report/results.csv")
    assert list(table.status) == [status, "complete", "complete"]
    page = (tmp_path / "report/report.html").read_text()
    assert status in page
    assert ("the loss was NaN" in page) == (how == "failed")


def test_a_sweep_of_which_nothing_is_complete_is_reported(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, [TABLE[0]])
    _break(sweep, "gone")
    assert "0 of 1 runs are complete" in shown(sweep, tmp_path)


def test_a_running_sweep_says_so(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, [TABLE[0], TABLE[3]])
    _break(sweep, "gone")
    with sweep.store.lock(sweep.plan()["runs"][0]["stages"][0], lambda _: None):
        text = shown(sweep, tmp_path)
    assert "This sweep is still running: 1 of 2 runs are complete (1 running)" in text


PAPERS_RECIPE = ["+experiment=heft_paper", "model=tiny", "data=demo", "data.dev_split=null"]
PAPERS_RECIPE += ["model.dtype=bfloat16"]


def as_if_the_papers(sweep: Sweep, output_dir: Path) -> None:
    """Give a sweep's files the names and numbers of rows of the paper's model and data."""
    path = sweep.folder / "plan.json"
    data, store = json.loads(path.read_text().replace('"demo"', '"boolq"')), Store(output_dir)
    for key, stage in data["stages"].items():
        while stage:
            stage["model"]["id"] = "meta-llama/Llama-2-7b-chat-hf"
            stage["data"]["location"] = "google/boolq"
            stage = stage["parent"]
        folder = store.folder(key)
        predictions = pd.read_parquet(folder / "predictions.parquet")
        many = pd.concat([predictions] * 4, ignore_index=True)[:3270]
        many["id"] = [f"validation/{n}" for n in range(3270)]
        many.to_parquet(folder / "predictions.parquet")
        reseal(store, key, n_train=9427, dtype="bfloat16")
    # Identity is not in what was renamed, so the fingerprints still fit.
    write_sealed(path, {key: value for key, value in data.items() if key != "sha256"})


def test_the_papers_numbers_stand_beside_its_model_data_and_recipe(tmp_path: Path) -> None:
    rows = [("method=reft epochs=20", 0.6), ("method=lora epochs=20", 0.7)]
    rows += [(f"method=heft epochs={n}", 0.72) for n in (3, 20)]
    rows += [("method=lora epochs=3", 0.65), ("method=lora epochs=20 lora.alpha=16", 0.66)]
    sampled = "evaluation.temperature=0.6 evaluation.top_p=0.9 evaluation.top_k=50"
    rows += [(f"method=lora epochs=20 {sampled}", 0.7), ("method=lora epochs=20 data.chat=true", 0)]
    rows += [("method=lora epochs=20 data.max_train_rows=300", 0.7)]
    sweep = make_sweep(tmp_path, rows, extra=PAPERS_RECIPE)
    (content, *_) = reported(sweep).sections
    assert not content.paper, "another model and other data"
    as_if_the_papers(sweep, tmp_path)
    first, second, third = reported(sweep).sections
    accuracies = [
        row.cells[headings(first).index(f"{SOURCE} (its accuracy)")] for row in first.rows
    ]
    assert accuracies == ["", "", "83.36 %", "85.05 %", "85.17 %", "85.47 %", "", "", ""]
    times = [row.cells[headings(first).index(f"{SOURCE} (its time)")] for row in first.rows]
    assert "9 h 11 min" in times
    assert "85.05 %" in second.rows[-1].cells, "the script probably sampled"
    assert not any("%" in cell and " " in cell for row in third.rows for cell in row.cells)
    (said,) = first.paper
    assert "85.17 % for HEFT 3+3 against 85.05 % for LoRA 20 is 4 of 3,270 answers" in said
    assert "p is at least 0.125" in said


def headings(content: SectionContent) -> list[str]:
    return [heading for heading, _ in content.columns]


def test_the_command_line_reports_sweeps_by_name_and_checks_claims(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = make_sweep(tmp_path, TABLE)
    where = ["--output-dir", str(tmp_path)]
    assert main(["made", *where, "--claim", "heft@3 > lora@3"]) == 0
    assert "heft@3 > lora@3" in capsys.readouterr().out
    assert (sweep.folder / "report.html").is_file()
    make_sweep(tmp_path, [("method=lora epochs=6", 0.65)], name="other")
    assert main(["made", "other", *where]) == 0
    assert (tmp_path / "reports/made+other/report.html").is_file()
    assert main(["nothing", *where]) == 1
    assert "there is no sweep nothing" in capsys.readouterr().err
    assert main(["made", *where, "--claim", "better"]) == 1
    assert "'better' is not a claim" in capsys.readouterr().err


def test_text_of_examples_is_escaped(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, [TABLE[9]], extra=['data.name="<script>x</script>"'])
    shown(sweep, tmp_path)
    assert "<script>x" not in (tmp_path / "report/report.html").read_text()


def test_complete_counts_a_damaged_runs_other_seeds(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, TABLE)
    _break(sweep, "no predictions")
    (content,) = reported(sweep).sections
    (lora,) = [s for s in content.section.settings if s.short == "lora@3"]
    assert lora.seeds == (1, 2)
    complete(sweep.store, content.section.open[0].last, 0.6)
    (content,) = reported(sweep).sections
    assert not content.section.open


def test_many_epochs_and_ranks_of_a_two_stage_method_can_be_drawn(tmp_path: Path) -> None:
    runs = [
        (f"method=heft epochs={epochs} rank={rank}", 0.6)
        for epochs in range(1, 10)
        for rank in (4, 8)
    ]
    reported(make_sweep(tmp_path, runs), figures=tmp_path / "figures")
    drawn = pd.read_csv(tmp_path / "figures/accuracy_over_rank.csv")
    assert set(drawn.stage_epochs) == {"9+9"}


def test_figures_of_one_configuration_say_which(tmp_path: Path) -> None:
    runs = [
        (f"method={method} rank={rank} lora.learning_rate={rate}", 0.6)
        for method in ("reft", "lora")
        for rank in (4, 8)
        for rate in (0.001, 0.002)
    ]
    (content,) = reported(make_sweep(tmp_path, runs), figures=tmp_path / "figures").sections
    figures = {figure.path.name: figure for figure in content.figures}
    for name in ("accuracy_over_rank", "training_curves"):
        assert "lora.learning_rate=0.001" in figures[name].caption
    ranks = pd.read_csv(tmp_path / "figures/accuracy_over_rank.csv")
    assert sorted(set(ranks.method)) == ["lora", "reft"]
    curves = pd.read_csv(tmp_path / "figures/training_curves.csv")
    assert curves[curves.stage == "LoRA"].fingerprint.nunique() == curves["rank"].nunique()


def test_an_unfinished_run_of_another_rank_is_not_what_a_claim_waits_for(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, [("method=heft rank=4", 0.6), ("method=lora epochs=20", 0.6)])
    _break(sweep, "gone")
    (content,) = reported(sweep, "heft@3 r4 > lora@20", "heft@3 r8 > lora@20").sections
    assert [v.verdict for v in content.verdicts] == ["not complete yet", "not in this sweep"]


def test_ids_that_occur_twice_are_not_counted_twice(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, [TABLE[0], TABLE[3]])
    path = sweep.store.folder(sweep.plan()["runs"][0]["stages"][0]) / "predictions.parquet"
    table = pd.read_parquet(path)
    table.assign(id=["test/0", "test/0", *table.id[2:]]).to_parquet(path)
    text = shown(sweep, tmp_path)
    assert "damaged" in text


def test_edits_are_drawn_under_the_numbers_of_their_layers() -> None:
    from matplotlib import pyplot as plt

    from heft_pipeline.report.edit_figure import _draw

    _, axes = plt.subplots()
    rows = [(layer, p, 0.1) for layer in (5, 9) for p in ("l2", "l1")]
    _draw(axes, pd.DataFrame(rows, columns=["layer", "position", "relative_edit"]), 0.1)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["5", "9"]
    plt.close()


@pytest.mark.parametrize("cost", [1e-7, 1e8])
def test_no_text_of_a_report_has_an_exponent(cost: float, tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, [TABLE[0], TABLE[3], TABLE[9]], cost=cost)
    folder = tmp_path / "report"
    texts = [shown(sweep, tmp_path)]
    texts += [(folder / name).read_text() for name in ("report.md", "report.tex")]
    page = re.sub(r'="data:[^"]*"|<script>.*?</script>', "", (folder / "report.html").read_text())
    for text in [*texts, page]:
        # Learning rates are shown as they are typed.
        plain = re.sub(r"learning[_ ]rate[= ]\S+|sha256:\w+|\b[0-9a-f]{12,}\b", "", text)
        assert not re.findall(r"\b\d+(?:\.\d+)?e[+-]?\d+", plain)


@pytest.mark.parametrize(
    ("value", "said"),
    [(0, "0"), (4.77e-5, "0.0000477"), (0.298, "0.298"), (0.6, "0.6"), (1060.4, "1,060"),
     (3.456e13, "34,600,000,000,000"), (-0.00002, "-0.00002")],
)  # fmt: skip
def test_numbers_are_written_in_everyday_notation(value: float, said: str) -> None:
    assert words.number(value) == said


@pytest.mark.parametrize(
    ("value", "said"),
    [(8224, "8.22k"), (999_960, "1M"), (6.7e9, "6.7B"), (12, "12"), (1e13, "10,000B")],
)
def test_counts_are_short(value: float, said: str) -> None:
    assert words.short(value) == said


def test_axes_have_numbers_in_everyday_notation() -> None:
    with style():
        _, axes = plt.subplots()
        axes.plot([0, 2e7], [1e-7, 5e-7])
        axes.yaxis.set_major_formatter(plain_numbers())
        axes.figure.draw_without_rendering()
        ticks = [tick.get_text() for tick in [*axes.get_xticklabels(), *axes.get_yticklabels()]]
        offsets = [axis.get_offset_text().get_text() for axis in (axes.xaxis, axes.yaxis)]
        plt.close()
    assert "20000000" in ticks
    assert "0.0000002" in ticks
    assert offsets == ["", ""]


def test_a_figure_is_as_wide_as_a_column_with_text_that_stays_text(tmp_path: Path) -> None:
    reported(make_sweep(tmp_path, TABLE), figures=tmp_path / "figures")
    for path in (tmp_path / "figures").glob("*.pdf"):
        content = path.read_bytes()
        box = re.search(rb"/MediaBox \[ 0 0 ([\d.]+) ([\d.]+) \]", content)
        assert box, path.name
        assert float(box[1]) == pytest.approx(72 * 3.3, abs=0.1), path.name
        assert b"/Type42" not in content
        assert b"/CIDFontType2" in content or b"/TrueType" in content, path.name
        assert b"CreationDate" not in content


def test_equal_numbers_make_equal_figures(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, TABLE[::3])
    for folder in ("one", "two"):
        reported(sweep, figures=tmp_path / folder)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name


@pytest.mark.parametrize("several", [True, False])
def test_single_seeds_are_drawn_and_explained_where_there_are_several(
    several: bool, tmp_path: Path
) -> None:
    sweep = make_sweep(tmp_path, TABLE if several else TABLE[::3])
    (content,) = reported(sweep, figures=tmp_path / "figures").sections
    for figure in content.figures:
        if figure.path.name.startswith("accuracy"):
            assert ("small pale dots are single seeds" in figure.caption) == several
            seeds = pd.read_csv(figure.csv, dtype=str).accuracy_of_each_seed
            assert all(len(of.split()) == (3 if several else 1) for of in seeds)


def test_the_figure_of_noise_has_each_source_and_what_more_data_would_bring(
    tmp_path: Path,
) -> None:
    sweep = make_sweep(tmp_path, TABLE)
    (content,) = reported(sweep, figures=tmp_path / "figures").sections
    assert content.noise is not None
    table = pd.read_csv(content.noise.csv)
    assert len(table) == len(content.verdicts)
    shares = table[["share_of_seeds", "share_of_examples", "share_of_rest"]]
    assert shares.sum(axis=1).tolist() == pytest.approx([1.0, 1.0])
    assert (table.half_width_with_1_more_seed < table.half_width_now).all()
    assert (table.half_width_with_1000_more_examples < table.half_width_now).all()
    assert table.seeds_that_would_decide.isna().all(), "both claims are decided"


def test_the_noise_of_one_seed_is_of_examples_alone(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, [TABLE[9], TABLE[3]])
    (content,) = reported(sweep, "heft@3 > lora@20", figures=tmp_path / "figures").sections
    assert content.noise is not None
    assert "does not show how much seeds differ" in content.noise.caption
    table = pd.read_csv(content.noise.csv)
    assert table.share_of_seeds.isna().tolist() == [True]
    assert table.share_of_examples.tolist() == [1]


def test_titles_and_captions_are_whole_sentences(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, [*TABLE, ("method=lora epochs=3 rank=16", 0.62)])
    (content,) = reported(sweep, figures=tmp_path / "figures").sections
    assert content.effects is not None
    assert content.noise is not None
    for figure in [*content.figures, content.effects, content.noise]:
        assert re.fullmatch(r"[A-Z].*[^.]", figure.title)
        assert re.fullmatch(r"([A-Z\N{LEFT DOUBLE QUOTATION MARK}].*\.)", figure.caption)
        assert "  " not in figure.caption
