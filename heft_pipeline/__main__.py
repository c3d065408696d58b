"""The command line: compose the settings, plan, launch, report.

Hydra composes; ``launch.run_sweep`` does the rest, for one run or for a sweep.
"""

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from heft_pipeline.command_line.environment import check_environment
from heft_pipeline.command_line.interrupts import STATUS, leave
from heft_pipeline.command_line.run import run_command
from heft_pipeline.command_line.secrets_kept import refuse_secrets_typed
from heft_pipeline.errors import ELSEWHERE, UserError
from heft_pipeline.subcommands import refuse_unknown, subcommand

if TYPE_CHECKING:  # imported by compose_and_run, where Ctrl-C is one line
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
    except Exception as error:
        if HydraConfig.get().mode == RunMode.RUN:
            raise _PastHydra(error) from error
        raise


class _PastHydra(BaseException):
    """Carries an error past Hydra, which would print a heading and the overrides above it."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


def main() -> None:
    """Run a subcommand, or Hydra for runs and sweeps; see :mod:`heft_pipeline.subcommands`.

    An error becomes one message and exit status 1, and Ctrl-C one and 130.
    """
    if (status := subcommand(sys.argv)) is None:
        status = run_command(compose_and_run, elsewhere=ELSEWHERE, kept=_KEPT)
    if status:
        sys.exit(status)


def compose_and_run(arguments: Sequence[str]) -> int:
    """Compose the settings of a run or a sweep, and run it.

    Args:
        arguments: The process's own, which Hydra reads from ``sys.argv``.

    Returns:
        The exit status, which is 0.

    Raises:
        UserError: A setting cannot be used, or a stage failed.
    """
    refuse_secrets_typed(arguments)
    import hydra

    from heft_pipeline.settings.refused_overrides import explained
    from heft_pipeline.settings.schema import config_dir, register

    check_environment()
    _refuse_unknown_flags(arguments)
    register()
    # With it set, Hydra lets exceptions through, so that all are shown below in the same way.
    asked = os.environ.get("HYDRA_FULL_ERROR", "0")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    # No data loader is forked, and tokenizers would warn about any fork.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    entry = hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="config")
    try:
        entry(run)()
    except (_PastHydra, Exception) as raised:
        error = raised.error if isinstance(raised, _PastHydra) else raised
        said = explained(error, arguments)
        raise (UserError(said) if said else error) from (error if said else error.__cause__)
    finally:
        os.environ["HYDRA_FULL_ERROR"] = asked
    return 0


def _refuse_unknown_flags(arguments: Sequence[str]) -> None:
    """Refuse flags in one line; Hydra would print its usage, and end with another exit status."""
    from hydra._internal.utils import get_args_parser

    def refuse(message: str) -> NoReturn:
        raise UserError(
            f"{message}; write flags first (--hydra-help shows them), then settings as KEY=VALUE"
        )

    refuse_unknown(arguments)
    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    parser.parse_args(list(arguments))


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
