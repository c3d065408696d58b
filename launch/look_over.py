"""Before a sweep begins: which of its finished stages are damaged, so that they are made again."""

from rich.console import Console

from heft_pipeline.plan.graph import Plan, labelled
from heft_pipeline.store.integrity import RESTORE, Depth, remedy
from heft_pipeline.store.stage_folders import Store
from launch.progress import say_qualification


def look_over(plan: Plan, store: Store, console: Console) -> None:
    """Set aside the damaged files of a plan's finished stages, so that these count as unfinished.

    The contents of adapters are compared only where a stage is still to be trained on them; of all
    other files they always are.

    Args:
        plan: The plan.
        store: Where stages are.
        console: Where each damaged file is said, in a line.
    """
    label = labelled(plan.stages.values())
    to_train_on: set[str] = set()
    for key, stage in reversed(plan.stages.items()):  # children before parents
        depth = Depth.ALL if key in to_train_on else Depth.RECORDS
        damage = store.damage(key, depth)
        if damage:
            damage, aside = store.put_aside(key, depth)
            done = remedy(store.folder(key), damage)
            what = "it is" if done == RESTORE else "the stage is"
            for name, why in damage.items():
                say_qualification(
                    console,
                    f"{label(stage)}: {store.folder(key) / name} {why}; {what} {done} ({aside} has "
                    "what was there)",
                )
        if not store.is_complete(key) and stage.parent is not None:
            to_train_on.add(stage.parent.fingerprint)
