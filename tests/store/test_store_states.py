"""Whatever happens to a store, in any order: it never says what is not so, and can be mended."""

import functools
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from heft_pipeline.errors import UserError
from heft_pipeline.plan.stage_spec import StageSpec
from heft_pipeline.stage.mending import find_result
from heft_pipeline.store.integrity import Depth, set_aside
from heft_pipeline.store.stage_folders import Store
from heft_pipeline.storekeeping.verifying import verify
from tests.conftest import composed_run
from tests.launch.test_damaged_store import cut, empty, flip, praise, remove

STAGES = composed_run("method=heft", "model.name=m", "data.name=d").stages
COARSE, FINE = STAGES
stages = st.sampled_from(STAGES)
#: What "training" writes; a real one writes the same bits whenever its inputs are the same.
TRAINED = {
    "adapter/adapter_config.json": b'{"r": 8}',
    "adapter/adapter_model.safetensors": bytes(range(200)),
    "metrics.jsonl": b'{"step": 1}\n',
}
SCORED = {"predictions.parquet": b"answers" * 9, "reft_edits.csv": b"layer,size\n"}
#: Nothing has to reach a disk here, and waiting for that takes most of the time.
IN_MEMORY = Path("/dev/shm") if Path("/dev/shm").is_dir() else None
FILES = [*TRAINED, *SCORED, "stage.json", "result.json", ".copies/result.json",
         ".copies/metrics.jsonl", "failure.json", "progress.json", "checkpoint/last"]  # fmt: skip
HOW = st.one_of(
    st.sampled_from([cut, empty, remove, praise]),
    st.floats(0, 1, exclude_max=True).map(lambda at: functools.partial(flip, at=at)),
)
#: When the making of a stage can end: from nothing but its folder to all but the seal.
MOMENTS = range(len(TRAINED) + len(SCORED) + 1)


def result_of(stage: StageSpec) -> dict[str, Any]:
    return {"accuracy": 0.5, "trainable_params": 8, "fingerprint": stage.fingerprint}


def write(folder: Path, name: str, content: bytes) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)


class StoreStates(RuleBasedStateMachine):
    """Stages are made, cut off, damaged, set aside and removed, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.place = Path(tempfile.mkdtemp(dir=IN_MEMORY))
        self.store = Store(self.place)

    def teardown(self) -> None:
        shutil.rmtree(self.place)

    @initialize()
    def a_finished_sweep(self) -> None:
        for stage in STAGES:
            self.make(stage, None)

    @rule()
    def another_process(self) -> None:
        self.store = Store(self.place)

    @rule(stage=stages, moment=st.one_of(st.none(), st.sampled_from(MOMENTS)))
    def make(self, stage: StageSpec, moment: int | None) -> None:
        """Complete a stage as ``run_stage`` does, or be killed at some moment."""
        folder = self.store.folder(stage.fingerprint)
        with self.store.lock(stage.fingerprint, lambda _: None):
            found = find_result(stage, self.store)
            if found.result is not None and found.whole:
                assert found.result == result_of(stage)
                return
            content = dict(SCORED)
            if found.result is None:
                self.store.begin(stage)
                write(folder, "checkpoint/last", b"state")
                content = TRAINED | SCORED
            for name, data in list(content.items())[:moment]:
                write(folder, name, data)
            if moment is None:
                self.store.complete(stage.fingerprint, found.result or result_of(stage))
                self.assert_as_made(stage)

    @rule(stage=stages)
    def fail(self, stage: StageSpec) -> None:
        if not self.store.is_complete(stage.fingerprint):
            self.store.folder(stage.fingerprint).mkdir(parents=True, exist_ok=True)
            self.store.fail(stage.fingerprint, {"reason": "no", "error": "no"})

    @rule(stage=stages, names=st.lists(st.sampled_from(FILES), min_size=1, max_size=4), how=HOW)
    def damage(self, stage: StageSpec, names: list[str], how: Any) -> None:
        for name in names:
            path = self.store.folder(stage.fingerprint) / name
            if how is praise and not path.name.endswith("result.json"):
                continue
            if path.is_file() and (how is remove or path.stat().st_size):
                with suppress(ValueError):  # there is no accuracy to raise in what is broken
                    how(path)

    @rule(stage=stages)
    @precondition(lambda self: self.place.joinpath("stages").exists())
    def remove(self, stage: StageSpec) -> None:
        shutil.rmtree(self.store.folder(stage.fingerprint), ignore_errors=True)

    @rule(stage=stages, depth=st.sampled_from(Depth))
    def look_over(self, stage: StageSpec, depth: Depth) -> None:
        """Set aside what is damaged, as a sweep does before it begins."""
        damage = self.store.damage(stage.fingerprint, depth)
        if damage:
            with self.store.free(stage.fingerprint) as free:
                assert free
                set_aside(self.store.folder(stage.fingerprint), damage)
            assert not self.store.is_complete(stage.fingerprint)
            assert not self.store.damage(stage.fingerprint, Depth.ALL)

    @rule()
    @precondition(lambda self: any(self.place.glob("stages/*/stage.json")))
    def verify_and_put_aside(self) -> None:
        for found in list(verify(self.store)):
            key = found.entry.fingerprint
            if self.store.damage(key, Depth.ALL):
                assert found.wrong
                assert self.store.put_aside(key, Depth.ALL)[1] is not None
        assert not [found for found in verify(self.store) if found.wrong]

    @invariant()
    def what_it_says_is_so(self) -> None:
        for stage in STAGES:
            key = stage.fingerprint
            state, result = self.store.state(key), self.store.result(key)
            assert state in ("complete", "damaged", "failed", "interrupted", "to do")
            assert (state == "complete") == (result is not None) == self.store.is_complete(key)
            assert result in (None, result_of(stage)), "a changed result is never believed"
            whole = result is not None and not self.store.damage(key, Depth.ALL)
            try:
                self.store.require_whole(stage)
            except UserError:
                assert not whole
            else:
                self.assert_as_made(stage)

    def assert_as_made(self, stage: StageSpec) -> None:
        folder = self.store.folder(stage.fingerprint)
        for name, content in (TRAINED | SCORED).items():
            assert (folder / name).read_bytes() == content, name
        assert self.store.result(stage.fingerprint) == result_of(stage)


StoreStates.TestCase.settings = settings(
    max_examples=60, stateful_step_count=50, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)  # fmt: skip
TestStoreStates = StoreStates.TestCase


def test_metrics_that_are_broken_as_their_copy_is_are_made_again() -> None:
    """The states seldom come by this: a broken copy is no copy."""
    states = StoreStates()
    try:
        states.make(COARSE, None)
        states.damage(COARSE, ["metrics.jsonl", ".copies/metrics.jsonl"], flip)
        states.make(COARSE, None)
        states.assert_as_made(COARSE)
    finally:
        states.teardown()
