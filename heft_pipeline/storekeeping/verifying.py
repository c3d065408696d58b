"""Whether a store's stages are what they were when they were finished."""

from collections.abc import Iterator
from dataclasses import dataclass

from heft_pipeline.plan.stage_spec import StageSpec
from heft_pipeline.store.integrity import MANIFEST, Depth, look
from heft_pipeline.store.stage_folders import Store
from heft_pipeline.storekeeping.inventory import Entry, inventory, read_stage


@dataclass(frozen=True)
class Verified:
    """What comparing a stage's files with its manifest shows.

    Attributes:
        entry: The stage.
        wrong: What is wrong, a clause for each file; empty if nothing is.
        unsealed: Whether it has no manifest, so that only what is missing is seen.
    """

    entry: Entry
    wrong: tuple[str, ...]
    unsealed: bool = False


def verify(store: Store) -> Iterator[Verified]:
    """Compare all files of all finished stages with what they were; nothing is written.

    Args:
        store: The store.

    Yields:
        What was found for each finished stage.

    Raises:
        UserError: There is no store.
    """
    for entry in inventory(store):
        folder = store.folder(entry.fingerprint)
        found = look(folder, Depth.ALL)
        if found.result is None and not found.damage:
            continue
        wrong = [f"{folder / name} {why}" for name, why in found.damage.items()]
        stage = read_stage(store, entry.fingerprint)
        if stage is not None and stage.fingerprint != entry.fingerprint:
            wrong.append(f"{folder} holds the settings of stage {stage.fingerprint}")
        unsealed = found.result is not None and MANIFEST not in found.result
        yield Verified(entry, tuple(wrong), unsealed)


def recompute(stage: StageSpec, store: Store) -> str:
    """Score a finished stage again, and compare the answers with its ``predictions.parquet``.

    Args:
        stage: The stage.
        store: Where it is; nothing in it changes.

    Returns:
        In what the answers differ, in words; empty if they are equal to the bit.

    Raises:
        UserError: The stage, one that it stands on, its model or its data cannot be used.
    """
    from heft_pipeline.models.base_model import quieten  # imports torch, as the next one
    from heft_pipeline.stage.scored_again import differing_answers

    quieten()
    return differing_answers(stage, store)
