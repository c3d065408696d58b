"""Saying at launch that a finished stage is almost one that will be trained."""

from rich.console import Console

from heft_pipeline.plan.graph import Plan, labelled
from heft_pipeline.store.stage_folders import Store
from heft_pipeline.storekeeping.differences import near_twin
from heft_pipeline.storekeeping.inventory import read_stage
from launch.progress import say_line

#: How many of the newest stages of a store are looked at, and how many that will be trained.
_MOST_FINISHED, _MOST_ASKED = 500, 20


def say_near_twin(plan: Plan, store: Store, console: Console) -> None:
    """Say in a line which finished stage differs from one to be trained in very little.

    What the plan itself varies is no surprise, and neither is a stage that it asks for.

    Args:
        plan: The plan.
        store: Where stages are.
        console: Where to say it.
    """
    to_train = [key for key in plan.stages if not store.is_complete(key)][:_MOST_ASKED]
    if not to_train:
        return
    others = [
        folder
        for folder in (store.output_dir / "stages").glob("[0-9a-f]*")
        if folder.name not in plan.stages
    ]
    newest = sorted(others, key=lambda folder: -folder.stat().st_mtime)[:_MOST_FINISHED]
    finished = [
        stage
        for folder in newest
        if store.is_complete(folder.name) and (stage := read_stage(store, folder.name))
    ]
    found = near_twin(to_train, plan.stages, finished)
    if found is None:
        return
    asked, twin = found.asked, found.finished
    label = labelled([asked, twin])
    say_line(
        console,
        f"The finished stage {twin.fingerprint} is not {label(asked)} ({asked.fingerprint}), which "
        f"is to be trained: they differ in {' and in '.join(map(str, found.differences))}",
    )
