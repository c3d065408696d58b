"""The product against ``heft_pipeline/reference.py``: every loss and every prediction."""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch

from heft_pipeline import reference
from heft_pipeline.data.batches import epoch_batches
from heft_pipeline.data.prompts import Example
from heft_pipeline.plan.graph import untouched
from heft_pipeline.plan.stage_spec import StageSpec
from heft_pipeline.stage.run_stage import run_stage
from heft_pipeline.store.stage_folders import Store
from heft_pipeline.training.metrics import read_metrics
from tests.conftest import composed_run

LARGEST_LOSS_DIFFERENCE = 1e-5
EPOCHS, SEED = 2, 1
LORA_RATE, REFT_RATE = 1e-3, 1e-3

Results = dict[str, tuple[list[float], list[str]]]  # losses and predicted labels


def product(data: Path, output_dir: Path, *overrides: str) -> Results:
    """Run the stages of ``lora``, ``reft`` and ``heft`` as a sweep would."""
    asked = [f"data.path={data}", f"epochs={EPOCHS}", f"seed={SEED}", "device=cpu", *overrides]
    asked += [f"lora.learning_rate={LORA_RATE}", f"reft.learning_rate={REFT_RATE}"]
    asked += ["training.log_every_steps=1"]
    heft, reft = (composed_run(*asked, f"method={method}") for method in ("heft", "reft"))
    coarse, fine = heft.stages
    stages = {"untouched": untouched([heft])[0], "ReFT": reft.last, "LoRA": coarse, "HEFT": fine}
    store = Store(output_dir)
    return {name: stage_result(stage, store) for name, stage in stages.items()}


def stage_result(stage: StageSpec, store: Store) -> tuple[list[float], list[str]]:
    run_stage(stage, store)
    folder = store.folder(stage.fingerprint)
    metrics = read_metrics(folder / "metrics.jsonl")
    losses = [line["loss"] for line in metrics if line["event"] == "step"]
    return losses, pd.read_parquet(folder / "predictions.parquet")["prediction"].tolist()


def plain(data: Path) -> Results:
    """Run the reference."""
    asked = [f"--data={data}", f"--epochs={EPOCHS}", f"--seed={SEED}"]
    found = reference.main([*asked, f"--lora-rate={LORA_RATE}", f"--reft-rate={REFT_RATE}"])
    labels = [str(answer).lower() for answer in reference.ANSWERS]
    return {name: (losses, [labels[i] for i in ids]) for name, (losses, ids, _) in found.items()}


def copy_demo(folder: Path, **rows: int) -> Path:
    """Copy the first rows of some splits of the demo task."""
    for split, count in rows.items():
        lines = (reference.HERE / f"data/demo/files/{split}.jsonl").read_text().splitlines()
        (folder / f"{split}.jsonl").write_text("\n".join(lines[:count]) + "\n")
    return folder


def require_equal(found: Results, expected: Results) -> None:
    assert list(found) == list(expected) == ["untouched", "ReFT", "LoRA", "HEFT"]
    for name, (losses, predictions) in expected.items():
        assert len(found[name][0]) == len(losses)
        apart = [abs(a - b) for a, b in zip(found[name][0], losses, strict=True)]
        print(f"{name}: losses differ by {max(apart, default=0.0):.1e} at most")
        assert max(apart, default=0.0) <= LARGEST_LOSS_DIFFERENCE, name
        assert found[name][1] == predictions, name


@pytest.fixture(autouse=True)
def on_one_cpu_core(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The model is so small that threads would mostly wait for one another."""
    monkeypatch.setattr(reference, "DEVICE", "cpu")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_the_product_computes_what_the_reference_does(tmp_path: Path) -> None:
    """Dropout included: LoRA's default of 0.05 draws the same masks."""
    data = copy_demo(tmp_path, train=120, dev=60, test=150)
    expected = plain(data)
    require_equal(product(data, tmp_path / "outputs"), expected)
    # Equal predictions say something only where the four models differ, and the
    # trained ones do not always say yes.
    assert len({tuple(predictions) for _, predictions in expected.values()}) == 4
    trained = [predictions for name, (_, predictions) in expected.items() if name != "untouched"]
    assert all(len(set(predictions)) == 2 for predictions in trained)


def test_they_agree_on_held_out_dev_rows_and_on_answers_of_several_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = {True: " yes .", False: " no"}
    monkeypatch.setattr(reference, "ANSWERS", answers)
    data = copy_demo(tmp_path, train=120, test=150)
    asked = ["data.dev_split=null"]
    asked += [f"data.choices.{str(label).lower()}='{text}'" for label, text in answers.items()]
    require_equal(product(data, tmp_path / "outputs", *asked), plain(data))


@pytest.mark.parametrize("count", [5, 100, 1100])
def test_they_see_the_examples_in_the_same_order(count: int) -> None:
    lengths = torch.randint(5, 60, [count], generator=torch.Generator().manual_seed(0)).tolist()
    prompts = [[number] * length for number, length in enumerate(lengths)]
    examples = [Example(str(i), tuple(prompt), 0) for i, prompt in enumerate(prompts)]
    for epoch in range(2):
        expected = reference.shuffled_batches([(p, 0) for p in prompts], 16, SEED, epoch)
        found = epoch_batches(examples, 16, SEED, epoch)
        assert found == [[prompt[0] for prompt, _ in batch] for batch in expected]
