"""What has to be done for a stage: nothing, or to restore, score or train it."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from heft_pipeline.files.json_files import write_json
from heft_pipeline.plan.stage_spec import StageSpec, to_json
from heft_pipeline.store.integrity import (
    SCORE,
    STAGE,
    Depth,
    remedy,
    salvage,
    set_aside,
)
from heft_pipeline.store.stage_folders import Store

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Found:
    """What there is of a stage.

    Attributes:
        result: The content of its ``result.json``, if it has been finished; None if it has to be
            trained.
        whole: Whether all its files are there; if not, it has to be scored again.
    """

    result: dict[str, Any] | None = None
    whole: bool = False


def find_result(stage: StageSpec, store: Store) -> Found:
    """Look for a stage's result; damaged files are set aside, and restored if they have copies.

    Args:
        stage: The stage, whose lock is held.
        store: Where it is.
    """
    folder = store.folder(stage.fingerprint)
    damage = store.damage(stage.fingerprint, Depth.RECORDS)
    if damage:
        _set_aside(stage, store, damage)
    elif (result := store.result(stage.fingerprint)) is not None:
        return Found(result, whole=True)
    left = salvage(folder)
    if left is None or left.result is None:
        return Found()
    lost = dict(left.damage)
    if lost.pop(STAGE, None):
        write_json(folder / STAGE, to_json(stage))
    if not lost:
        store.complete(stage.fingerprint, left.result)
        log.warning("the result is restored, because all other files are as they were")
        return Found(store.result(stage.fingerprint), whole=True)
    if remedy(folder, lost) == SCORE:
        return Found(left.result)
    _set_aside(stage, store, lost)
    return Found()


def _set_aside(stage: StageSpec, store: Store, damage: Mapping[str, str]) -> None:
    aside = set_aside(store.folder(stage.fingerprint), damage)
    for name, why in damage.items():
        log.warning("%s %s; what is there is in %s now", name, why, aside)
