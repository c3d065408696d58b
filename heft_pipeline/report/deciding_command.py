"""The command that would decide what a sweep leaves open: the sweep's own, with more seeds."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from heft_pipeline.evidence.comparison import SIGN_FLIP_SEEDS
from heft_pipeline.report.verdicts import ONE_RUN, OPEN, Verdict

#: To ask for more seeds than this is no advice.
_MOST_SEEDS = 30
#: More seeds in a row are written as a range.
_MOST_LISTED = 8


@dataclass(frozen=True)
class Advice:
    """What to run next.

    Attributes:
        why: What the command is for, in a sentence.
        command: The command.
    """

    why: str
    command: str


def advice(verdicts: Sequence[Verdict], command: str) -> Advice | None:
    """Find out how many seeds would decide claims that are open.

    Args:
        verdicts: The verdicts of all sections.
        command: The sweep's command.

    Returns:
        The command with as many seeds as the open claims need that up to 30 seeds would decide;
        None where there are none.
    """
    tested = [(v, v.comparison) for v in verdicts if v.comparison is not None]
    seeds = sorted({seed for _, found in tested for seed in found.seeds})
    if any(v.verdict == ONE_RUN and len(found.seeds) == 1 for v, found in tested):
        wanted = SIGN_FLIP_SEEDS
        why = (
            "One seed decides nothing about a method; six are the fewest that do without a "
            "model of the seeds:"
        )
    else:
        needed = [v.needed[0] for v, _ in tested if v.verdict == OPEN]
        known = [number for number in needed if number is not None and number <= _MOST_SEEDS]
        if not known or max(known) <= len(seeds):
            return None
        wanted = max(known)
        which = "the claim" if len(known) == 1 else f"{len(known)} claims"
        why = (
            f"If differences are as large as they look, {wanted} seeds would decide {which} that "
            "this leaves open (with 80 % power):"
        )
    more = [seed for seed in range(wanted + len(seeds)) if seed not in seeds]
    return Advice(why, _with_seeds(command, [*seeds, *more][:wanted]))


def _with_seeds(command: str, seeds: Sequence[int]) -> str:
    parts = [part for part in shlex.split(command) if not part.startswith("seed=")]
    if not {"-m", "--multirun"} & {*parts[3:]}:
        parts.insert(3, "-m")  # behind python -m heft_pipeline
    first, last = min(seeds), max(seeds)
    each = ",".join(map(str, sorted(seeds)))
    in_a_row = len(seeds) > _MOST_LISTED and last - first + 1 == len(seeds)
    return shlex.join([*parts, f"seed=range({first},{last + 1})" if in_a_row else f"seed={each}"])
