"""Turning the config that Hydra composed into checked settings."""

import dataclasses
import os
from typing import Any

from omegaconf import DictConfig, OmegaConf

from heft_pipeline.adapters.kind import kinds
from heft_pipeline.declare_settings import check, is_section
from heft_pipeline.errors import UserError
from heft_pipeline.settings.refused_overrides import unknown
from heft_pipeline.settings.schema import HeftConfig

#: The most bytes in the name of a file or folder: NAME_MAX of Linux and macOS.
_LONGEST_NAME = 255


def typed(cfg: DictConfig) -> HeftConfig:
    """Turn a composed config into checked settings, with every interpolation resolved.

    Args:
        cfg: The config that Hydra composed, without its ``hydra`` node.

    Raises:
        UserError: A value is missing or not allowed; the message names its key.
    """
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise UserError(f"{missing[0]} has no value; set it with {missing[0]}=...")
    _refuse_unknown(HeftConfig, cfg)
    config = OmegaConf.to_object(cfg)
    if not isinstance(config, HeftConfig):
        raise TypeError(f"the composed config is a {type(config).__name__}, not a HeftConfig")
    check(config)
    _refuse_long_names(config)
    return config


def _refuse_long_names(config: HeftConfig) -> None:
    """Refuse names of files and folders that are too long for every usual file system."""
    given = {
        "output_dir": config.output_dir,
        "model.id": config.model.id,
        "data.path": config.data.path,
        "data.id": config.data.id,
        "report.forgetting": config.report.forgetting,
        **{f"{kind}.init_from": config.adapter(kind).init_from for kind in kinds()},
    }
    for key, value in given.items():
        longest = max((os.fsencode(part) for part in str(value or "").split("/")), key=len)
        if len(longest) > _LONGEST_NAME:
            raise UserError(
                f"{key}={str(value)[:60]}... has a name of {len(longest)} bytes in it, and file "
                f"systems take {_LONGEST_NAME}; give a shorter one"
            )


def _refuse_unknown(kind: Any, cfg: DictConfig, section: str = "") -> None:
    """Refuse keys that were added to the config (``+lora.rnk=4``) and that nothing declares."""
    known = {
        one.name: one for one in dataclasses.fields(kind) if "omegaconf_ignore" not in one.metadata
    }
    for key in map(str, cfg):
        if key not in known:
            raise UserError(unknown(f"{section}{key}"))
        if is_section(known[key]):
            _refuse_unknown(known[key].type, cfg[key], f"{section}{key}.")
