"""A plan holds each stage once, after its parents, for any runs in any order."""

import dataclasses
import json
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from heft_pipeline.plan.graph import Plan, Run, make_run, read_plan, untouched
from heft_pipeline.plan.run_names import MOST_CHARACTERS, identity_of, named, shortened
from heft_pipeline.plan.sources import Source, Sources
from heft_pipeline.settings.checks import typed
from heft_pipeline.settings.schema import HeftConfig, config_dir, register, run_name

PROPERTY = settings(deadline=None, derandomize=True, max_examples=120)


class Anywhere(Sources):
    """Sources that find everything."""

    def model(self, id: str, revision: str, trust_remote_code: bool = False) -> Source:
        return Source(id, None, f"sha256:{id}")

    def data(self, data: Any) -> Source:
        return Source(str(data.path), None, f"sha256:{data.path}")


SOURCES = Anywhere(Path("unused"))


@cache
def composed() -> HeftConfig:
    from hydra import compose, initialize_config_dir

    register()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return typed(compose("config", ["sweep=s"]))


def run(
    stages: tuple[str, ...], epochs: int, rank: int, seed: int, rate: float, model: str, task: str
) -> Run:
    base: Any = composed()
    parts: dict[str, Any] = {
        "method": dataclasses.replace(base.method, stages=list(stages)),
        "model": dataclasses.replace(base.model, id=model),
        "data": dataclasses.replace(base.data, path=task, name=Path(task).name),
        "lora": dataclasses.replace(base.lora, epochs=epochs, rank=rank, learning_rate=rate),
        "reft": dataclasses.replace(base.reft, epochs=epochs, rank=rank),
        "red": dataclasses.replace(base.red, epochs=epochs),
        "joint": dataclasses.replace(base.joint, epochs=epochs),
    }
    config = dataclasses.replace(base, **parts, epochs=epochs, rank=rank, seed=seed)
    return make_run(config, SOURCES, run_name(config), ())


STAGES = st.lists(st.sampled_from(["lora", "reft", "red", "lora+reft"]), max_size=3).map(tuple)
RUNS = st.builds(
    run,
    stages=STAGES,
    epochs=st.integers(1, 2),
    rank=st.sampled_from([4, 8]),
    seed=st.integers(0, 1),
    rate=st.sampled_from([1e-3, 1e-3, 1.00000001e-3, 5e-4]),
    model=st.sampled_from(["/m/one", "/other/one", "/m/two"]),
    task=st.sampled_from(["/t/a", "/t/" + "long" * 60, "/t/é ü"]),
)
PLANS = st.lists(RUNS, min_size=1, max_size=8)


@PROPERTY
@given(runs=PLANS, data=st.data())
def test_stages_are_unique_with_parents_first_and_the_same_for_any_order_of_runs(
    runs: list[Run], data: st.DataObject
) -> None:
    plan = Plan(tuple(runs), untouched(runs))
    wanted = {stage.fingerprint for run in runs for stage in run.stages}
    bases = {stage.fingerprint for stage in plan.baselines}
    assert set(plan.stages) == wanted | bases
    assert plan.unique == len(wanted) <= plan.asked == sum(len(run.stages) for run in runs)
    before: set[str] = set()
    for key, stage in plan.stages.items():
        assert key == stage.fingerprint and key not in before
        assert stage.parent is None or stage.parent.fingerprint in before
        before.add(key)
    other = data.draw(st.permutations(runs))
    assert set(Plan(tuple(other), untouched(other)).stages) == set(plan.stages)


@PROPERTY
@given(runs=PLANS)
def test_a_plan_comes_back_from_its_json(runs: list[Run]) -> None:
    plan = named(Plan(tuple(runs), untouched(runs)), {})
    again = read_plan(json.loads(json.dumps(plan.to_json())))
    assert again == plan
    assert again.to_json() == plan.to_json()


def names_of(plan: Plan) -> dict[str, str]:
    return {identity_of(run): run.name for run in plan.runs}


def known(plans: Sequence[Plan]) -> dict[str, Any]:
    """What a sweep's ``plan.json`` holds after several plans were recorded in it."""
    entries = [plan.to_json() for plan in plans]
    runs = {run["name"]: run for entry in entries for run in entry["runs"]}
    stages = {key: one for entry in entries for key, one in entry["stages"].items()}
    return {"sweep": "s", "runs": list(runs.values()), "stages": stages}


@PROPERTY
@given(first=PLANS, second=PLANS, data=st.data())
def test_names_are_unique_plain_short_and_kept(
    first: list[Run], second: list[Run], data: st.DataObject
) -> None:
    one = named(Plan(tuple(first)), {})
    both = named(Plan(tuple(data.draw(st.permutations([*first, *second])))), known([one]))
    assert names_of(both).items() >= names_of(one).items(), "a run keeps its name"
    assert set(names_of(both)) == {identity_of(run) for run in [*first, *second]}
    together = names_of(both)
    assert len({name.lower() for name in together.values()}) == len(together)
    for name in together.values():
        assert re.fullmatch(rf"[A-Za-z0-9_.+=-]{{1,{MOST_CHARACTERS}}}", name)
        assert not name.startswith((".", "-"))
    assert names_of(named(both, known([one, both]))) == together


@PROPERTY
@given(texts=st.lists(st.text(max_size=80), unique=True, max_size=12), most=st.integers(12, 40))
def test_shortened_texts_stay_apart_and_short(texts: list[str], most: int) -> None:
    found = [shortened(text, most) for text in texts]
    assert all(len(text) <= most for text in found)
    assert [new for text, new in zip(texts, found, strict=True) if len(text) <= most] == [
        text for text in texts if len(text) <= most
    ]
    assert len(set(found)) == len(found)
