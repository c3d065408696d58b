"""What a report is asked to show: what its sweeps noted, and what the command line says instead."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from heft_pipeline.evidence.claims import Claim, parse_claim
from heft_pipeline.evidence.comparison import BOTH
from heft_pipeline.store.sweep_folders import Sweep


@dataclass(frozen=True)
class ReportOptions:
    """How a report tests its claims.

    Attributes:
        claims: The claims to test; None for those that fit the runs.
        scope: What verdicts speak of: other ``seeds``, other ``examples`` or ``both``.
        pointwise: Whether to show each claim's interval as the only claim, too.
        cluster_column: The column that dependent examples have in common; empty for none; None
            for what the sweeps noted.
    """

    claims: tuple[Claim, ...] | None = None
    scope: str = BOTH
    pointwise: bool = False
    cluster_column: str | None = None


def noted_options(sweeps: Sequence[Sweep]) -> ReportOptions:
    """The options that sweeps were given.

    Args:
        sweeps: At least one; the claims of all are tested, and the last one decides the rest.

    Returns:
        The options.
    """
    found = ReportOptions()
    for sweep in sweeps:
        plan = sweep.plan()
        noted = plan.get("report", {})
        texts = noted.get("claims", plan.get("claims"))
        if texts is not None:
            claims = (*(found.claims or ()), *map(parse_claim, texts))
            found = replace(found, claims=tuple(dict.fromkeys(claims)))
        found = replace(
            found,
            scope=noted.get("scope", found.scope),
            pointwise=noted.get("pointwise", found.pointwise),
        )
    return found
