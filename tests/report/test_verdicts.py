"""What the report says of claims, in every place where it says it."""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from heft_pipeline.errors import UserError
from heft_pipeline.evidence.claims import parse_claim
from heft_pipeline.report import write_report
from heft_pipeline.report.__main__ import main
from heft_pipeline.report.content import make_report
from heft_pipeline.report.options import ReportOptions, noted_options
from heft_pipeline.store.example_clusters import clusters, record_clusters
from heft_pipeline.store.sweep_folders import Sweep
from tests.report.made_sweeps import make_sweep

CLAIMS = [
    "heft@3 > lora@3",
    "heft@3 > lora@20",
    "heft@3 > reft@20",
    "heft@3 > base",
    "heft@3 >= lora@3 - 2.0",
    "heft@3 = lora@3 +- 5",
    "heft@3 = lora@20 +- 0.5",
    "heft@3 > lora@3 by logprob",
]


def table(seeds: int, spread: float = 0.004) -> list[tuple[str, float]]:
    return [
        (f"method={method} epochs={epochs} seed={seed}", accuracy + spread * ((seed * 7) % 5))
        for method, epochs, accuracy in (
            ("lora", 3, 0.63),
            ("lora", 20, 0.7),
            ("reft", 20, 0.55),
            ("heft", 3, 0.64),
        )
        for seed in range(seeds)
    ]


def written(sweep: Sweep, options: ReportOptions | None = None) -> str:
    """Write a sweep's report and return the terminal's text."""
    console = Console(width=80, record=True, file=(sweep.folder / "terminal").open("w"))
    console.print(write_report([sweep], sweep.folder, options))
    return re.sub(r"\s+", " ", console.export_text())


def numbers(text: str) -> list[float]:
    return [float(n.replace("\N{MINUS SIGN}", "-")) for n in re.findall(r"[+\u2212]\d+\.\d+", text)]


@pytest.mark.parametrize(
    ("seeds", "scope"),
    [(1, "both"), (2, "both"), (5, "both"), (6, "both"), (5, "seeds"), (2, "examples")],
)
def test_no_interval_and_verdict_disagree_anywhere(seeds: int, scope: str, tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, table(seeds), claims=CLAIMS)
    options = ReportOptions(tuple(map(parse_claim, CLAIMS)), scope=scope)
    terminal = written(sweep, options)
    page, markdown = ((sweep.folder / f"report.{e}").read_text() for e in ("html", "md"))
    records = json.loads((sweep.folder / "claims.json").read_text())
    drawn = pd.read_csv(sweep.folder / "figures/effects.csv").set_index("claim")
    assert [record["claim"] for record in records] == [str(parse_claim(c)) for c in CLAIMS]
    for record in records:
        claim, low, high = parse_claim(record["claim"]), record["low"], record["high"]
        holds = claim.holds(low, high)
        of_these_runs = seeds == 1 or scope == "examples"
        decided = {True: "supported", False: "contradicted", None: "not decided by this data"}
        verdict = "this run only" if of_these_runs else decided[holds]
        assert record["verdict"] == verdict
        if claim.relation == ">" and not of_these_runs:
            assert (low > 0 or high < 0) == (verdict in ("supported", "contradicted"))
        assert (record["p"] < 0.05) == (holds is not None)
        assert low <= record["difference"] <= high
        row = drawn.loc[record["claim"]]
        assert (row.verdict, row.low, row.high) == (
            verdict,
            pytest.approx(low),
            pytest.approx(high),
        )
        said = record["words"]
        assert said in terminal
        scale = 100 if claim.metric == "accuracy" else 1
        digits = 2 if claim.metric == "accuracy" else 3
        assert {round(scale * low, digits), round(scale * high, digits)} <= {*numbers(said)}
        for text in (page, markdown):
            text = text.replace("&gt;", ">")
            shown = text[text.index(record["claim"]) :]
            ends = numbers(shown[shown.index("95 % interval") :][:200])[:2]
            assert ends == [round(scale * low, digits), round(scale * high, digits)]
            assert (said.split(": ", 1)[1] if of_these_runs else verdict) in shown[:400]


def test_intervals_of_several_claims_are_wider_than_each_ones_own(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, table(5), claims=CLAIMS)
    (content,) = make_report([sweep], None, None).sections
    for verdict in content.verdicts:
        (low, high), (least, most) = verdict.interval, verdict.pointwise
        assert low < least < most < high
    (alone,) = make_report([sweep], ReportOptions((parse_claim(CLAIMS[0]),)), None).sections
    assert alone.verdicts[0].interval == alone.verdicts[0].pointwise
    assert alone.verdicts[0].pointwise == content.verdicts[0].pointwise


def test_the_pointwise_interval_is_shown_on_request_only(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, table(3))
    written(sweep)
    page, said = sweep.folder / "report.html", "As the only claim, its 95 % interval would be"
    assert said not in page.read_text()
    assert "pointwise_low" not in json.loads((sweep.folder / "claims.json").read_text())[0]
    assert main([str(sweep.folder), "--pointwise"]) == 0
    assert said in page.read_text()
    record = json.loads((sweep.folder / "claims.json").read_text())[0]
    assert record["low"] < record["pointwise_low"] < record["pointwise_high"] < record["high"]


def test_one_seed_is_never_said_to_support_or_contradict_a_claim(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, table(1))
    text = written(sweep)
    for name in ("report.md", "report.html", "claims.json"):
        assert not re.search(
            "supported|contradicted",
            (sweep.folder / name).read_text().split("<body>")[-1].replace('class="supported"', ""),
        ), name
    assert "this run: lower by 6.00 points (" in text
    assert "other seeds may differ" in text
    assert "Of other seeds they say nothing" in text
    assert "python -m heft_pipeline -m made=up seed=0,1,2,3,4,5" in text


@pytest.mark.parametrize(("seeds", "said"), [(2, True), (5, True), (6, False)])
def test_few_seeds_are_said_to_rest_on_a_model(seeds: int, said: bool, tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, table(seeds))
    assert (f"With {seeds} seeds they rest on a model" in written(sweep)) == said
    page = (sweep.folder / "report.html").read_text()
    assert ("The sign-flip test over 6 seeds" in page) == (not said)
    (record, *_) = json.loads((sweep.folder / "claims.json").read_text())
    assert (record["sign_flip_p"] is None) == said


def advised(sweep: Sweep) -> str:
    found = make_report([sweep], None, None).advice
    return found.command if found else ""


def test_a_claim_that_seeds_would_decide_comes_with_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = make_sweep(tmp_path, table(3, spread=0.012), claims=["heft@3 > lora@3"])
    (content,) = make_report([sweep], None, None).sections
    (verdict,) = content.verdicts
    assert verdict.verdict == "not decided by this data"
    seeds, _ = verdict.needed
    assert seeds is not None
    command = f"python -m heft_pipeline -m made=up 'seed=range(0,{seeds})'"
    assert advised(sweep) == command
    assert main([str(sweep.folder)]) == 0
    assert f"  {command}\n" in capsys.readouterr().out, "on one line, to be copied"
    plan = sweep.plan()
    for given, asked in (
        ("method=heft,lora seed=0,1,2", "-m method=heft,lora"),
        ("-m +experiment=rank_sweep", "-m +experiment=rank_sweep"),
        ("--multirun seed=5 'prompt=a b'", "--multirun 'prompt=a b'"),
    ):
        plan["command"] = f"python -m heft_pipeline {given}"
        (sweep.folder / "plan.json").write_text(json.dumps(plan))
        assert advised(sweep) == f"python -m heft_pipeline {asked} 'seed=range(0,{seeds})'"


def test_without_claims_the_report_tests_what_the_sweep_has(tmp_path: Path) -> None:
    runs = [f"method={m} epochs={e}" for m in ("lora", "reft", "heft") for e in (3, 6, 20)]
    runs += ["method=heft lora.epochs=2 reft.epochs=1", "method=joint epochs=3"]
    sweep = make_sweep(tmp_path, [(run, 0.6) for run in runs], claims=None)
    (content,) = make_report([sweep], None, None).sections
    assert [str(verdict.claim) for verdict in content.verdicts] == [
        "heft@3 > lora@3", "heft@3 > reft@3", "heft@3 > joint@3",
        "heft@6 > lora@6", "heft@6 > reft@6", "heft@20 > lora@20", "heft@20 > reft@20",
        "heft@3 > lora@6", "heft@3 > reft@6",
        "heft@2+1 > lora@3", "heft@2+1 > reft@3", "heft@2+1 > joint@3",
        "heft@3 > lora@20", "heft@3 > reft@20",
    ]  # fmt: skip
    assert not any(verdict.why for verdict in content.verdicts)


@pytest.mark.parametrize("methods", [["lora"], ["lora", "red"], ["heft"]])
def test_a_sweep_that_nobody_made_claims_about_has_none(
    methods: Sequence[str], tmp_path: Path
) -> None:
    sweep = make_sweep(tmp_path, [(f"method={m}", 0.6) for m in methods], claims=None)
    assert "not in this sweep" not in written(sweep)
    assert json.loads((sweep.folder / "claims.json").read_text()) == []


def clustered(sweep: Sweep, size: int) -> None:
    """Note a column by which each ``size`` examples in a row belong together."""
    data = make_report([sweep], None, None).sections[0].section.spec.data
    ids = [f"test/{number}" for number in range(1200)]
    path = sweep.folder / "clusters.json"
    from heft_pipeline.store.example_clusters import _key

    of = {id: str(number // size) for number, id in enumerate(ids)}
    path.write_text(json.dumps({_key(data): {"column": "passage", "of": of, "trained": 53}}))


def test_clusters_count_in_every_interval_and_are_named(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, table(3))
    (before,) = make_report([sweep], None, None).sections
    clustered(sweep, 10)
    (after,) = make_report([sweep], None, None).sections
    for one, other in zip(before.verdicts, after.verdicts, strict=True):
        assert one.comparison is not None
        assert other.comparison is not None
        assert other.comparison.clusters == 120
        assert one.comparison.difference == pytest.approx(other.comparison.difference)
        assert one.interval != other.interval
    settings = zip(before.section.settings, after.section.settings, strict=True)
    for before_setting, after_setting in settings:
        assert before_setting.accuracy == after_setting.accuracy
        assert before_setting.interval != after_setting.interval
    assert before.section.majority_interval != after.section.majority_interval
    text = written(sweep)
    assert "The 1,200 examples count as 120 clusters, by passage. 53 of them share theirs" in text
    assert main([str(sweep.folder), "--cluster-column", "none"]) == 0
    assert "clusters, by" not in (sweep.folder / "report.html").read_text()


def test_a_cluster_column_that_is_missing_is_refused(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, table(1))
    data = make_report([sweep], None, None).sections[0].section.spec.data
    from dataclasses import replace

    with pytest.raises(UserError, match=r"data\.cluster_column=pasage is not a column .*passage"):
        record_clusters(sweep, [replace(data, cluster_column="pasage")])
    record_clusters(sweep, [replace(data, cluster_column="kind")])
    found = clusters(sweep, data)
    assert found is not None
    assert len({*found.of.values()}) == 4
    assert found.trained == 1200
    assert main([str(sweep.folder), "--cluster-column", "pasage"]) == 1
    record_clusters(sweep, [data])
    assert clusters(sweep, data) is None, "the newest command counts"


def test_sweeps_that_name_different_clusters_are_not_mixed(tmp_path: Path) -> None:
    one = make_sweep(tmp_path, table(1))
    other = make_sweep(tmp_path, [("method=lora epochs=6", 0.6)], name="other")
    clustered(one, 10)
    with pytest.raises(UserError, match="--cluster-column"):
        make_report([one, other], None, None)
    options = ReportOptions(cluster_column="")
    assert len(make_report([one, other], options, None).sections) == 1


def test_what_the_sweep_noted_is_what_its_report_shows(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, table(2), claims=["heft@3 = lora@3 +- 1"])
    options = noted_options([sweep])
    assert [str(claim) for claim in options.claims or ()] == ["heft@3 = lora@3 +- 1"]
    plan = sweep.plan()
    plan["report"] |= {"scope": "seeds", "pointwise": True}
    (sweep.folder / "plan.json").write_text(json.dumps(plan))
    assert noted_options([sweep]).scope == "seeds"
    assert "speak of other seeds on these examples" in written(sweep)
    assert not math.isnan(json.loads((sweep.folder / "claims.json").read_text())[0]["p"])


def test_one_cluster_shows_nothing_of_others(tmp_path: Path) -> None:
    claims = ["heft@3 > lora@3", "heft@3 > lora@3 by logprob"]
    sweep = make_sweep(tmp_path, table(2), claims=claims)
    clustered(sweep, 1200)
    text = written(sweep)
    assert text.count("not decided by this data") == 2
    records = json.loads((sweep.folder / "claims.json").read_text())
    assert [(r["low"], r["high"], r["p"]) for r in records] == [(-1, 1, 1), (None, None, 1)]
