"""Where runs are shown in addition to the store's files; no setting can change a result."""

import re
from dataclasses import dataclass
from typing import Any

from heft_pipeline.declare_settings import Settings, setting
from heft_pipeline.errors import UserError


def _check_project(key: str, value: str) -> None:
    # W&B's server refuses any other name, but only after training.
    if not re.fullmatch(r"[^/\\#?%:]{1,128}", value):
        raise UserError(
            f"{key}={value!r} must be 1 to 128 characters without any of / \\ # ? % : , "
            f"e.g. {key}=heft"
        )


def _check_tags(key: str, value: Any) -> None:
    for tag in value:
        if not 1 <= len(tag) <= 64:
            raise UserError(f"{key}: {tag!r} must be 1 to 64 characters, e.g. {key}=[pilot]")


@dataclass(frozen=True)
class TrackingSettings(Settings):
    """Where runs are shown in addition to the store's own files."""

    name: str = setting(
        "none",
        "the tracker",
        choices=("none", "wandb", "tensorboard", "trackio", "mlflow"),
        identity=False,
    )
    mode: str = setting(
        "auto",
        "W&B's mode; auto: $WANDB_MODE if it is set, else online after `wandb login`, else "
        "offline. disabled stops any tracker, and offline keeps MLflow's runs in the sweep",
        choices=("auto", "online", "offline", "disabled"),
        identity=False,
    )
    project: str = setting(
        "heft",
        "the project of W&B or Trackio, and the experiment of MLflow",
        rule=_check_project,
        identity=False,
    )
    uri: str | None = setting(
        None,
        "MLflow's server or database, e.g. http://localhost:5000; null: $MLFLOW_TRACKING_URI, else "
        "a database in the sweep's folder",
        identity=False,
    )
    entity: str | None = setting(
        None, "the W&B user or team; null: the account's default", identity=False
    )
    tags: list[str] = setting(
        [], "tags in addition to the method", rule=_check_tags, identity=False
    )
    log_predictions: bool = setting(
        False,
        "send predictions.parquet, as a W&B table or an MLflow artifact",
        identity=False,
    )
    log_adapter: bool = setting(
        False,
        "send each trained stage's adapter as an artifact of W&B or MLflow",
        identity=False,
    )
    finish_seconds: float = setting(
        60.0,
        "at the end, stop waiting for the tracker after this many seconds without progress",
        above=0,
        identity=False,
    )
