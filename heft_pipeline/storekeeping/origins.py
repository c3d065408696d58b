"""What made a stage, and which sweeps use it."""

from collections.abc import Iterator
from typing import Any

from heft_pipeline.errors import UserError
from heft_pipeline.files.byte_sizes import disk_use, in_bytes
from heft_pipeline.plan.stage_spec import StageSpec
from heft_pipeline.store.stage_folders import Store
from heft_pipeline.storekeeping.inventory import read_stage, sweeps_of

_MADE_BY = ("commit", "python", "torch", "transformers", "peft", "pyreft")


def origins(store: Store, fingerprint: str) -> Iterator[tuple[str, str]]:
    """Where a stage comes from and what it is used for.

    Args:
        store: The store.
        fingerprint: The stage's fingerprint.

    Yields:
        (what, its value) for people.

    Raises:
        UserError: The stage's settings cannot be read.
    """
    stage = read_stage(store, fingerprint)
    if stage is None:
        raise UserError(
            f"{store.folder(fingerprint)} holds no stage that this version can read; nothing is "
            "known of it"
        )
    size, _ = disk_use(store.folder(fingerprint))
    yield "stage", f"{fingerprint} {stage.label} ({store.state(fingerprint)}, {in_bytes(size)})"
    yield "model", f"{stage.model.name} ({stage.model.content}) at {stage.model.id}"
    yield "data", f"{stage.data.name} ({stage.data.content}) at {stage.data.location}"
    for part in stage.chain[:-1]:
        yield "trained on", f"{part.fingerprint} {part.label} ({store.state(part.fingerprint)})"
    result = store.result(fingerprint)
    if result is not None:
        yield from made_by(result)
    yield from _users(store, stage)


def made_by(result: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """When, where and with what a stage was made.

    Args:
        result: The content of its ``result.json``.

    Yields:
        (what, its value) for people.
    """
    if elsewhere := result.get("trained_elsewhere"):
        yield "trained", f"elsewhere; adopted from {elsewhere}, with settings as they were stated"
    yield from _made(result, "made")
    if again := result.get("scored_again"):
        yield from _made(again, "scored again")


def _made(result: dict[str, Any], when: str) -> Iterator[tuple[str, str]]:
    machine = result.get("machine", {})
    threads = machine.get("threads")
    yield (
        when,
        f"{result.get('finished', '?')} on {machine.get('host', '?')} ({machine.get('device', '?')}"
        + (f", {threads} threads" if threads else "")
        + ")",
    )
    yield "with", ", ".join(f"{name} {machine[name]}" for name in _MADE_BY if machine.get(name))


def _users(store: Store, stage: StageSpec) -> Iterator[tuple[str, str]]:
    used = False
    for sweep in sweeps_of(store):
        plan = sweep.plan(any_version=True)
        for run in plan["runs"]:
            if stage.fingerprint in run["stages"]:
                used = True
                yield "used by", f"{sweep.name}/{run['name']}"
                yield "asked with", str(run.get("command") or plan.get("command", "?"))
        if stage.fingerprint in plan.get("baselines", []):
            used = True
            yield "used by", f"{sweep.name}, as the untouched model"
    if not used:
        yield "used by", "no sweep here"
