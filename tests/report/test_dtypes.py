"""A report says which of the compared runs were computed in which dtype."""

import json
from pathlib import Path

import pytest

from heft_pipeline.report.content import make_report
from heft_pipeline.report.records import read_runs
from heft_pipeline.store.sweep_folders import Sweep
from tests.report.made_sweeps import make_sweep
from tests.report.test_report import shown

RUNS = [("method=lora epochs=3", 0.6), ("method=heft epochs=3", 0.7)]


def computed_in(sweep: Sweep, dtypes: dict[str, str | None]) -> None:
    """Change the dtype in the results of stages, e.g. ``lora>reft s0``; None takes it out."""
    for stage in {stage for record in read_runs(sweep) for stage in record.stages}:
        name = f"{'>'.join(one.kind for one in stage.chain)} s{stage.seed}"
        if name in dtypes:
            file = sweep.store.folder(stage.fingerprint) / "result.json"
            result = json.loads(file.read_text()) | {"dtype": dtypes[name]}
            file.write_text(json.dumps({k: v for k, v in result.items() if v is not None}))


def said(sweep: Sweep) -> str:
    (content,) = make_report([sweep], None, None).sections
    return content.dtypes


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        ({}, ""),
        ({"lora s0": "bfloat16", "lora>reft s0": "bfloat16", "base s0": "bfloat16"}, ""),
        ({"base s0": None, "lora s0": None}, ""),
        (
            {"lora>reft s0": "bfloat16"},
            "computed in different dtypes: lora@3 and the untouched model in float32; "
            "heft@3 in float32 (lora) and bfloat16 (reft)",
        ),
        (
            {"base s0": "bfloat16"},
            "computed in different dtypes: lora@3 and heft@3 in float32; "
            "the untouched model in bfloat16",
        ),
        (
            {"lora s0": "bfloat16, then float32", "base s0": None, "lora>reft s0": None},
            "computed in different dtypes: lora@3 and heft@3 in bfloat16, then float32",
        ),
    ],
)
def test_runs_in_different_dtypes_are_named_with_all_their_stages(
    tmp_path: Path, dtypes: dict[str, str | None], expected: str
) -> None:
    sweep = make_sweep(tmp_path, RUNS)
    computed_in(sweep, dtypes)
    assert said(sweep) == expected


def test_seeds_and_ranks_are_told_apart_where_they_differ(tmp_path: Path) -> None:
    runs = [(f"method=reft epochs=3 seed={seed}", 0.6) for seed in (0, 1, 2)]
    sweep = make_sweep(tmp_path, [*runs, ("method=reft epochs=3 rank=4", 0.6)])
    computed_in(sweep, {"reft s1": "bfloat16"})
    assert said(sweep) == (
        "computed in different dtypes: reft@3 (rank 8) in float32 with seeds 0 and 2, and "
        "bfloat16 with seed 1; reft@3 (rank 4) and the untouched model in float32"
    )


def test_page_markdown_and_terminal_say_it(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, RUNS)
    words = "computed in different dtypes: lora@3 and the untouched model in float32"
    assert "different dtypes" not in shown(sweep, tmp_path)
    computed_in(sweep, {"lora>reft s0": "bfloat16"})
    terminal = shown(sweep, tmp_path)
    assert words in " ".join(terminal.split())
    assert max(map(len, terminal.splitlines())) <= 80
    for name in ("report.md", "report.html"):
        page = (tmp_path / "report" / name).read_text()
        assert f"These runs were {words}" in page
        assert page.index("Computed in") < page.index("bfloat16", page.index("Computed in"))
