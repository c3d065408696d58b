"""A report says which of the compared runs were made in which way."""

from pathlib import Path

import pytest

from heft_pipeline.report.content import make_report
from heft_pipeline.report.records import read_runs
from heft_pipeline.store.sweep_folders import Sweep
from tests.report.made_sweeps import make_sweep, reseal
from tests.report.test_report import shown

RUNS = [("method=lora epochs=3", 0.6), ("method=heft epochs=3", 0.7)]


def computed_in(sweep: Sweep, dtypes: dict[str, str | None]) -> None:
    """Change the dtype in the results of stages, e.g. ``lora>reft s0``; None takes it out."""
    for stage in {stage for record in read_runs(sweep) for stage in record.stages}:
        name = f"{'>'.join(one.kind for one in stage.chain)} s{stage.seed}"
        if name in dtypes:
            reseal(sweep.store, stage.fingerprint, dtype=dtypes[name])


def said(sweep: Sweep) -> str:
    (content,) = make_report([sweep], None, None).sections
    return "\n".join(one.said for one in content.differently)


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


@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        (
            {"threads": 1},
            "computed with different numbers of threads: lora@3 and the untouched model with 2 "
            "threads; heft@3 with 2 threads (lora) and 1 thread (reft)",
        ),
        (
            {"torch": "2.14.0"},
            "computed with different versions of torch: lora@3 and the untouched model with torch "
            "2.13.0; heft@3 with torch 2.13.0 (lora) and torch 2.14.0 (reft)",
        ),
        (
            {"device": "NVIDIA H100", "threads": 9},
            "computed on different devices: lora@3 and the untouched model on cpu; heft@3 on cpu "
            "(lora) and NVIDIA H100 (reft)",
        ),
        ({"host": "elsewhere", "threads": 2}, ""),
    ],
)
def test_a_reused_stage_of_other_threads_versions_or_devices_is_named(
    tmp_path: Path, machine: dict[str, str | int], expected: str
) -> None:
    sweep = make_sweep(tmp_path, RUNS)
    for record in read_runs(sweep):
        if record.method == "heft":
            made = {**record.results[-1]["machine"], **machine}
            reseal(sweep.store, record.last.fingerprint, machine=made)
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
