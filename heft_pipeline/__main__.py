"""The command line: compose the config, make it a plan, execute it, report."""

import os
import sys

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from heft_pipeline.config import config_dir, register
from heft_pipeline.errors import UserError


def run(cfg: DictConfig) -> float:
    """Hydra's task function: execute one run.

    Args:
        cfg: The composed config.

    Returns:
        The run's accuracy.
    """
    from launch.sweep import run_point

    return run_point(cfg)


def main() -> None:
    """Run Hydra; errors that the user can mend are one message and exit status 1."""
    register()
    # Set, Hydra lets exceptions through, so that they are shown here and in one way.
    show_traceback = os.environ.get("HYDRA_FULL_ERROR", "0") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"
    # Forked data loaders are not used, and tokenizers warn about forks of any kind.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    entry = hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="config")
    try:
        entry(run)()
    except (UserError, HydraException, OmegaConfBaseException) as error:
        if show_traceback:
            raise
        print(f"Error: {explain(error)}", file=sys.stderr)
        sys.exit(1)


def explain(error: BaseException) -> str:
    """The one message of an error and what it was caused by.

    Args:
        error: The error.

    Returns:
        Its text, with the text of OmegaConf's error below Hydra's, which names the key.
    """
    texts = [str(error)]
    cause = error.__cause__
    if isinstance(error, HydraException) and isinstance(cause, OmegaConfBaseException):
        texts.append(str(cause))
    return "\n".join(text.strip() for text in texts)


if __name__ == "__main__":
    main()
