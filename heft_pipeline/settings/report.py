"""What the report compares and tests; no setting here can change a stage's result."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from heft_pipeline.declare_settings import Settings, setting
from heft_pipeline.evidence.claims import parse_claim


def _check_claims(_key: str, value: Any) -> None:
    for claim in value or ():
        parse_claim(claim)


@dataclass(frozen=True)
class ReportSettings(Settings):
    """What the report compares."""

    claims: list[str] | None = setting(
        None,
        "what the report tests, e.g. 'heft@3 > lora@20', 'heft@3 = lora@20 +- 1.0', 'heft@3 >= "
        "lora@20 - 0.5 by logprob'; null: each method of several stages against each of one stage "
        "at equal epochs, and the HEFT paper's pairs, as far as the sweep has them",
        rule=_check_claims,
        identity=False,
    )
    scope: str = setting(
        "both",
        "what verdicts and their intervals speak of: other seeds on these examples, other examples "
        "with these seeds, or both",
        choices=("both", "seeds", "examples"),
        identity=False,
    )
    pointwise: bool = setting(
        False,
        "also show the interval that each claim would have if it were the only one",
        identity=False,
    )
    base_model: bool = setting(
        True, "also evaluate the untouched model, once, as a row of the table", identity=False
    )


def report_note(settings: Iterable[ReportSettings]) -> dict[str, Any]:
    """What a sweep notes of its runs' settings for the report.

    Args:
        settings: The runs', at least one; the claims of all are tested, and the last one decides
            the rest.

    Returns:
        JSON-ready data.
    """
    each = list(settings)
    claims = [text for one in each for text in one.claims or ()]
    asked = list(dict.fromkeys(claims)) if any(one.claims is not None for one in each) else None
    return {"claims": asked, "scope": each[-1].scope, "pointwise": each[-1].pointwise}
