"""What the report compares and tests; no setting here can change a stage's result."""

from dataclasses import dataclass
from typing import Any

from heft_pipeline.data.other_text import BUILTIN
from heft_pipeline.declare_settings import Settings, setting
from heft_pipeline.evidence.claims import parse_claim


def _check_claims(_key: str, value: Any) -> None:
    for claim in value:
        parse_claim(claim)


@dataclass(frozen=True)
class ReportSettings(Settings):
    """What the report compares."""

    claims: list[str] = setting(
        [],
        "what the report tests, e.g. 'heft@3 > lora@20'",
        rule=_check_claims,
        identity=False,
    )
    base_model: bool = setting(
        True, "also evaluate the untouched model, once, as a row of the table", identity=False
    )
    forgetting: str = setting(
        BUILTIN,
        "the text, which the task does not touch, whose loss shows what training forgot: builtin "
        "(a small one that ships), a UTF-8 file, or off",
        identity=False,
    )
