"""Real predictions of several seeds, from which seeds and examples are drawn again."""

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from heft_pipeline.errors import UserError

#: 12 seeds of LoRA and of ReFT on the demo's 1,000 test examples, made by
#:     python -m heft_pipeline -m method=lora,reft epochs=3 'seed=range(0,12)' output_dir=FOLDER
#:     python -m benchmarks.levels --real FOLDER --save tests/evidence/real_predictions.npz
SAMPLE = Path(__file__).parents[1] / "tests/evidence/real_predictions.npz"


@dataclass(frozen=True)
class Pool:
    """The answers of one method.

    Attributes:
        name: The method and its settings.
        right: [seeds, examples], how right each answer is.
        logprob: [seeds, examples], the right answer's log-probability.
    """

    name: str
    right: NDArray[np.float64]
    logprob: NDArray[np.float64]


def read(path: Path) -> list[Pool]:
    """Read pools of at least 4 seeds each.

    Args:
        path: An output folder, or a file that :func:`save` wrote.

    Raises:
        UserError: There are no two methods with as many seeds on the same examples.
    """
    pools = _read_file(path) if path.suffix == ".npz" else _read_folder(path)
    pools = [pool for pool in pools if pool.right.shape == pools[0].right.shape]
    if len(pools) < 2:
        raise UserError(
            f"--real {path}: it needs the predictions of two methods with the same seeds, at least "
            "4, e.g. of: python -m heft_pipeline -m method=lora,reft 'seed=range(0,12)'"
        )
    return pools


def save(pools: list[Pool], path: Path) -> None:
    """Write pools to a small file: answers as bits, log-probabilities as halves."""
    np.savez_compressed(
        path,
        names=[pool.name for pool in pools],
        right=np.packbits([pool.right > 0.5 for pool in pools], axis=-1),
        logprob=np.array([pool.logprob for pool in pools], dtype=np.float16),
    )


def _read_file(path: Path) -> list[Pool]:
    data = np.load(path)
    logprob = data["logprob"].astype(float)
    right = np.unpackbits(data["right"], axis=-1, count=logprob.shape[-1]).astype(float)
    return [Pool(str(name), right[i], logprob[i]) for i, name in enumerate(data["names"])]


def _read_folder(folder: Path) -> list[Pool]:
    stages: dict[str, dict[int, str]] = defaultdict(dict)
    for plan in sorted(folder.glob("sweeps/*/plan.json")):
        for run in json.loads(plan.read_text())["runs"]:
            ranks = "/".join(str(run[key]) for key in ("lora_rank", "reft_rank") if run[key])
            name = f"{run['method']}@{run['epochs']} r{ranks} {run['model']} on {run['data']}"
            stages[name][run["seed"]] = run["stages"][-1]
    pools = []
    for name, by_seed in stages.items():
        paths = [folder / "stages" / by_seed[s] / "predictions.parquet" for s in sorted(by_seed)]
        tables = [pd.read_parquet(path) for path in paths if path.exists()]
        if len(tables) > 3:
            right = np.stack([table["credit"].to_numpy(float) for table in tables])
            pools.append(Pool(name, right, np.stack([_logprob(table) for table in tables])))
    return pools


def _logprob(table: pd.DataFrame) -> NDArray[np.float64]:
    """[examples], of the right answer."""
    labels = [name for name in table.columns if name.startswith("logprob_")]
    columns = {name.removeprefix("logprob_"): i for i, name in enumerate(labels)}
    gold = table["gold"].astype(str).map(columns).to_numpy()
    return np.asarray(table[labels].to_numpy(float)[np.arange(len(table)), gold])
