"""How far the demo's cells move: read from real runs, and counted from highest to lowest."""

from pathlib import Path

from benchmarks.demo_spread import accuracies, run_sweep, table
from tests.test_reference import copy_demo


def test_the_table_has_the_distance_from_the_highest_to_the_lowest() -> None:
    found = table(
        {
            "1 thread": {("lora", 3, 0): 70.0, ("heft", 3, 0): 61.0},
            "2 threads": {("lora", 3, 0): 71.5, ("heft", 3, 0): 60.0},
            "bfloat16": {("lora", 3, 0): 70.5, ("heft", 3, 0): 60.5},
        }
    )
    assert found.index.tolist() == [("lora", 3, 0), ("heft", 3, 0)]
    assert found["moves by"].tolist() == [1.5, 1.0]


def test_a_sweep_gives_the_accuracy_of_each_cell(tmp_path: Path) -> None:
    data = copy_demo(tmp_path, train=32, dev=8, test=20)
    outputs = tmp_path / "outputs"
    run_sweep(outputs, 1, ["method=reft", "epochs=1", "seed=0,1", f"data.path={data}"])
    found = accuracies(outputs)
    assert set(found) == {("reft", 1, 0), ("reft", 1, 1)}
    assert all(accuracy % 5 == 0 and 0 <= accuracy <= 100 for accuracy in found.values())
