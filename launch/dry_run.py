"""Showing a plan without executing it."""

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.tree import Tree

from heft_pipeline.plan import Plan
from heft_pipeline.spec import StageSpec
from heft_pipeline.store import Store

_MOST_LINES = 40


def show_plan(
    plan: Plan, store: Store, kind: str, settings: dict[str, Any], console: Console
) -> None:
    """Print the runs, the unique stages with their states, and what would be submitted.

    Args:
        plan: The plan.
        store: Where stages are.
        kind: ``local`` or ``slurm``.
        settings: The launcher's own config.
        console: Where to.
    """
    states = {key: store.state(key) for key in plan.stages}
    to_do = [stage for key, stage in plan.stages.items() if states[key] != "complete"]
    baselines = len(plan.stages) - plan.unique
    tree = Tree(f"[bold]{len(plan.runs)} runs[/] (dry run: nothing is trained)")
    by_method = tree.add(f"runs: {_counts([run.method for run in plan.runs])}")
    for run in plan.runs[:_MOST_LINES]:
        by_method.add(escape(f"{run.name}: {' > '.join(s.fingerprint[:8] for s in run.stages)}"))
    _more(by_method, len(plan.runs))
    branch = tree.add(
        f"unique stages: {plan.unique} of {plan.asked} asked for, "
        f"{plan.asked - plan.unique} saved by sharing"
        + (f"; besides, {baselines} of untouched models" if baselines else "")
        + f"; {_counts(list(states.values()))}"
    )
    for key, stage in list(plan.stages.items())[:_MOST_LINES]:
        branch.add(escape(f"{key[:8]} {stage.label}: {states[key]}"))
    _more(branch, len(plan.stages))
    if kind == "slurm":
        _submissions(tree, to_do, settings)
    else:
        workers, size = settings["workers"], settings["gpus_per_stage"]
        tree.add(
            f"would train {len(to_do)} stages here, {workers} at a time"
            + (f", {size} processes each" if size > 1 else "")
        )
    console.print(tree, soft_wrap=True, highlight=False)


def _submissions(tree: Tree, to_do: list[StageSpec], settings: dict[str, Any]) -> None:
    from launch.slurm import groups, sbatch_parameters

    batches = groups(to_do)
    branch = tree.add(f"would submit {len(to_do)} jobs in {len(batches)} calls of sbatch")
    flags = ", ".join(f"{k}={v}" for k, v in sorted(sbatch_parameters(settings, None).items()))
    branch.add(escape(flags))
    for parent, stages in list(batches.items())[:_MOST_LINES]:
        what = f"array of {len(stages)}" if len(stages) > 1 else stages[0].label
        after = f", afterok on {parent[:8]}" if parent else ""
        branch.add(escape(f"{what}{after}"))
    _more(branch, len(batches))


def _counts(words: list[str]) -> str:
    return ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words))


def _more(branch: Tree, total: int) -> None:
    if total > _MOST_LINES:
        branch.add(f"... and {total - _MOST_LINES:,} more")
