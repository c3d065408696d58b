"""What is done when a sweep's stages have ended: tracking, and the report."""

import dataclasses

import yaml
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.markup import escape

from heft_pipeline.config import HeftConfig, register
from heft_pipeline.spec import StageSpec, from_json
from heft_pipeline.sweep import Sweep
from heft_pipeline.tracking import track_run
from heft_pipeline.validation import typed


def report(sweep: Sweep, console: Console) -> None:
    """Write a sweep's report and show the comparison.

    Args:
        sweep: The sweep.
        console: Where to show it.
    """
    from heft_pipeline.report import write_report  # imports pandas and matplotlib

    with console.status("writing the report"):
        shown = write_report([sweep], sweep.folder)
    console.print(shown)
    console.print(f"{sweep.folder / 'report.html'}", highlight=False, soft_wrap=True)


def finish_sweep(sweep: Sweep, console: Console, only: str | None = None) -> None:
    """Track a sweep's complete runs and make its report, from its files alone.

    Args:
        sweep: The sweep.
        console: Where to show it.
        only: The one run to track; None for all.
    """
    plan = sweep.plan()
    for run in plan["runs"]:
        complete = all(sweep.store.is_complete(key) for key in run["stages"])
        if complete and only in (None, run["name"]):
            stages = [from_json(plan["stages"][key]) for key in run["stages"]]
            problem = _track(sweep, run["name"], run["method"], stages)
            if problem:
                console.print(f"[yellow]![/] {escape(problem)}", soft_wrap=True)
    report(sweep, console)


def _track(sweep: Sweep, name: str, method: str, stages: list[StageSpec]) -> str | None:
    """Send a complete run to where its config says; return why it was not taken, if so."""
    config = yaml.safe_load((sweep.folder / "runs" / name / ".hydra" / "config.yaml").read_text())
    if config["tracking"]["name"] == "none":
        return None
    register()
    merged = OmegaConf.merge(OmegaConf.structured(HeftConfig), OmegaConf.create(config))
    assert isinstance(merged, DictConfig)
    resolved = typed(merged)
    return track_run(
        resolved.tracking,
        sweep.store,
        sweep.folder / "runs" / name,
        method,
        stages,
        dataclasses.asdict(resolved),
    )
