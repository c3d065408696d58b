"""Every check of a config that needs neither a model nor data.

The schema refuses unknown keys and wrong types; this refuses values that are well typed and make
no sense. What needs the model's shape or the data is in ``preflight``.
"""

import re
from collections.abc import Iterable
from typing import Any

from omegaconf import DictConfig, OmegaConf

from heft_pipeline.claims import parse_claim
from heft_pipeline.config import (
    DTYPES,
    INTERVENTIONS,
    QUANTIZATIONS,
    STAGE_KINDS,
    TRACKERS,
    TRACKING_MODES,
    DataConfig,
    HeftConfig,
    TrackingConfig,
    parse_positions,
)
from heft_pipeline.errors import UserError


def typed(cfg: DictConfig) -> HeftConfig:
    """Turn a composed config into the dataclass and check it.

    Args:
        cfg: What Hydra composed, without its ``hydra`` node.

    Returns:
        The config as dataclasses, every interpolation resolved.

    Raises:
        UserError: A value is missing or makes no sense; the text names its key.
    """
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise UserError(f"{missing[0]} has no value; set it with {missing[0]}=...")
    config = OmegaConf.to_object(cfg)
    if not isinstance(config, HeftConfig):
        raise TypeError(f"the composed config is a {type(config).__name__}, not a HeftConfig")
    check(config)
    return config


def check(config: HeftConfig) -> None:
    """Refuse values that cannot work, before anything is loaded.

    Args:
        config: The typed config of one run.

    Raises:
        UserError: Names the key, the value, and what is allowed.
    """
    _check_method(config)
    _check_numbers(config)
    _check_words(config)
    _check_adapters(config)
    _check_data(config.data)
    check_tracking(config.tracking)
    for claim in config.report.claims:
        parse_claim(claim)


def _check_method(config: HeftConfig) -> None:
    for kind in config.method.stages:
        _one_of("method.stages", kind, STAGE_KINDS)


def _check_numbers(config: HeftConfig) -> None:
    positive = {
        "epochs": config.epochs,
        "rank": config.rank,
        "data.max_prompt_tokens": config.data.max_prompt_tokens,
        "evaluation.batch_size": config.evaluation.batch_size,
        "training.max_grad_norm": config.training.max_grad_norm,
        "training.micro_batch_tokens": _number_or_auto(config.training.micro_batch_tokens),
        "training.log_every_steps": config.training.log_every_steps,
        "training.checkpoint_every_seconds": config.training.checkpoint_every_seconds,
        "training.early_stopping_patience": config.training.early_stopping_patience,
        "data.max_train_rows": config.data.max_train_rows,
        "data.max_eval_rows": config.data.max_eval_rows,
        "data.dev_size": config.data.dev_size,
        "lora.rank": config.lora.rank,
        "lora.alpha": config.lora.alpha,
        "reft.rank": config.reft.rank,
        "reft.reuse_budget_gib": config.reft.reuse_budget_gib,
    }
    for name, stage in (("lora", config.lora), ("reft", config.reft), ("joint", config.joint)):
        positive[f"{name}.epochs"] = stage.epochs
        positive[f"{name}.batch_size"] = stage.batch_size
        _in_range(f"{name}.warmup_ratio", stage.warmup_ratio, 0.0, 1.0)
    for name, adapter in (("lora", config.lora), ("reft", config.reft)):
        positive[f"{name}.learning_rate"] = adapter.learning_rate
        _in_range(f"{name}.dropout", adapter.dropout, 0.0, 0.99)
        if not 0 <= adapter.weight_decay < float("inf"):
            raise UserError(
                f"{name}.weight_decay={adapter.weight_decay} must be 0 or more, "
                f"e.g. {name}.weight_decay=0.01"
            )
    for key, value in positive.items():
        if value is not None and not 0 < value < float("inf"):
            raise UserError(f"{key}={value} must be greater than 0, e.g. {key}=8")
    if not 0 <= config.seed < 2**31:
        raise UserError(f"seed={config.seed} must be from 0 to {2**31 - 1}, e.g. seed=0")


def _number_or_auto(value: Any) -> int | None:
    """None for ``auto``, which needs no check."""
    if value == "auto":
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        raise UserError(
            f"training.micro_batch_tokens={value} must be a number of tokens, or auto for whole "
            "batches that are halved when memory runs out"
        )
    return value


def _check_words(config: HeftConfig) -> None:
    _one_of("model.dtype", config.model.dtype, DTYPES)
    _one_of("reft.intervention", config.reft.intervention, INTERVENTIONS)
    _one_of("reft.engine", config.reft.engine, ("hooks", "pyreft"))
    _one_of("reft.reuse", config.reft.reuse, ("auto", "off"))
    _one_of("model.quantization", config.model.quantization, QUANTIZATIONS)
    _one_of("training.selection", config.training.selection, ("best", "last"))
    _one_of("training.lr_scheduler", config.training.lr_scheduler, ("linear", "cosine", "constant"))
    _one_of("evaluation.mode", config.evaluation.mode, ("logprob", "generate"))
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps", config.device):
        raise UserError(f"device={config.device} is not one of auto, cpu, cuda, cuda:N, mps")
    if not re.fullmatch(r"[\w.@=+-]+", config.sweep) or config.sweep.startswith("."):
        raise UserError(
            f"sweep={config.sweep!r} names a folder: use letters, digits and . _ - + = @ only"
        )
    if (config.reft.engine, config.evaluation.mode) == ("pyreft", "generate"):
        raise UserError(
            "reft.engine=pyreft is for comparing log-probabilities; use it with "
            "evaluation.mode=logprob"
        )
    if config.training.early_stopping_patience and config.training.selection == "last":
        raise UserError(
            "training.early_stopping_patience stops on the dev split, which "
            "training.selection=last does not read; use training.selection=best"
        )


def _check_adapters(config: HeftConfig) -> None:
    parse_positions(config.reft.positions)
    layers = config.reft.layers
    if layers != "all" and not _is_list(layers, int):
        raise UserError(
            f"reft.layers={layers} must be all or a list of layer numbers, "
            "e.g. reft.layers=[0,5,10]"
        )
    if layers != "all" and (not layers or len(set(layers)) != len(layers)):
        raise UserError(f"reft.layers={list(layers)} must name each layer once, and at least one")
    modules = config.lora.target_modules
    if not (isinstance(modules, str) and modules) and not (modules and _is_list(modules, str)):
        raise UserError(
            f"lora.target_modules={modules} must be all-linear or a list of module names, "
            "e.g. lora.target_modules=[q_proj,v_proj]"
        )


def _check_data(data: DataConfig) -> None:
    if data.id is None and data.path is None:
        raise UserError(
            "data.id (a hub data set) or data.path (a local folder, used first) must be given; "
            "e.g. data.id=google/boolq, or data=boolq data.path=DIR"
        )
    if data.id is not None and (data.path or "").startswith("builtin:"):
        raise UserError(
            f"data.id={data.id} would be ignored for data.path={data.path}; add data.path=null, "
            "or choose the task's own config, e.g. data=boolq"
        )
    if len(data.choices) < 2:
        raise UserError(
            f"data.choices={dict(data.choices)} needs two or more answers; add one with, e.g., "
            "+data.choices.maybe=' maybe'"
        )
    for label, text in data.choices.items():
        if not text.strip():
            raise UserError(
                f"data.choices.{label} is {text!r}: a choice needs text to score, e.g. ' yes'"
            )
    if data.truncate_column and f"{{{data.truncate_column}}}" not in data.prompt:
        raise UserError(
            f"data.truncate_column={data.truncate_column} does not occur in data.prompt "
            f"({data.prompt!r}); name a column of the prompt, or null"
        )
    if 1 < data.dev_size != int(data.dev_size):
        raise UserError(
            f"data.dev_size={data.dev_size} must be a share below 1 or a whole number of rows"
        )


def check_tracking(tracking: TrackingConfig) -> None:
    """Refuse settings of tracking that no backend takes.

    Args:
        tracking: The settings.

    Raises:
        UserError: Names the key, the value, and what is allowed.
    """
    _one_of("tracking", tracking.name, TRACKERS)
    _one_of("tracking.mode", tracking.mode, TRACKING_MODES)
    if not 0 < tracking.finish_seconds < float("inf"):
        raise UserError(
            f"tracking.finish_seconds={tracking.finish_seconds} must be greater than 0, "
            "e.g. tracking.finish_seconds=60"
        )
    # The characters and lengths that W&B's server refuses, after training.
    if not re.fullmatch(r"[^/\\#?%:]{1,128}", tracking.project):
        raise UserError(
            f"tracking.project={tracking.project!r} must be 1 to 128 characters without any of "
            "/ \\ # ? % : , e.g. tracking.project=heft"
        )
    for tag in tracking.tags:
        if not 1 <= len(tag) <= 64:
            raise UserError(
                f"tracking.tags: {tag!r} must be 1 to 64 characters, e.g. tracking.tags=[pilot]"
            )


def _one_of(key: str, value: str, allowed: Iterable[str]) -> None:
    if value not in allowed:
        raise UserError(f"{key}={value} is not one of {', '.join(allowed)}")


def _in_range(key: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise UserError(f"{key}={value} must be from {low:g} to {high:g}")


def _is_list(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(
        isinstance(v, kind) and not isinstance(v, bool) for v in value
    )
