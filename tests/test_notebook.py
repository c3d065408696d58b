"""A sweep from Python is the command line's, and its results are tables."""

import json
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

import heft_pipeline
from heft_pipeline.errors import UserError
from heft_pipeline.notebook import _value, _words, read_comparison

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@given(VALUES)
def test_a_value_is_what_hydra_reads(value: Any) -> None:
    override = OverridesParser.create().parse_override(f"key={_value(value)}")
    assert not override.is_sweep_override()
    assert override.value() == value


def test_settings_are_as_on_the_command_line() -> None:
    words = list(
        _words(
            {
                "method": ["lora", "heft"],
                "epochs": (3, 20),
                "seed": range(2),
                "lora": {"rank": np.int64(4), "target_modules": ["q_proj", "v_proj"]},
                "reft": {"layers": [[0, 1], "all"]},
                "data": {"path": "a b's", "choices": {"true": " yes", "no": "No"}},
                "method.stages": ["lora", "reft"],
                "report": {"claims": ["heft > lora"]},
                "experiment": "heft_paper",
                "hydra.launcher.workers": 2,
                "training": {"compile": False},
                "model": "none",
                "sweep": "2026-01",
            }
        )
    )
    assert words == [
        "method=lora,heft",
        "epochs=3,20",
        "seed=0,1",
        "lora.rank=4",
        "lora.target_modules=[q_proj,v_proj]",
        "reft.layers=[0,1],all",
        "data.path='a b\\'s'",
        "data.choices={'true':' yes','no':'No'}",
        "method.stages=[lora,reft]",
        "report.claims=['heft > lora']",
        "+experiment=heft_paper",
        "hydra.launcher.workers=2",
        "training.compile=false",
        "model=none",
        "sweep=2026-01",
    ]


def test_a_sweep_from_python_is_the_command_lines(
    small_model: Path, small_data: Path, small: list[str], tmp_path: Path, cli: Any
) -> None:
    before = sys.argv, list(logging.getLogger().handlers), logging.getLogger().level
    asked: dict[str, Any] = {
        "method": ["lora", "reft"],
        "epochs": 1,
        "seed": [0, 1],
        "model": {"id": str(small_model), "dtype": "float32"},
        # Which of several tasks is chosen comes before what is set in it.
        "data": "boolq",
        "data.path": str(small_data),
        "data.name": "small",
        "data.prompt": "{passage} Question: {question} Answer:",
        "lora.learning_rate": 3e-3,
        "reft.learning_rate": 3e-3,
        "report.forgetting": "off",
        "sweep": "mine",
    }
    found = heft_pipeline.compare(output_dir=tmp_path / "outputs", **asked)
    assert (sys.argv, logging.getLogger().handlers, logging.getLogger().level) == before
    assert found.runs.method.tolist() == ["lora", "lora", "reft", "reft"]
    assert found.runs.status.eq("complete").all() and found.runs.accuracy.between(0, 1).all()
    assert found.report.is_file()
    claims = json.loads((found.folder / "claims.json").read_text())
    assert found.verdicts.words.tolist() == [claim["words"] for claim in claims]
    # The same by the command line has nothing to train.
    status, out, err = cli(
        "-m", *small, "method=lora,reft", "epochs=1", "seed=0,1", "report.forgetting=off",
        "sweep=mine",
    )  # fmt: skip
    assert status == 0, err
    assert "reused" in out or "complete" in out
    assert len(list((tmp_path / "outputs" / "stages").iterdir())) == 5
    # Once more, with names that are no markup of a page.
    asked |= {"data.name": "<b>bold</b>", "method": ["lora"], "seed": 0, "sweep": "more"}
    more = heft_pipeline.compare(output_dir=tmp_path / "outputs", **asked)
    page = more._repr_html_()
    assert "<b>bold" not in page and "lora" in page and "lora" in repr(more)
    every = heft_pipeline.results(tmp_path / "outputs")
    assert every.sweep.tolist() == ["mine"] * 4 + ["more"]
    pd.testing.assert_frame_equal(
        every[every.sweep == "mine"].reset_index(drop=True), found.runs, check_dtype=False
    )


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"method": "loar"}, "loar"),
        ({"epochs": []}, "epochs=\\[\\] has no value"),
        ({"epochs": 0}, "epochs=0"),
        ({"epoch": 3}, "epoch"),
        ({"model": {"id": "/nowhere"}}, "/nowhere is not a folder"),
    ],
)
def test_a_slip_is_one_error(asked: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        heft_pipeline.compare(output_dir=tmp_path, **asked)
    with pytest.raises(UserError, match="has no sweeps"):
        heft_pipeline.results(tmp_path)
    with pytest.raises(UserError, match="has no report yet"):
        read_comparison(tmp_path)
