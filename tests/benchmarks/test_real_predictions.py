import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks.real_predictions import SAMPLE, read, save
from heft_pipeline.errors import UserError


def test_the_sample_holds_two_methods_with_twelve_seeds() -> None:
    pools = read(SAMPLE)
    assert [pool.name.split()[0] for pool in pools] == ["lora@3", "reft@3"]
    for pool in pools:
        assert pool.right.shape == pool.logprob.shape == (12, 1000)
        assert 0.5 < pool.right.mean() < 0.7
        assert (pool.logprob <= 0).all()


def test_a_sample_is_read_as_it_was_saved(tmp_path: Path) -> None:
    save(read(SAMPLE), tmp_path / "again.npz")
    for one, again in zip(read(SAMPLE), read(tmp_path / "again.npz"), strict=True):
        assert one.name == again.name
        assert (one.right == again.right).all()
        assert (one.logprob == again.logprob).all()


def test_an_output_folder_is_read_by_methods_and_seeds(tmp_path: Path) -> None:
    runs = []
    for method in ("lora", "reft"):
        for seed in range(4):
            stage = tmp_path / "stages" / f"{method}{seed}"
            stage.mkdir(parents=True)
            credit = [1.0, float(seed > 1)]
            pd.DataFrame(
                {
                    "gold": ["yes", "no"],
                    "credit": credit,
                    "logprob_yes": [-0.1, -0.2],
                    "logprob_no": [-0.3, -0.01 * seed],
                }
            ).to_parquet(stage / "predictions.parquet")
            ranks = {"lora_rank": 8, "reft_rank": None}
            runs.append(
                {"method": method, "epochs": 3, **ranks, "seed": seed, "model": "m", "data": "d"}
                | {"stages": ["parent", stage.name]}
            )
    sweep = tmp_path / "sweeps" / "one"
    sweep.mkdir(parents=True)
    (sweep / "plan.json").write_text(json.dumps({"runs": runs}))
    lora, reft = read(tmp_path)
    assert (lora.name, reft.name) == ("lora@3 r8 m on d", "reft@3 r8 m on d")
    assert lora.right.tolist() == [[1, 0], [1, 0], [1, 1], [1, 1]]
    assert np.allclose(reft.logprob, [[-0.1, -0.01 * seed] for seed in range(4)])


def test_a_folder_without_two_methods_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs the predictions of two methods"):
        read(tmp_path)
