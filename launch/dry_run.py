"""Showing a plan without executing it."""

from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from heft_pipeline.plan.graph import Plan, labelled
from heft_pipeline.plan.stage_spec import StageSpec
from heft_pipeline.store.stage_folders import Store
from launch.check_inputs import at_once_setting
from launch.cost import show_cost
from launch.gpus import NONE
from launch.local.settings import LocalSettings
from launch.progress import other_versions, say_line, say_qualification
from launch.slurm.settings import SlurmSettings
from launch.task_preview import show_tasks

_MOST_LINES = 40


def show_plan(
    plan: Plan, store: Store, launcher: LocalSettings | SlurmSettings, console: Console
) -> None:
    """Print the runs, the unique stages with their states, what would be submitted, and the cost.

    Args:
        plan: The plan.
        store: Where stages are.
        launcher: The launcher's settings.
        console: Where to print.
    """
    states = {key: store.state(key) for key in plan.stages}
    unfinished = [stage for key, stage in plan.stages.items() if states[key] != "complete"]
    title = (f"{len(plan.runs)} runs", "bold")
    tree = Tree(Text.assemble(title, " (dry run: nothing is trained)"))
    _show_runs(tree, plan)
    _show_stages(tree, plan, states)
    if isinstance(launcher, SlurmSettings):
        _show_submissions(tree, unfinished, launcher)
    else:
        _show_workers(tree, len(unfinished), launcher)
    console.print(tree, highlight=False)
    if launcher.dry_run_gpu != NONE:
        show_tasks(unfinished, store, console)
    if unused := other_versions(store):
        say_line(console, unused)
    show_disk(show_cost(plan.runs, unfinished, store, launcher, console), store, launcher, console)


def show_disk(
    stages: list[StageSpec], store: Store, launcher: LocalSettings | SlurmSettings, console: Console
) -> None:
    """Print how much room on disk stages need, and how much there is.

    Args:
        stages: The stages that are to be trained, whose models and data can be read.
        store: Where they will be.
        launcher: The launcher's settings.
        console: Where to print.
    """
    if not stages:
        return
    from heft_pipeline.stage.disk_space import room_for  # imports torch

    room = room_for(stages, store, at_once_setting(launcher)[1])
    if room.ample:
        console.print(f"room in output_dir: {room}", highlight=False)
        return
    why = "which may not be enough" if room.enough else "which is refused unless there is more"
    say_qualification(console, f"room in output_dir: {room}, {why}", wrapped=True)


def _show_runs(tree: Tree, plan: Plan) -> None:
    branch = tree.add(f"runs: {_counts([run.method for run in plan.runs])}")
    several = len({run.last.data.name for run in plan.runs}) > 1
    for run in plan.runs[:_MOST_LINES]:
        name = f"{run.name} on {run.last.data.name}" if several else run.name
        branch.add(Text(f"{name}: {' > '.join(s.fingerprint[:8] for s in run.stages)}"))
    _more(branch, len(plan.runs))


def _show_stages(tree: Tree, plan: Plan, states: dict[str, str]) -> None:
    baselines = len(plan.stages) - plan.unique
    branch = tree.add(
        f"unique stages: {plan.unique} of {plan.asked} asked for, "
        f"{plan.asked - plan.unique} saved by sharing"
        + (f"; besides, {baselines} of untouched models" if baselines else "")
        + f"; {_counts(list(states.values()))}"
    )
    label = labelled(plan.stages.values())
    for key, stage in list(plan.stages.items())[:_MOST_LINES]:
        branch.add(Text(f"{key[:8]} {label(stage)}: {states[key]}"))
    _more(branch, len(plan.stages))


def _show_workers(tree: Tree, stages: int, launcher: LocalSettings) -> None:
    size = launcher.gpus_per_stage
    together = f", {size} processes each" if size > 1 else ""
    tree.add(f"would train {stages} stages here, {launcher.workers} at a time{together}")


def _show_submissions(tree: Tree, stages: list[StageSpec], launcher: SlurmSettings) -> None:
    from launch.slurm.sbatch import stage_flags  # imports submitit
    from launch.slurm.submit import groups

    batches = groups(stages)
    branch = tree.add(f"would submit {len(stages)} jobs in {len(batches)} calls of sbatch")
    flags = ", ".join(f"{k}={v}" for k, v in sorted(stage_flags(launcher).items()))
    branch.add(Text(flags))
    for parent, group in list(batches.items())[:_MOST_LINES]:
        what = f"array of {len(group)}" if len(group) > 1 else group[0].label
        after = f", afterok on {parent[:8]}" if parent else ""
        branch.add(Text(f"{what}{after}"))
    _more(branch, len(batches))


def _counts(words: list[str]) -> str:
    return ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words))


def _more(branch: Tree, total: int) -> None:
    if total > _MOST_LINES:
        branch.add(f"... and {total - _MOST_LINES:,} more")
