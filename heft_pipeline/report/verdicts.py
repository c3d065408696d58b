"""What a section's runs say about each claim."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from heft_pipeline.evidence.claims import Claim, Side
from heft_pipeline.evidence.significance import ALPHA, Comparison, Right, compare, holm
from heft_pipeline.report.records import RunRecord
from heft_pipeline.report.sections import Section, Setting
from heft_pipeline.settings.schema import METHOD_NAMES

SUPPORTED, CONTRADICTED, OPEN = "supported", "contradicted", "not decided by this data"
MISSING, UNFINISHED = "not in this sweep", "not complete yet"


@dataclass(frozen=True)
class Verdict:
    """A claim and what the data says about it.

    Attributes:
        claim: The claim.
        what: The claim as people read it; where it fits several pairs of settings, with what
            tells this pair from the others.
        verdict: ``supported``, ``contradicted``, ``not decided by this data``, ``not in this
            sweep`` or ``not complete yet``.
        comparison: The comparison; None where the sweep lacks what the claim names.
        adjusted: Holm's p-value over all claims of the report that could be tested.
        why: What is missing, and how to add it; empty where nothing is.
        budgets: The training operations of both sides in TFLOP; 0 for what is not trained.
        pair: The compared settings; None for a constant answer or a missing setting.
    """

    claim: Claim
    what: str
    verdict: str
    comparison: Comparison | None = None
    adjusted: float | None = None
    why: str = ""
    budgets: tuple[float, float] = (0.0, 0.0)
    pair: tuple[Setting | None, Setting | None] = (None, None)


def judge(claims: Sequence[Claim], section_list: Sequence[Section]) -> list[list[Verdict]]:
    """Test claims on each section.

    A claim that fits several pairs of settings (of several ranks or learning rates) is tested on
    each pair whose sides agree in them, and each test counts in the correction.

    Args:
        claims: The claims.
        section_list: The sections.

    Returns:
        A list of verdicts for each section. The p-values are adjusted for all of them together.
    """
    found = [[v for claim in claims for v in _judge(claim, s)] for s in section_list]
    tested = [v.comparison.p_value for verdicts in found for v in verdicts if v.comparison]
    adjusted = iter(holm(tested))
    return [
        [_decide(v, next(adjusted)) if v.comparison else v for v in verdicts] for verdicts in found
    ]


def _decide(verdict: Verdict, adjusted: float) -> Verdict:
    assert verdict.comparison is not None
    word = OPEN
    if adjusted < ALPHA:
        word = SUPPORTED if verdict.comparison.difference > 0 else CONTRADICTED
    return replace(verdict, verdict=word, adjusted=adjusted)


def _judge(claim: Claim, section: Section) -> list[Verdict]:
    sides = [claim.better, claim.worse]
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
    return [_compared(claim, pair, section, several=len(pairs) > 1) for pair in pairs]


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
    ranks_are_named = claim.better.rank is not None or claim.worse.rank is not None
    shared = one.variant.keys() & two.variant.keys()
    return (ranks_are_named or bool({*one.ranks} & {*two.ranks})) and all(
        one.variant[key] == two.variant[key] for key in shared
    )


def _missing(claim: Claim, missing: Sequence[Side], section: Section) -> Verdict:
    text = f"no complete run of {' or '.join(map(str, missing))}"
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
    claim: Claim, pair: tuple[Setting | None, Setting | None], section: Section, several: bool
) -> Verdict:
    first, second = _paired(pair, section)
    details = ""
    if several:
        named = [setting for setting in pair if setting is not None]
        ranks = "/".join(dict.fromkeys(str(r) for s in named for r in s.ranks))
        variants = {k: v for s in named for k, v in s.variant.items()}
        details = " ".join(
            [f"r{ranks}" if ranks else "", *(f"{k}={v}" for k, v in variants.items())]
        )
    return Verdict(
        claim,
        f"{claim} {details}".strip(),
        OPEN,
        comparison=compare(first, second),
        budgets=tuple(s.costs["train_tflop"] if s else 0.0 for s in pair),  # type: ignore[arg-type]
        pair=pair,
    )


def _paired(pair: tuple[Setting | None, Setting | None], section: Section) -> tuple[Right, Right]:
    """Both sides' right answers, paired by seed: equal seeds, or without any, in their order.

    A side that is not trained has no seeds; it is repeated for each seed of the other side.
    """
    trained = [setting for setting in pair if setting is not None and setting.epochs]
    if len(trained) == 2:
        common = sorted({*trained[0].seeds} & {*trained[1].seeds})
        few = min(len(setting.seeds) for setting in trained)
        rows = [
            [setting.seeds.index(seed) for seed in common] if common else list(range(few))
            for setting in trained
        ]
        return trained[0].right[rows[0]], trained[1].right[rows[1]]
    seeds = len(trained[0].seeds) if trained else 1
    constant = np.array([answer == section.majority[0] for answer in section.gold])[None]
    sides = [constant if setting is None else setting.right for setting in pair]
    return tuple(np.repeat(s, seeds, axis=0) if len(s) < seeds else s for s in sides)  # type: ignore[return-value]
