"""The models and data that stages are made from: found, checked, and unchanged since."""

import dataclasses
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from heft_pipeline.data.settings import DataSettings
from heft_pipeline.errors import UserError
from heft_pipeline.plan.graph import Plan
from heft_pipeline.plan.sources import Sources
from heft_pipeline.plan.stage_spec import StageSpec
from heft_pipeline.store.stage_folders import Store
from launch.local.settings import LocalSettings
from launch.progress import say_qualification
from launch.slurm.settings import SlurmSettings

_MOST_SPLITS = 50


def refuse_unfit(plan: Plan, store: Store, console: Console) -> None:
    """Refuse stages that cannot work, as :func:`check_inputs` does, before the plan is recorded.

    Args:
        plan: The plan.
        store: Where stages are.
        console: Where to show that this takes a moment.

    Raises:
        UserError: A stage cannot work as configured.
    """
    _notes(_unfinished(plan, store), store, console)


def check_inputs(
    plan: Plan,
    store: Store,
    console: Console,
    launcher: LocalSettings | SlurmSettings | None = None,
) -> None:
    """Check the stages that are to be trained against their models, data and the room on disk.

    What was decided beyond the settings is printed.

    Args:
        plan: The plan.
        store: Where stages are.
        console: Where to show that this takes a moment, and what qualifies the results.
        launcher: Says how many stages are trained side by side; None for one at a time.

    Raises:
        UserError: A stage cannot work as configured, or the disk has no room for all.
    """
    unfinished = _unfinished(plan, store)
    if not unfinished:
        return
    notes = _notes(unfinished, store, console)
    for note in notes + _check_disk(unfinished, store, launcher):
        say_qualification(console, note)


def _unfinished(plan: Plan, store: Store) -> list[StageSpec]:
    return [stage for key, stage in plan.stages.items() if not store.is_complete(key)]


def _notes(stages: Sequence[StageSpec], store: Store, console: Console) -> list[str]:
    if not stages:
        return []
    with console.status("checking models and data"):
        from heft_pipeline.stage.preflight import preflight  # imports torch

        return preflight(stages, store.tokenized)


def at_once_setting(launcher: LocalSettings | SlurmSettings) -> tuple[str, int]:
    """The setting that bounds how many stages are trained side by side, and its value."""
    name = "workers" if isinstance(launcher, LocalSettings) else "max_parallel"
    return f"hydra.launcher.{name}", getattr(launcher, name)


def _check_disk(
    stages: Sequence[StageSpec], store: Store, launcher: LocalSettings | SlurmSettings | None
) -> list[str]:
    """Refuse stages that the disk has no room for; where room is scarce, say so."""
    from heft_pipeline.stage.disk_space import room_for  # imports torch

    key, at_once = at_once_setting(launcher) if launcher else ("", 1)
    room = room_for(stages, store, at_once)
    if not room.enough:
        fewer = f", fewer of them at once with {key}=N" if at_once > 1 else ""
        raise UserError(
            f"output_dir={store.output_dir} lacks room: {room}; free some space there, choose "
            f"another place with output_dir=DIR, or ask for fewer runs{fewer}"
        )
    return [] if room.ample else [f"room is scarce in {store.output_dir}: {room}"]


def refuse_changed_inputs(stage: StageSpec, store: Store) -> None:
    """Refuse to train on other files than those that the stage was planned with.

    Args:
        stage: The stage.
        store: Where it is; the failure is noted there.

    Raises:
        RuntimeError: A local folder that the stage is made from has changed or is gone.
    """
    try:
        _compare_folders(stage, Sources(store.digests))
    except UserError as error:
        store.fail(stage.fingerprint, {"reason": str(error), "time": time.time()})
        raise RuntimeError(str(error)) from error


def _compare_folders(stage: StageSpec, sources: Sources) -> None:
    model, data = stage.model, stage.data
    # What has a revision comes from the hub, where a revision's content cannot change.
    if model.revision is None:
        found = sources.model(model.id, "main", model.trust_remote_code)
        if found.content != model.content:
            _refuse("model.id", model.id)
    if data.revision is None:
        here = dataclasses.replace(data, path=data.location)
        if not any(sources.data(one).content == data.content for one in _readings(here, stage)):
            _refuse("data.path", data.location)
    for adapter in stage.adapters:
        if sources.adapter(adapter) != adapter.init_content:
            _refuse(f"{adapter.kind}.init_from", adapter.init_from)


def _readings(data: DataSettings, stage: StageSpec) -> Iterator[DataSettings]:
    """The ways of reading a folder that a stage may have been planned with.

    An untouched model reads no dev rows, but was planned beside stages that may: its digest counts
    the files of a split that its settings no longer name.
    """
    yield data
    if stage.training is None and data.location is not None:
        files = (path for path in Path(data.location).rglob("*") if path.is_file())
        for split in sorted({re.split("[-.]", path.name)[0] for path in files})[:_MOST_SPLITS]:
            yield dataclasses.replace(data, dev_split=split)


def _refuse(key: str, path: str | None) -> None:
    raise UserError(f"{key}={path} has changed since the job was submitted; submit again")
