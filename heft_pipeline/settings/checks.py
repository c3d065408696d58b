"""Turning the config that Hydra composed into checked settings."""

from omegaconf import DictConfig, OmegaConf

from heft_pipeline.declare import check
from heft_pipeline.errors import UserError
from heft_pipeline.settings.schema import HeftConfig


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
    config = OmegaConf.to_object(cfg)
    if not isinstance(config, HeftConfig):
        raise TypeError(f"the composed config is a {type(config).__name__}, not a HeftConfig")
    check(config)
    return config
