"""The finished adapters that a stage stands on: where they are, and merging them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from heft_pipeline.adapters.adapted import AdaptedModel, merged_parents
from heft_pipeline.adapters.kind import AdapterSettings, adapter_folder
from heft_pipeline.data.batches import AnsweredPrompt
from heft_pipeline.data.prompts import Task
from heft_pipeline.plan.stage_spec import StageSpec
from heft_pipeline.store.stage_folders import Store


def finished_adapters(
    stages: Sequence[StageSpec], store: Store
) -> Iterator[tuple[AdapterSettings, Path]]:
    """The adapters of complete stages, first to last, with their folders.

    Args:
        stages: Stages in training order.
        store: The store.

    Yields:
        What :func:`~heft_pipeline.adapters.adapted.adapted` takes.

    Raises:
        UserError: A stage is not complete, or a file of it is not what it wrote.
    """
    for stage in stages:
        store.require_whole(stage)
        yield from saved_adapters(stage, store)


def saved_adapters(stage: StageSpec, store: Store) -> Iterator[tuple[AdapterSettings, Path]]:
    """The adapters of a stage with their folders, whatever state they are in."""
    for settings in stage.adapters:
        yield settings, adapter_folder(store.adapter(stage), settings, stage.adapters)


@contextmanager
def merged_if_asked(
    stage: StageSpec, model: AdaptedModel, task: Callable[[], Task]
) -> Iterator[float | None]:
    """Merge the parents inside the block if the stage asks for it.

    Args:
        stage: The stage.
        model: The model with the stage's parents on it.
        task: Loads the task; called only if something is merged.

    Yields:
        The error that merging made; None if nothing is merged.
    """
    if not stage.merges_parents:
        yield None
        return
    read = task()
    probe = [AnsweredPrompt(e.prompt, e.answer[:1]) for e in (read.dev or read.train)[:8]]
    with merged_parents(model, probe) as error:
        yield error
