"""A fingerprint changes with the settings that identify a stage, and with nothing else."""

import dataclasses
import json
import random
from collections.abc import Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from heft_pipeline.declare_settings import Bounds, FrozenDict
from heft_pipeline.plan.stage_spec import StageSpec, from_json, to_json
from tests.conftest import composed_run

PROPERTY = settings(deadline=None, derandomize=True, max_examples=300)
#: A change: the part of a stage, the field, and its new value.
Change = tuple[str, str, Any]

BASE = composed_run(
    "method.stages=[lora,lora+red+reft]", "model.name=m", "data.name=d", "lora.init_from=null"
).last
PARTS = {
    "model": BASE.model,
    "data": BASE.data,
    "training": BASE.training,
    "evaluation": BASE.evaluation,
    **{f"adapter {n}": adapter for n, adapter in enumerate(BASE.adapters)},
}


def values(one: "dataclasses.Field[Any]", now: Any) -> st.SearchStrategy[Any]:
    """Values that a field can have, in its own type: the fingerprint asks for no more."""
    bounds: Bounds | None = one.metadata.get("bounds")
    if bounds is not None and bounds.choices and not bounds.numeric:
        return st.sampled_from(bounds.choices)
    if isinstance(now, bool):
        return st.booleans()
    if isinstance(now, int):
        return st.integers(0, 2**31 - 1)
    if isinstance(now, float):
        return st.floats(0, 1e6, allow_nan=False)
    if isinstance(now, dict):
        return st.dictionaries(st.text(max_size=5), st.text(max_size=5)).map(FrozenDict)
    if isinstance(now, tuple):
        return st.lists(st.text(max_size=5), max_size=3).map(tuple)
    return st.one_of(st.none(), st.text(max_size=8))


@st.composite
def changes(draw: st.DrawFn) -> list[Change]:
    found = []
    for part in draw(st.lists(st.sampled_from(sorted(PARTS)), max_size=4)):
        section: Any = PARTS[part]
        one = draw(st.sampled_from(dataclasses.fields(section)))
        found.append((part, one.name, draw(values(one, getattr(section, one.name)))))
    return found


def made(asked: Sequence[Change], device: str = "auto") -> StageSpec:
    parts: dict[str, Any] = dict(PARTS)
    for part, name, value in asked:
        parts[part] = dataclasses.replace(parts[part], **{name: value})
    adapters = tuple(parts[f"adapter {n}"] for n in range(len(BASE.adapters)))
    return dataclasses.replace(
        BASE, model=parts["model"], data=parts["data"], training=parts["training"],
        evaluation=parts["evaluation"], adapters=adapters, device=device,
    )  # fmt: skip


def identity(stage: StageSpec) -> str:
    """What identifies a stage, by the declarations alone."""
    parts = [stage.model, stage.data, stage.training, stage.evaluation, *stage.adapters]
    return repr([
        {
            one.name: (list(value.items()) if isinstance(value, dict) else value)
            for one in dataclasses.fields(part)  # type: ignore[arg-type]
            if one.metadata.get("identity", True)
            for value in [getattr(part, one.name)]
        }
        for part in parts
    ])  # fmt: skip


@PROPERTY
@given(one=changes(), other=changes(), device=st.sampled_from(["cpu", "cuda:1", "mps"]))
def test_two_stages_have_one_fingerprint_if_and_only_if_their_identity_is_one(
    one: list[Change], other: list[Change], device: str
) -> None:
    first, second = made(one), made(other, device)
    assert (first.fingerprint == second.fingerprint) == (identity(first) == identity(second))


@PROPERTY
@given(asked=changes(), seed=st.integers(0, 2**31 - 1))
def test_a_stage_comes_back_from_its_json_in_any_order_of_the_keys(
    asked: list[Change], seed: int
) -> None:
    stage = dataclasses.replace(made(asked), seed=seed)
    data = json.loads(json.dumps(to_json(stage)))
    assert from_json(data) == stage
    again = from_json(shuffled(data, random.Random(seed)))
    assert again.fingerprint == stage.fingerprint
    assert to_json(again) == to_json(stage)


def shuffled(value: Any, source: random.Random, key: str = "") -> Any:
    """The same JSON with the keys of its objects in another order; that of choices counts."""
    if isinstance(value, dict):
        keys = list(value)
        if key != "choices":
            source.shuffle(keys)
        return {one: shuffled(value[one], source, one) for one in keys}
    return [shuffled(one, source) for one in value] if isinstance(value, list) else value


@PROPERTY
@given(asked=changes())
def test_a_childs_fingerprint_follows_its_parents(asked: list[Change]) -> None:
    parent = made(asked)
    child, same = (dataclasses.replace(BASE, parent=one) for one in (parent, made([])))
    moved = parent.fingerprint != made([]).fingerprint
    assert (child.fingerprint != same.fingerprint) == moved
    assert child.fingerprint != parent.fingerprint
