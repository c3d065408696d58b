"""The command line: compose the settings, plan, launch, report.

Hydra composes; ``launch.run_sweep`` does the rest, for one run or for a sweep.
"""

import errno
import os
import sys
import traceback

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from heft_pipeline.errors import UserError
from heft_pipeline.settings.schema import config_dir, register

_CANNOT_WRITE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENOSPC, errno.EEXIST)


def run(cfg: DictConfig) -> float:
    """Hydra's task function: execute one run.

    Args:
        cfg: The composed config.

    Returns:
        The run's accuracy.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from launch.run_sweep import run_point

    try:
        return run_point(cfg)
    except UserError as error:
        if HydraConfig.get().mode == RunMode.RUN:
            raise _PastHydra(error) from error
        raise


class _PastHydra(BaseException):
    """Carries an error past Hydra, which would print a heading and the overrides above it."""

    def __init__(self, error: UserError) -> None:
        super().__init__(str(error))
        self.error = error


def main() -> None:
    """Run Hydra. An error that the user can fix becomes one message and exit status 1."""
    register()
    # With it set, Hydra lets exceptions through, so that all are shown below in the same way.
    asked = os.environ.get("HYDRA_FULL_ERROR", "0")
    show_traceback = asked == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"
    # No data loader is forked, and tokenizers would warn about any fork.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    entry = hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="config")
    try:
        entry(run)()
    except (_PastHydra, UserError, HydraException, OmegaConfBaseException) as error:
        _fail(explain(error), show_traceback)
    except OSError as error:
        if error.errno not in _CANNOT_WRITE:
            raise
        _fail(
            f"{error.filename} cannot be written ({error.strerror}); choose another place with "
            "output_dir=DIR",
            show_traceback,
        )
    finally:
        os.environ["HYDRA_FULL_ERROR"] = asked


def _fail(message: str, show_traceback: bool) -> None:
    if show_traceback:
        traceback.print_exc()
    print(f"Error: {message}", file=sys.stderr)
    sys.exit(1)


def explain(error: BaseException) -> str:
    """The message of an error, with its cause where that says more.

    Args:
        error: The error.

    Returns:
        Its text; below a Hydra error, the text of OmegaConf's, which names the key.
    """
    texts = [str(error)]
    cause = error.__cause__
    if isinstance(error, HydraException) and isinstance(cause, OmegaConfBaseException):
        texts.append(str(cause))
    return "\n".join(text.strip() for text in texts)


if __name__ == "__main__":
    main()
