"""A W&B workspace that compares the methods: accuracy against its costs, and all curves.

    python -m heft_pipeline.dashboard [--entity E] [--project P] [--group SWEEP]

The view's address follows from the project and the sweep, so repeating the command updates it.
"""

import argparse
import hashlib
import importlib.util
import sys
from collections.abc import Sequence
from typing import Any

from heft_pipeline.adapters.kind import kinds
from heft_pipeline.command_line.run import run_command
from heft_pipeline.errors import UserError
from heft_pipeline.tracking.wandb_account import logged_in
from heft_pipeline.tracking.wandb_backend import quiet

_COSTS = {
    "total_epochs": "epochs of all stages",
    "train_seconds": "seconds of training",
    "train_tflop": "TFLOP of training",
    "trainable_params": "trainable parameters",
    "peak_memory_mb": "peak memory, MB",
}
_CURVES = {
    "loss": "training loss",
    "dev_accuracy": "dev accuracy",
    "dev_loss": "dev loss",
    "learning_rate": "learning rate",
    "grad_norm": "gradient norm",
    "examples_per_second": "examples/s",
    "peak_memory_mb": "peak memory, MB",
}
_COLUMNS = [
    "run:displayName",
    "run:jobType",
    "summary:accuracy",
    "summary:accuracy_low",
    "summary:accuracy_high",
    "summary:total_epochs",
    "config:rank.value",
    "config:seed.value",
    "summary:trainable_params",
    "summary:train_seconds",
    "summary:train_tflop",
    "summary:status",
]


def workspace(entity: str, project: str, group: str | None) -> Any:
    """Make the workspace without saving it.

    Args:
        entity: The W&B user or team.
        project: Its project.
        group: The sweep whose runs are shown; None for all.

    Returns:
        A ``wandb_workspaces.workspaces.Workspace``.
    """
    import wandb_workspaces.workspaces as ws

    made = ws.Workspace(
        entity=entity,
        project=project,
        name=f"HEFT: {group or 'all sweeps'}",
        auto_generate_panels=False,
    )
    made._internal_name = view_name(entity, project, group)
    _fill(made, group)
    return made


def view_name(entity: str, project: str, group: str | None) -> str:
    """W&B's internal name of the view, which follows from what the view shows.

    Args:
        entity: The W&B user or team.
        project: Its project.
        group: The sweep, or None.

    Returns:
        A name in the form that W&B gives to saved views.
    """
    text = "/".join([entity, project, group or ""])
    return f"nw-{hashlib.sha256(text.encode()).hexdigest()[:11]}-v"


def save(entity: str | None, project: str, group: str | None) -> str:
    """Create or update the view.

    Args:
        entity: The W&B user or team; None for the account's default.
        project: Its project.
        group: The sweep whose runs are shown; None for all.

    Returns:
        The view's address.

    Raises:
        UserError: A package or an account is missing, there is no such project, or W&B does not
            accept the view.
    """
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise UserError(
            "the dashboard needs the package wandb-workspaces; "
            "pip install 'heft-pipeline[dashboard]' (or: pip install wandb-workspaces)"
        )
    if not logged_in():
        raise UserError("the dashboard needs a W&B API key, and there is none here: `wandb login`")
    try:
        with quiet():
            return _save(entity, project, group)
    except UserError:
        raise
    except Exception as error:  # W&B raises many types, all with the same way out
        text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"W&B did not accept the dashboard: {text}") from error


def _save(entity: str | None, project: str, group: str | None) -> str:
    import wandb
    import wandb_workspaces.workspaces as ws

    api = wandb.Api(timeout=20)
    owner = entity or api.default_entity
    if owner is None:
        raise UserError("the account has no default entity; give --entity")
    name = view_name(owner, project, group).removeprefix("nw-").removesuffix("-v")
    try:
        view = ws.Workspace.from_url(f"{api.settings['base_url']}/{owner}/{project}?nw={name}")
        _fill(view, group)
    except ValueError as error:
        if "Project" in str(error):
            raise UserError(
                f"there is no project {owner}/{project} that this account can see; send a sweep "
                f"first (python -m heft_pipeline.tracking SWEEP), or give --project and --entity"
            ) from error
        view = workspace(owner, project, group)  # it does not exist yet
    view.save()
    return str(view.url)


def _accuracy_panels() -> list[Any]:
    """The panels of accuracy by method, and against each cost."""
    import wandb_workspaces.reports.v2 as wr

    accuracy = wr.SummaryMetric("accuracy")
    against = [(wr.SummaryMetric(key), title) for key, title in _COSTS.items()]
    against.insert(1, (wr.Config("rank"), "rank"))
    costs = [
        wr.ScatterPlot(
            title=f"accuracy against {title}",
            x=x,
            y=accuracy,
            log_x=title != "epochs of all stages",
            legend_template="${run:jobType} ${run:displayName}",
        )
        for x, title in against
    ]
    methods = [
        wr.BarPlot(
            title="accuracy by method, mean and range",
            metrics=["accuracy"],
            groupby=wr.Config("method.name"),
            groupby_aggfunc="mean",
            groupby_rangefunc="minmax",
        ),
        wr.ParallelCoordinatesPlot(
            title="method, epochs, rank, accuracy",
            columns=[
                wr.ParallelCoordinatesPlotColumn(metric=metric, display_name=title)
                for metric, title in (
                    (wr.Config("method.name"), "method"),
                    (wr.SummaryMetric("total_epochs"), "epochs"),
                    (wr.Config("rank"), "rank"),
                    (accuracy, "accuracy"),
                )
            ],
        ),
    ]
    return [*methods, *costs]


def _fill(view: Any, group: str | None) -> None:
    """Replace a workspace's panels and the settings of its table."""
    import wandb_workspaces.expr as expr
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    view.sections = [
        ws.Section(name="Accuracy and its costs", is_open=True, panels=_accuracy_panels()),
        *(_curves(f"{kind.title} stages", prefix, True) for prefix, kind in kinds().items()),
        _curves("Joint stages", "joint", False),
        ws.Section(name="Runs", panels=[wr.RunComparer(diff_only=True)]),
    ]
    view.runset_settings = ws.RunsetSettings(
        filters=[expr.Metric("Group") == group] if group else [],
        order=[expr.Ordering(expr.Summary("accuracy"), ascending=False)],
        pinned_columns=list(_COLUMNS),
    )
    view.settings = ws.WorkspaceSettings(max_runs=100)


def _curves(title: str, prefix: str, is_open: bool) -> Any:
    """The section with the curves of the stages that have a prefix."""
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    panels = [
        wr.LinePlot(title=what, x=f"{prefix}/step", y=[f"{prefix}/{name}"])
        for name, what in _CURVES.items()
    ]
    return ws.Section(name=title, is_open=is_open, panels=panels)


def main(arguments: Sequence[str] | None = None) -> int:
    """Create or update the view, and print its address.

    Args:
        arguments: The arguments without the program's name; None for the process's own.

    Returns:
        The exit status.
    """
    return run_command(_create, arguments)


def _create(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m heft_pipeline.dashboard",
        description="Create or update a W&B workspace that compares the methods.",
    )
    parser.add_argument("--entity", metavar="E", help="the W&B user or team")
    parser.add_argument("--project", metavar="P", default="heft", help="default: heft")
    parser.add_argument("--group", metavar="SWEEP", help="only this sweep's runs; default: all")
    given = parser.parse_args(arguments)
    print(save(given.entity, given.project, given.group))
    return 0


if __name__ == "__main__":
    sys.exit(main())
