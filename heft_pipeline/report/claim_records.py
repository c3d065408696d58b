"""``claims.json`` and the data of the figure of effects: one record for each claim."""

import math
from collections.abc import Sequence
from typing import Any

from heft_pipeline.report.over_tasks import SectionOverTasks
from heft_pipeline.report.sections import Section
from heft_pipeline.report.sentences import statement
from heft_pipeline.report.verdicts import Verdict


def claim_records(
    verdicts: Sequence[Verdict], section: Section, pointwise: bool
) -> list[dict[str, Any]]:
    """Describe verdicts for machines.

    Args:
        verdicts: The verdicts of a section.
        section: The section.
        pointwise: Whether to add each claim's interval as the only claim.

    Returns:
        For each verdict ``claim``, ``verdict``, ``difference`` (a share of accuracy, or nats),
        ``low`` and ``high`` (of the interval that the verdict is read from), ``p`` (adjusted for
        all claims, and below 0.05 exactly where the interval decides the claim), ``n_seeds``,
        ``n_examples``, ``components`` (variance components; ``seeds`` is null with one seed),
        ``words``, and further details, which over tasks include the names of the ``tasks``. What
        was not measured is null, and so is an infinite end.
    """
    return [_record(verdict, section, pointwise) for verdict in verdicts]


def _record(verdict: Verdict, section: Section, pointwise: bool) -> dict[str, Any]:
    found, claim = verdict.comparison, verdict.claim
    record: dict[str, Any] = {"claim": verdict.what, "verdict": verdict.verdict}
    measured = dict.fromkeys(
        (
            "difference", "low", "high", "p", "n_seeds", "n_examples", "components", "words",
            "n_clusters", "speaks_of", "sign_flip_p", "wins", "losses", "needed_seeds",
            "needed_examples",
        )
    )  # fmt: skip
    if found is not None:
        (low, high), parts = verdict.interval, found.components
        needed_seeds, needed_examples = verdict.needed
        measured |= {
            "difference": found.difference,
            "low": low if math.isfinite(low) else None,
            "high": high if math.isfinite(high) else None,
            "p": verdict.adjusted,
            "n_seeds": len(found.seeds),
            "n_examples": found.examples,
            "components": {
                "seeds": parts.of_seeds,
                "examples": parts.of_examples,
                "rest": parts.of_rest,
            },
            "n_clusters": found.clusters,
            "speaks_of": found.scope,
            "sign_flip_p": found.sign_flip(claim.boundaries),
            "wins": found.wins,
            "losses": found.losses,
            "needed_seeds": needed_seeds,
            "needed_examples": needed_examples,
        }
        if pointwise:
            least, most = verdict.pointwise
            measured |= {"pointwise_low": least, "pointwise_high": most}
    measured["words"] = f"{verdict.what}: {statement(verdict)}"
    details = {
        "metric": claim.metric,
        "relation": claim.relation,
        "margin": abs(claim.boundaries[0]),
        "section": section.title,
    }
    if isinstance(section, SectionOverTasks):
        details["tasks"] = list(section.tasks)
    return record | measured | details
