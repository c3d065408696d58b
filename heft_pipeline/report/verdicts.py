"""What a section's runs say about each claim."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from heft_pipeline.evidence.claims import LOGPROB, Claim, Side
from heft_pipeline.evidence.comparison import ALPHA, EXAMPLES, Comparison, compare
from heft_pipeline.evidence.simultaneous import Simultaneous, simultaneous
from heft_pipeline.report.records import RunRecord
from heft_pipeline.report.sections import Section, Setting
from heft_pipeline.settings.schema import METHOD_NAMES

SUPPORTED, CONTRADICTED, OPEN = "supported", "contradicted", "not decided by this data"
ONE_RUN = "this run only"
MISSING, UNFINISHED = "not in this sweep", "not complete yet"
UNMEASURED = "not measured"


@dataclass(frozen=True)
class Verdict:
    """A claim and what the data says about it.

    Attributes:
        claim: The claim.
        what: The claim as people read it; where it fits several pairs of settings, with what
            tells this pair from the others.
        verdict: ``supported``, ``contradicted``, ``not decided by this data``, ``this run only``
            (nothing is said of other seeds), ``not in this sweep``, ``not complete yet`` or ``not
            measured``.
        comparison: The comparison; None where the sweep lacks what the claim names.
        interval: The difference's interval, which holds for all claims of the report at once with
            a probability of 95 %. The verdict is read from it.
        pointwise: The 95 % interval that the difference would have as the only claim.
        holds: Whether the interval agrees with the claim (True), disagrees (False), or leaves it
            open (None).
        adjusted: The p-value over all claims of the report; below 0.05 where ``holds`` is not None.
        level: One minus the coverage of ``interval`` by itself.
        why: What is missing, and how to add it; empty where nothing is.
        budgets: The training operations of both sides in TFLOP; 0 for what is not trained,
            NaN where it is not known.
        pair: The compared settings; None for a constant answer or a missing setting.
    """

    claim: Claim
    what: str
    verdict: str
    comparison: Comparison | None = None
    interval: tuple[float, float] = (-1.0, 1.0)
    pointwise: tuple[float, float] = (-1.0, 1.0)
    holds: bool | None = None
    adjusted: float = 1.0
    level: float = ALPHA
    why: str = ""
    budgets: tuple[float, float] = (0.0, 0.0)
    pair: tuple[Setting | None, Setting | None] = (None, None)

    @property
    def gap(self) -> float:
        """How far the difference is from where the claim would turn."""
        found = self.comparison
        assert found is not None
        return min(abs(found.difference - boundary) for boundary in self.claim.boundaries)

    @property
    def needed(self) -> tuple[int | None, int | None]:
        """How many seeds, or how many examples, would show a difference of this size."""
        assert self.comparison is not None
        return self.comparison.needed(self.gap, self.level)


def judge(
    claims: Sequence[Sequence[Claim]], section_list: Sequence[Section], scope: str
) -> list[list[Verdict]]:
    """Test claims on each section.

    A claim that fits several pairs of settings (of several ranks or learning rates) is tested on
    each pair whose sides agree in them, and each test counts in the correction.

    Args:
        claims: The claims for each section.
        section_list: The sections.
        scope: What verdicts speak of: other ``seeds``, other ``examples`` or ``both``.

    Returns:
        A list of verdicts for each section. The intervals hold for all of them together.
    """
    found = [
        [v for claim in own for v in _judge(claim, section, scope)]
        for own, section in zip(claims, section_list, strict=True)
    ]
    family = simultaneous([[v.comparison for v in verdicts if v.comparison] for verdicts in found])
    return [
        [_decide(v, v.comparison, family) if v.comparison else v for v in verdicts]
        for verdicts in found
    ]


def _decide(verdict: Verdict, found: Comparison, family: Simultaneous) -> Verdict:
    low, high = found.estimate.interval(family.alpha)
    holds = verdict.claim.holds(low, high)
    word = {True: SUPPORTED, False: CONTRADICTED, None: OPEN}[holds]
    if found.scope == EXAMPLES and any(one is not None and one.epochs for one in verdict.pair):
        word = ONE_RUN
    return replace(
        verdict,
        verdict=word,
        interval=(low, high),
        pointwise=found.estimate.interval(ALPHA),
        holds=holds,
        adjusted=family.adjusted(found.p_value(verdict.claim.boundaries)),
        level=family.alpha,
    )


def _judge(claim: Claim, section: Section, scope: str) -> list[Verdict]:
    sides = [claim.first, claim.second]
    found = [_candidates(side, section) for side in sides]
    missing = [side for side, candidates in zip(sides, found, strict=True) if not candidates]
    if missing:
        return [_missing(claim, missing, section)]
    pairs = [(one, two) for one in found[0] for two in found[1] if _agree(one, two, claim)]
    if not pairs and len(found[0]) == len(found[1]) == 1:
        pairs = [(found[0][0], found[1][0])]
    if not pairs:
        why = "no two of the settings that it fits agree in rank and configuration; name a rank"
        return [Verdict(claim, str(claim), MISSING, why=why)]
    return [_compared(claim, pair, section, scope, several=len(pairs) > 1) for pair in pairs]


def _candidates(side: Side, section: Section) -> list[Setting | None]:
    """The settings that a side names; ``[None]`` for the constant answer."""
    if side.method == "majority":
        return [None] if section.gold else []
    if side.method == "base":
        return [section.base] if section.base else []
    return [s for s in section.settings if _fits(side, s.method, s.epochs, s.ranks)]


def _fits(side: Side, method: str, epochs: tuple[int, ...], ranks: tuple[int, ...]) -> bool:
    wanted = side.epochs * len(epochs) if len(side.epochs) == 1 else side.epochs
    return method == side.method and epochs == wanted and (side.rank is None or side.rank in ranks)


def _agree(one: Setting | None, two: Setting | None, claim: Claim) -> bool:
    """Whether two settings differ in nothing but what the claim is about."""
    if one is None or two is None or not one.ranks or not two.ranks:
        return True
    ranks_are_named = claim.first.rank is not None or claim.second.rank is not None
    shared = one.variant.keys() & two.variant.keys()
    return (ranks_are_named or bool({*one.ranks} & {*two.ranks})) and all(
        one.variant[key] == two.variant[key] for key in shared
    )


def _missing(claim: Claim, missing: Sequence[Side], section: Section) -> Verdict:
    where = "" if section.strata is None else " on all tasks"
    text = f"no complete run of {' or '.join(map(str, missing))}{where}"
    unfinished = sorted({f"{r.method} {r.status}" for r in section.open if _named(r, missing)})
    if unfinished:
        return Verdict(claim, str(claim), UNFINISHED, why=f"{text}: {', '.join(unfinished)}")
    if all(len(side.epochs) == 1 for side in missing):
        methods = ",".join(dict.fromkeys(side.method for side in missing))
        epochs = ",".join(dict.fromkeys(str(side.epochs[0]) for side in missing))
        known = all(side.method in METHOD_NAMES.values() for side in missing)
        what = f"method={methods}" if known else "method.stages=[...]"
        text += f"; {what} epochs={epochs} would add it"
    return Verdict(claim, str(claim), MISSING, why=text)


def _named(run: RunRecord, sides: Sequence[Side]) -> bool:
    return any(_fits(side, run.method, run.stage_epochs, run.ranks) for side in sides)


def _compared(
    claim: Claim,
    pair: tuple[Setting | None, Setting | None],
    section: Section,
    scope: str,
    several: bool,
) -> Verdict:
    details = ""
    if several:
        named = [setting for setting in pair if setting is not None]
        ranks = "/".join(dict.fromkeys(str(r) for s in named for r in s.ranks))
        variants = {k: v for s in named for k, v in s.variant.items()}
        details = " ".join(
            [f"r{ranks}" if ranks else "", *(f"{k}={v}" for k, v in variants.items())]
        )
    verdict = Verdict(claim, f"{claim} {details}".strip(), UNMEASURED, pair=pair)
    by_logprob = claim.metric == LOGPROB
    if by_logprob and any(setting is None or setting.logprob is None for setting in pair):
        why = "a predictions.parquet lacks the choices' log-probabilities, or some are infinite"
        return replace(verdict, why=why)
    seeds, first, second = _paired(pair, section, by_logprob)
    return replace(
        verdict,
        verdict=OPEN,
        comparison=compare(
            first - second,
            seeds=seeds,
            clusters=section.clusters,
            strata=section.strata,
            scope=scope,
            accuracy=not by_logprob,
        ),
        budgets=(_operations(pair[0]), _operations(pair[1])),
    )


def _operations(setting: Setting | None) -> float:
    return setting.costs["train_tflop"] if setting else 0.0


def _paired(
    pair: tuple[Setting | None, Setting | None], section: Section, by_logprob: bool
) -> tuple[list[int], NDArray[np.float64], NDArray[np.float64]]:
    """The seeds, and both sides' values, paired by seed: equal ones, or without any, in order.

    A side that is not trained has no seeds; it is repeated for each seed of the other side.
    """
    trained = [setting for setting in pair if setting is not None and setting.epochs]
    common = sorted(set.intersection(*({*setting.seeds} for setting in trained))) if trained else []
    count = min((len(setting.seeds) for setting in trained), default=1)
    seeds = common or list(range(count))

    def values(setting: Setting | None) -> NDArray[np.float64]:
        if setting is None:
            return np.repeat(section.always.astype(float), len(seeds), axis=0)
        by_choice = setting.logprob if by_logprob else None
        known = setting.right.astype(float) if by_choice is None else by_choice
        if not setting.epochs:
            return np.repeat(known[:1], len(seeds), axis=0)
        return known[[setting.seeds.index(seed) for seed in seeds] if common else seeds]

    return seeds, values(pair[0]), values(pair[1])
