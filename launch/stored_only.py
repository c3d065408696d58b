"""``hydra.launcher.train=never``: a report from what the store holds, or a failure."""

from typing import Any

from heft_pipeline.declare_settings import setting
from heft_pipeline.errors import UserError
from heft_pipeline.plan.graph import Plan, labelled
from heft_pipeline.store.integrity import Depth
from heft_pipeline.store.stage_folders import Store

NEVER = "never"
_MOST_NAMED = 8


def train_setting() -> Any:
    """Declare ``train``."""
    return setting(
        "missing",
        "missing: what the store lacks is trained; never: nothing is, the report is made from the "
        "store alone, and a stage that it lacks is an error",
        choices=("missing", NEVER),
        identity=False,
    )


def require_stored(plan: Plan, store: Store) -> None:
    """Refuse a plan with stages that the store does not hold, or not as they were.

    Args:
        plan: The plan.
        store: The store; nothing is written.

    Raises:
        UserError: The message names the stages that are missing or damaged.
    """
    label, lacking = labelled(plan.stages.values()), []
    for key, stage in plan.stages.items():
        damage = store.damage(key, Depth.RECORDS)
        for name, why in damage.items():
            lacking.append(f"{label(stage)} ({store.folder(key) / name} {why})")
            break
        if not damage and not store.is_complete(key):
            lacking.append(f"{label(stage)} ({key}: {store.state(key)})")
    if lacking:
        more = len(lacking) - _MOST_NAMED
        raise UserError(
            f"hydra.launcher.train=never: {store.output_dir} lacks {len(lacking)} of "
            f"{len(plan.stages)} stages: {'; '.join(lacking[:_MOST_NAMED])}"
            + (f"; and {more} more" if more > 0 else "")
            + ". Train them with hydra.launcher.train=missing, import them, or ask for less"
        )
