"""The store: complete, reused, resumed, locked."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from heft_pipeline.errors import Interrupted, NonFiniteLoss
from heft_pipeline.plan.graph import Run
from heft_pipeline.stage.preflight import preflight
from heft_pipeline.stage.run_stage import run_stage
from heft_pipeline.store.stage_folders import Store
from heft_pipeline.training.metrics import read_metrics
from tests.conftest import make_rows, write_rows

ComposeRun = Callable[..., Run]


def adapter_bytes(store: Store, fingerprint: str) -> dict[str, bytes]:
    folder = store.folder(fingerprint) / "adapter"
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*.safetensors")}


def test_a_complete_stage_is_not_trained_again(
    compose_run: ComposeRun, small: list[str], store: Store
) -> None:
    stage = compose_run(*small, "method=lora", "epochs=1").last
    first = run_stage(stage, store)
    result = store.folder(stage.fingerprint) / "result.json"
    written = result.stat().st_mtime_ns
    second = run_stage(stage, store)
    assert (first.reused, second.reused) == (False, True)
    assert second.result == first.result
    assert result.stat().st_mtime_ns == written
    assert not (store.folder(stage.fingerprint) / "checkpoint").exists()


@pytest.mark.parametrize(
    "method",
    [
        ["method=lora"],
        ["method=reft"],
        ["method=joint"],
        ["method=lora", "lora.loss=sequence", "lora.dropout=0.3", "training.group_by_length=false",
         "training.selection=last", "data.dev_size=0"],
    ],
    ids=["lora", "reft", "joint", "sequence"],
)  # fmt: skip
@pytest.mark.parametrize("stop_at", [1, 9, 20])
def test_an_interrupted_stage_ends_bitwise_as_an_undisturbed_one(
    compose_run: ComposeRun, small: list[str], tmp_path: Path, method: list[str], stop_at: int
) -> None:
    asked = [*small, *method, "epochs=3", "lora.batch_size=16", "reft.batch_size=16"]
    asked += ["reft.dropout=0.1", "training.log_every_steps=1"]
    stage = compose_run(*asked).last
    undisturbed, disturbed = Store(tmp_path / "a"), Store(tmp_path / "b")
    expected = run_stage(stage, undisturbed).result
    calls = 0

    def stop() -> bool:
        nonlocal calls
        calls += 1
        return calls == stop_at

    with pytest.raises(Interrupted):
        run_stage(stage, disturbed, should_stop=stop)
    assert not disturbed.is_complete(stage.fingerprint)
    result = run_stage(stage, disturbed).result
    assert result["resumes"] == 1
    assert adapter_bytes(disturbed, stage.fingerprint) == adapter_bytes(
        undisturbed, stage.fingerprint
    )
    for key in ("accuracy", "eval_loss", "best_epoch", "steps", "train_tflop"):
        assert result[key] == expected[key], key

    def losses(store: Store) -> list[tuple[int, float]]:
        lines = read_metrics(store.folder(stage.fingerprint) / "metrics.jsonl")
        return [(x["step"], x["loss"]) for x in lines if x["event"] == "step"]

    assert losses(disturbed) == losses(undisturbed)


def test_a_nan_loss_stops_the_stage_and_keeps_the_last_good_checkpoint(
    compose_run: ComposeRun, small: list[str], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from heft_pipeline.training import loss as module

    stage = compose_run(*small, "method=lora", "epochs=3", "lora.batch_size=16").last
    real, calls = module.answer_loss, 0

    def sometimes_nan(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        loss = real(*arguments)
        return loss * float("nan") if calls == 10 else loss

    monkeypatch.setattr(module, "answer_loss", sometimes_nan)
    with pytest.raises(NonFiniteLoss, match=r"step 10 .*lower lora\.learning_rate"):
        run_stage(stage, store)
    from heft_pipeline.training.checkpoint import read

    tensors, meta = read(store.folder(stage.fingerprint) / "checkpoint" / "last.safetensors")
    assert meta["counters"]["step"] == 7, "the checkpoint of the first epoch's end"
    assert all(t.float().isfinite().all() for t in tensors.values())


def test_early_stopping_ends_before_the_last_epoch(
    compose_run: ComposeRun, small: list[str], store: Store
) -> None:
    asked = ["method=lora", "epochs=30", "lora.learning_rate=1e-9"]
    stage = compose_run(*small, *asked, "training.early_stopping_patience=2").last
    result = run_stage(stage, store).result
    assert (result["best_epoch"], result["epochs_trained"]) == (1, 3)


def test_selection_last_keeps_the_last_epoch(
    compose_run: ComposeRun, small: list[str], tmp_path: Path
) -> None:
    asked = [*small, "method=lora", "epochs=3", "lora.learning_rate=1e-2"]
    best = compose_run(*asked).last
    last = compose_run(*asked, "training.selection=last").last
    store = Store(tmp_path)
    chosen = run_stage(best, store).result["best_epoch"]
    run_stage(last, store)
    same = adapter_bytes(store, best.fingerprint) == adapter_bytes(store, last.fingerprint)
    assert same == (chosen == 3)


SCRIPT = """
import json, sys, time
from heft_pipeline.plan.stage_spec import from_json
from heft_pipeline.stage.preflight import preflight
from heft_pipeline.stage.run_stage import run_stage
from heft_pipeline.store.stage_folders import Store
stage = from_json(json.load(open(sys.argv[1])))
def slow():
    time.sleep(0.05)
    return False
outcome = run_stage(stage, Store(__import__("pathlib").Path(sys.argv[2])), should_stop=slow,
                    on_wait=lambda owner: print("waits for", owner, flush=True))
print("reused" if outcome.reused else "trained", flush=True)
"""


def start(spec: Path, output_dir: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(spec), str(output_dir)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_processes_train_a_stage_once(
    compose_run: ComposeRun, small: list[str], tmp_path: Path
) -> None:
    import json

    from heft_pipeline.plan.stage_spec import to_json

    stage = compose_run(*small, "method=lora", "epochs=4").last
    spec = tmp_path / "stage.json"
    spec.write_text(json.dumps(to_json(stage)))
    both = [start(spec, tmp_path / "out"), start(spec, tmp_path / "out")]
    outputs = [process.communicate(timeout=120) for process in both]
    said = [out for out, _ in outputs]
    assert sorted(out.split()[-1] for out in said) == ["reused", "trained"], outputs
    waiting = next(out for out in said if "reused" in out)
    trainer = both[next(i for i, out in enumerate(said) if "trained" in out)]
    assert f"waits for process {trainer.pid} on" in waiting


def test_a_killed_process_frees_its_stage(
    compose_run: ComposeRun, small: list[str], tmp_path: Path
) -> None:
    import json

    from heft_pipeline.plan.stage_spec import to_json

    stage = compose_run(*small, "method=lora", "epochs=50").last
    spec, store = tmp_path / "stage.json", Store(tmp_path / "out")
    spec.write_text(json.dumps(to_json(stage)))
    process = start(spec, store.output_dir)
    checkpoint = store.folder(stage.fingerprint) / "checkpoint" / "last.safetensors"
    deadline = time.monotonic() + 60
    while not checkpoint.is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    waited: list[str] = []
    with store.lock(stage.fingerprint, waited.append):
        assert checkpoint.is_file()
    assert not waited


def test_what_qualifies_a_result_is_kept_with_it(
    compose_run: ComposeRun, small: list[str], store: Store, tmp_path: Path
) -> None:
    """One class among the dev rows, and a prompt that is too short for f7+l7."""
    rows = make_rows(40, seed=3)
    write_rows(tmp_path / "train.jsonl", [*rows, {**rows[0], "passage": "w1 w2", "answer": True}])
    write_rows(tmp_path / "dev.jsonl", [row for row in rows if row["answer"]][:3])
    write_rows(tmp_path / "validation.jsonl", make_rows(20, seed=4))
    asked = [*small, f"data.path={tmp_path}", "data.dev_split=dev", "method=reft", "epochs=1"]
    stage = compose_run(*asked).last
    (said,) = preflight([stage])
    assert "all 3 dev rows have the answer true" in said
    result = run_stage(stage, store).result
    assert result["notes"] == [said.removeprefix("small: ")]
    assert result["short_prompts"] == 1
    assert result["tied_rows"] == 0
