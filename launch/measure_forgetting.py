"""What a sweep's stages lose on text that their task does not touch: what is asked, and lacking."""

from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console

from heft_pipeline.data.other_text import KEY, OtherText, chosen_text, is_builtin, text_note
from heft_pipeline.errors import UserError
from heft_pipeline.plan.graph import Plan
from heft_pipeline.plan.stage_spec import StageSpec
from heft_pipeline.settings.report import ReportSettings
from heft_pipeline.store.sweep_folders import Sweep
from launch.later import later
from launch.progress import say_qualification

#: The key of ``plan.json``.
NOTE = "forgetting"


def forgetting_note(reports: Iterable[ReportSettings]) -> dict[str, Any] | None:
    """What ``plan.json`` says about the text that forgetting is measured on.

    Args:
        reports: The report's settings of the sweep's runs.

    Returns:
        Data for :func:`~heft_pipeline.data.other_text.chosen_text`; None for no text.

    Raises:
        UserError: There are several texts, or a file cannot be read.
    """
    asked = list(dict.fromkeys(report.forgetting for report in reports))
    if len(asked) > 1:
        raise UserError(
            f"{KEY} is {' and '.join(asked)}, but all runs of a sweep are measured on the same "
            "text; choose one (a finished sweep can be measured on another: python -m launch "
            "forgetting SWEEP --text FILE)"
        )
    return text_note(asked[0])


def texts(sweep: Sweep, stages: Iterable[StageSpec]) -> dict[str, OtherText]:
    """The text that each stage is measured on.

    Args:
        sweep: The sweep, whose ``plan.json`` says what was asked.
        stages: The stages.

    Returns:
        Texts by the stages' fingerprints; empty if nothing is to be measured.
    """
    note = sweep.plan().get(NOTE)
    found = {stage.fingerprint: chosen_text(note, stage.model.id) for stage in stages}
    return {key: text for key, text in found.items() if text is not None}


def check_texts(note: Mapping[str, Any] | None, sweep: Sweep, plan: Plan) -> None:
    """Refuse a text that a model of the plan cannot be measured on, before anything is trained.

    Texts that ship are not refused: nobody has chosen them, so a model that cannot read them is
    trained all the same, and the report says why it is not measured.

    Args:
        note: What :func:`forgetting_note` returned.
        sweep: The sweep.
        plan: The stages.

    Raises:
        UserError: It is too short, or a model cannot read it.
    """
    if note is None or is_builtin(note):
        return
    asked = [(chosen_text(note, stage.model.id), stage) for stage in plan.stages.values()]
    unread = [
        (text, stage.model)
        for text, stage in asked
        if text and text.digest not in sweep.store.text_losses(stage.fingerprint)
    ]
    for text, model in dict.fromkeys(unread):
        from heft_pipeline.stage.forgetting import check_text  # imports torch

        check_text(text, model)


def lacking(sweep: Sweep, plan: Plan, *, again: bool = False) -> list[tuple[StageSpec, OtherText]]:
    """The finished stages that have not been measured on the text that is asked for.

    Args:
        sweep: The sweep.
        plan: The stages.
        again: Whether those count as well that could not be measured.

    Returns:
        The stages with their texts.
    """
    store, found = sweep.store, []
    for key, text in texts(sweep, plan.stages.values()).items():
        entry = store.text_losses(key).get(text.digest)
        if store.is_complete(key) and (entry is None or (again and "why" in entry)):
            found.append((plan.stages[key], text))
    return found


def measure_lacking(sweep: Sweep, plan: Plan, console: Console, *, again: bool = False) -> int:
    """Measure the finished stages that lack it; nothing is trained, and no result changes.

    Args:
        sweep: The sweep.
        plan: The stages.
        console: Where to show what is done, and what could not be.
        again: Whether to try those again that could not be measured.

    Returns:
        How many were measured.
    """
    todo = lacking(sweep, plan, again=again)
    if not todo:
        return 0
    from heft_pipeline.models.base_model import quieten
    from heft_pipeline.stage.forgetting import measure_finished  # imports torch

    quieten()
    reasons = {}
    plural = "s" if len(todo) > 1 else ""
    with console.status(f"measuring forgetting of {len(todo)} finished stage{plural}"):
        for stage, text in todo:
            if why := measure_finished(stage, sweep.store, text):
                reasons[stage.label] = why
    measured = len(todo) - len(reasons)
    if measured:
        words = f"forgetting measured for {measured} stage{'s' if measured > 1 else ''}"
        console.print(f"{words} that had been trained before", highlight=False, soft_wrap=True)
    for label, why in reasons.items():
        say_qualification(console, f"forgetting of {label} not measured: {why}")
    return measured


def say_lacking(sweep: Sweep, plan: Plan, console: Console) -> None:
    """Say how to measure finished stages that no job will measure.

    Args:
        sweep: The sweep.
        plan: The stages.
        console: Where to say it.
    """
    if todo := lacking(sweep, plan):
        console.print(
            f"{len(todo)} stages were trained before without measuring forgetting; "
            f"{later(sweep, 'forgetting')} measures it, best on a GPU node",
            highlight=False,
            soft_wrap=True,
        )
