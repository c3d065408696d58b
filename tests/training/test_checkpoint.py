"""Checkpoints: a torn or changed one is noticed, and training goes on from the one before."""

import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from heft_pipeline.errors import Interrupted, UserError
from heft_pipeline.plan.graph import Run
from heft_pipeline.plan.stage_spec import StageSpec
from heft_pipeline.stage.run_stage import run_stage
from heft_pipeline.store.stage_folders import Store
from heft_pipeline.training import beside
from heft_pipeline.training.beside import Beside
from heft_pipeline.training.checkpoint import BEFORE, BROKEN, LAST, read, write

ComposeRun = Callable[..., Run]
ASKED = ["epochs=3", "training.checkpoint_every_seconds=0.0001"]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip_tensor(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-7] ^= 4
    path.write_bytes(content)


def flip_counters(path: Path) -> None:
    content = path.read_bytes()
    at = content.index(b'\\"step\\": ') + len(b'\\"step\\": ')
    path.write_bytes(content[:at] + b"9" + content[at + 1 :])


def of_another(path: Path) -> None:
    save_file({"weights": torch.ones(3)}, path)


DAMAGE = [cut, empty, flip_tensor, flip_counters, of_another]


def interrupted(stage: StageSpec, store: Store, steps: int) -> Path:
    """Train a stage for some steps; returns the folder of its checkpoints."""
    calls = 0

    def stop() -> bool:
        nonlocal calls
        calls += 1
        return calls > steps

    with pytest.raises(Interrupted):
        run_stage(stage, store, should_stop=stop)
    return store.folder(stage.fingerprint) / "checkpoint"


def outcome(stage: StageSpec, store: Store) -> dict[str, object]:
    """What a finished stage came to."""
    result = store.result(stage.fingerprint)
    assert result is not None
    weights = [load_file(path) for path in sorted(store.adapter(stage).rglob("*.safetensors"))]
    return {
        "accuracy": result["accuracy"],
        "best_epoch": result["best_epoch"],
        "steps": result["steps"],
        "flop": result["train_tflop"],
        "weights": [{name: tensor.tolist() for name, tensor in one.items()} for one in weights],
    }


@pytest.fixture(scope="module")
def stage(small: list[str]) -> StageSpec:
    from tests.conftest import composed_run

    return composed_run(*small, "method=heft", *ASKED).stages[0]


@pytest.fixture(scope="module")
def expected(stage: StageSpec, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    store = Store(tmp_path_factory.mktemp("undisturbed"))
    run_stage(stage, store)
    return outcome(stage, store)


@pytest.mark.parametrize("steps", [3, 10])
@pytest.mark.parametrize("damage", DAMAGE)
def test_where_the_last_is_damaged_the_one_before_is_used(
    damage: Callable[[Path], None],
    steps: int,
    stage: StageSpec,
    expected: dict[str, object],
    store: Store,
) -> None:
    folder = interrupted(stage, store, steps)
    before = read(folder / BEFORE)[1]["counters"]["step"]
    assert 0 < before <= read(folder / LAST)[1]["counters"]["step"]
    damage(folder / LAST)
    seen: list[int] = []

    def note(phase: str, done: int, total: int, note: str = "") -> None:
        if phase == "train":
            seen.append(done)

    run_stage(stage, store, progress=note)
    assert seen[0] == before + 1, "it goes on from the one before, not from the beginning"
    assert outcome(stage, store) == expected


@pytest.mark.parametrize("damage", DAMAGE)
def test_where_both_are_damaged_training_starts_from_the_beginning(
    damage: Callable[[Path], None], stage: StageSpec, expected: dict[str, object], store: Store,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    folder = interrupted(stage, store, 10)
    damage(folder / LAST)
    damage(folder / BEFORE)
    run_stage(stage, store)
    assert "the one before is used" in caplog.text
    assert "training starts from the beginning" in caplog.text
    assert outcome(stage, store) == expected


def test_a_damaged_one_never_takes_the_place_of_the_good_one_before(
    stage: StageSpec, store: Store
) -> None:
    folder = interrupted(stage, store, 6)
    flip_tensor(folder / LAST)
    good = read(folder / BEFORE)[1]["counters"]["step"]
    interrupted(stage, store, 1)
    assert read(folder / BEFORE)[1]["counters"]["step"] >= good
    assert (folder / BROKEN).is_file()
    with pytest.raises(UserError, match="does not fit its checksum"):
        read(folder / BROKEN)


@pytest.mark.parametrize("missing", [LAST, "new-last.safetensors"])
def test_a_process_that_is_killed_between_two_renames_leaves_one_to_go_on_from(
    missing: str, stage: StageSpec, expected: dict[str, object], store: Store
) -> None:
    folder = interrupted(stage, store, 5)
    if missing == LAST:
        (folder / LAST).replace(folder / "new-last.safetensors")
    else:
        (folder / "new-last.safetensors").write_bytes(b"half a file")
    run_stage(stage, store)
    result = store.result(stage.fingerprint)
    assert result is not None and result["resumes"] == 1
    assert outcome(stage, store) == expected


def test_every_kind_of_tensor_is_checked(tmp_path: Path) -> None:
    tensors = {
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(2.0),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "flags": torch.tensor([True, False]),
        "turned": torch.arange(6).reshape(2, 3).T,
    }
    path = tmp_path / "one.safetensors"
    write(path, tensors, {"step": 1})
    found, meta = read(path)
    assert meta == {"step": 1}
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    for name in ("scalar", "half", "flags", "turned"):
        write(path, tensors | {name: torch.zeros_like(tensors[name])}, {"step": 1})
        content = path.read_bytes()
        write(path, tensors, {"step": 1})
        changed = path.read_bytes()
        size = int.from_bytes(content[:8], "little") + 8
        path.write_bytes(changed[:size] + content[size:])
        with pytest.raises(UserError, match="does not fit its checksum"):
            read(path)


def test_writing_that_took_long_is_done_beside_training_the_next_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(beside, "_LONG_SECONDS", 0.05)
    threads, values, go_on = [], [], threading.Event()
    weights = torch.zeros(3)

    def write(tensors: Mapping[str, torch.Tensor]) -> None:
        threads.append(threading.current_thread() is threading.main_thread())
        if len(threads) == 1:
            time.sleep(0.1)
        else:
            go_on.wait(10)
        values.append(tensors["w"].tolist())

    writing = Beside()
    writing.run(write, {"w": weights})
    weights += 1
    writing.run(write, {"w": weights})
    weights += 1  # training goes on, and what is written is what there was
    assert values == [[0.0] * 3]
    go_on.set()
    writing.wait()
    assert (threads, values) == ([True, False], [[0.0] * 3, [1.0] * 3])


def test_an_error_beside_training_is_raised_by_the_next_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(beside, "_LONG_SECONDS", -1.0)

    def write(_: Mapping[str, torch.Tensor]) -> None:
        raise OSError(28, os.strerror(28))

    for again in ("wait", "run"):
        writing = Beside()
        writing.run(write, {})
        with pytest.raises(OSError, match="No space left"):
            writing.wait() if again == "wait" else writing.run(write, {})


def test_a_stage_whose_checkpoints_are_written_beside_it_is_the_same_to_the_bit(
    stage: StageSpec, expected: dict[str, object], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beside, "_LONG_SECONDS", -1.0)
    folder = interrupted(stage, store, 8)
    assert read(folder / LAST)[1]["counters"]["step"] == 8, "it is on disk before the stage ends"
    run_stage(stage, store)
    assert outcome(stage, store) == expected
    assert not folder.exists()
    assert json.loads((folder.parent / "result.json").read_text())["resumes"] == 1
