"""The command line: compose the settings, plan, launch, report.

Hydra composes; ``launch.run_sweep`` does the rest, for one run or for a sweep.
"""

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from heft_pipeline.command_line.interrupts import STATUS, leave
from heft_pipeline.command_line.run import run_command
from heft_pipeline.command_line.secrets_kept import refuse_secrets_typed
from heft_pipeline.errors import ELSEWHERE, UserError

if TYPE_CHECKING:  # imported by _compose_and_run, where Ctrl-C is one line
    from omegaconf import DictConfig

_KEPT = (
    "Finished stages and the last checkpoints are kept; run the same command to go on from there."
)


def run(cfg: "DictConfig") -> float:
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
    """Run Hydra. An error becomes one message and exit status 1, and Ctrl-C one and 130."""
    status = run_command(_compose_and_run, elsewhere=ELSEWHERE, kept=_KEPT)
    if status:
        sys.exit(status)


def _compose_and_run(arguments: Sequence[str]) -> int:
    refuse_secrets_typed(arguments)
    import hydra

    from heft_pipeline.settings.schema import config_dir, register

    register()
    # With it set, Hydra lets exceptions through, so that all are shown below in the same way.
    asked = os.environ.get("HYDRA_FULL_ERROR", "0")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    # No data loader is forked, and tokenizers would warn about any fork.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    entry = hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="config")
    try:
        entry(run)()
    except _PastHydra as carried:
        raise carried.error from carried
    finally:
        os.environ["HYDRA_FULL_ERROR"] = asked
    return 0


if __name__ == "__main__":
    try:
        main()
    except SystemExit as ended:
        if ended.code == STATUS:
            # Everything has been said and written. Python's own clean-up would meet threads of
            # compiled libraries that were cut off, and these can crash it.
            sys.stderr.flush()
            leave(STATUS, "")
        raise
