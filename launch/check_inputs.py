"""The models and data that stages are made from: found, checked, and unchanged since."""

import time

from rich.console import Console
from rich.markup import escape

from heft_pipeline.errors import UserError
from heft_pipeline.plan.graph import Plan
from heft_pipeline.plan.sources import Sources
from heft_pipeline.plan.stage_spec import StageSpec
from heft_pipeline.store.stage_folders import Store


def sources_for(store: Store) -> Sources:
    """What locates models and data for the stages of a store.

    Args:
        store: The store, which remembers the digests of large files.

    Returns:
        The sources.
    """
    return Sources(store.output_dir / ".cache" / "digests.json")


def check_inputs(plan: Plan, store: Store, console: Console) -> None:
    """Check the stages that are to be trained against their models and data.

    What was decided beyond the settings is printed.

    Args:
        plan: The plan.
        store: Where stages are.
        console: Where to print.

    Raises:
        UserError: A stage cannot work as configured.
    """
    unfinished = [stage for key, stage in plan.stages.items() if not store.is_complete(key)]
    if unfinished:
        with console.status("checking models and data"):
            from heft_pipeline.stage.preflight import preflight  # imports torch

            notes = preflight(unfinished, store.tokenized)
        for note in notes:
            console.print(escape(note), soft_wrap=True, highlight=False)


def refuse_changed_inputs(stage: StageSpec, store: Store) -> None:
    """Refuse to train on other files than those that the stage was planned with.

    Args:
        stage: The stage.
        store: Where it is; the failure is noted there.

    Raises:
        RuntimeError: A local folder that the stage is made from has changed or is gone.
    """
    try:
        _compare_folders(stage, sources_for(store))
    except UserError as error:
        store.fail(stage.fingerprint, {"reason": str(error), "time": time.time()})
        raise RuntimeError(str(error)) from error


def _compare_folders(stage: StageSpec, sources: Sources) -> None:
    model, data = stage.model, stage.data
    # What has a revision comes from the hub, where a revision's content cannot change.
    if model.revision is None and sources.model(model.id, "main").content != model.content:
        _refuse("model.id", model.id)
    if data.revision is None and sources.data(None, data.location, "").content != data.content:
        _refuse("data.path", data.location)


def _refuse(key: str, path: str | None) -> None:
    raise UserError(f"{key}={path} has changed since the job was submitted; submit again")
