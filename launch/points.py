"""Jobs from ``hydra.sweeper.points``: particular rows of a table instead of a full product."""

import math
import shlex
from collections.abc import Collection, Iterable, Sequence

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, RangeSweep
from hydra.errors import HydraException

from heft_pipeline.errors import UserError

_KEY = "hydra.sweeper.points"
_MOST_RUNS = 1_000_000


def jobs_at(
    points: Iterable[str],
    others: Sequence[Override],
    parser: OverridesParser,
    params: Collection[str] = (),
) -> list[list[str]]:
    """The jobs of a sweep: every point, multiplied by whatever else is swept over.

    Args:
        points: Each a list of overrides as on the command line, separated by spaces and quoted as
            in a shell. A point may itself sweep over several values of a key.
        others: All other overrides: those of ``hydra.sweeper.params`` and of the command line.
        parser: Parses the points.
        params: The keys of ``hydra.sweeper.params``.

    Returns:
        The overrides of each job, the first point's jobs first.

    Raises:
        UserError: A point cannot be read, or something else sets one of its keys.
    """
    rest, jobs = _product(others), []
    for point in points:
        overrides = _parsed(point, parser)
        _refuse_others(point, overrides, others, params)
        jobs += [[*own, *given] for own in _product(overrides) for given in rest]
    return jobs


def refuse_too_many(overrides: Iterable[Override]) -> None:
    """Refuse a sweep of more runs than anybody means, before a list of them fills the memory.

    Args:
        overrides: The sweep's overrides.

    Raises:
        UserError: The message has the number.
    """
    count, largest = 1, ""
    for override in overrides:
        value = override.value()
        if isinstance(value, RangeSweep):
            span = float(value.stop or 0) - float(value.start or 0)
            own = max(0, math.ceil(span / float(value.step))) if value.step else 0
        else:
            own = len(value.list) if isinstance(value, ChoiceSweep) else 1
        count, largest = count * own, override.input_line or "" if own > 1 else largest
    if count > _MOST_RUNS:
        raise UserError(
            f"{largest}: the sweep would have {count:.0f} runs, and {_MOST_RUNS:,} are the most; "
            "sweep over fewer values"
        )


def _product(overrides: Sequence[Override]) -> list[list[str]]:
    (jobs,) = BasicSweeper.split_arguments(list(overrides), None)
    return jobs


def _parsed(point: str, parser: OverridesParser) -> list[Override]:
    try:
        overrides = [_override(text, point, parser) for text in shlex.split(point)]
    except ValueError as error:
        raise UserError(f"{_KEY}: {point!r} cannot be read ({error})") from error
    if not overrides:
        raise UserError(f"{_KEY} has an empty point; write e.g. {_KEY}=['method=reft epochs=20']")
    keys = [_name(override) for override in overrides]
    for number, key in enumerate(keys):
        if key in keys[:number]:
            raise UserError(f"{_KEY}: {point!r} sets {key} twice; give both values as {key}=A,B")
        if overrides[number].is_hydra_override():
            raise UserError(
                f"{_KEY}: {point!r} sets {key}, which holds for a whole sweep; set it on the "
                "command line"
            )
    return overrides


def _refuse_others(
    point: str, own: Sequence[Override], others: Sequence[Override], params: Collection[str]
) -> None:
    """Refuse a key that a point sets and that is set for all points too."""
    for key in {_name(override) for override in own} & {_name(override) for override in others}:
        if key in params:
            where, out = (
                "hydra.sweeper.params",
                f"take it out there with ~hydra.sweeper.params.{key}",
            )
        else:
            where, out = "the command line", "leave it out there"
        raise UserError(
            f"{key} is set by the point {point!r} of {_KEY} and by {where} as well; {out}, or "
            f'give other points with "{_KEY}=[...]"'
        )


def _override(text: str, point: str, parser: OverridesParser) -> Override:
    if "=" not in text and not text.startswith("~"):
        raise UserError(
            f"{_KEY}: {text!r} in {point!r} sets nothing; write KEY=VALUE, separated by spaces, "
            "e.g. 'method=reft epochs=20'"
        )
    try:
        return parser.parse_override(text)
    except HydraException as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{_KEY}: {text!r} in {point!r} cannot be read ({reason})") from error


def _name(override: Override) -> str:
    return (
        f"{override.key_or_group}@{override.package}" if override.package else override.key_or_group
    )
