import pytest

from heft_pipeline.errors import UserError
from heft_pipeline.evidence.claims import Claim, Side, parse_claim

HEFT, LORA = Side("heft", (3,), None), Side("lora", (20,), None)


@pytest.mark.parametrize(
    ("text", "claim"),
    [
        ("heft@3 > lora@20", Claim(HEFT, LORA)),
        ("lora@20<heft@3", Claim(HEFT, LORA)),
        (" heft@2+1 r8 > reft@3  r16 ", Claim(Side("heft", (2, 1), 8), Side("reft", (3,), 16))),
        ("reft+lora@3 > base", Claim(Side("reft+lora", (3,), None), Side("base", (), None))),
        ("lora@3 > majority", Claim(Side("lora", (3,), None), Side("majority", (), None))),
        ("heft@3 >= lora@20 - 0.5", Claim(HEFT, LORA, ">=", 0.5)),
        ("heft@3>=lora@20 -0.5", Claim(HEFT, LORA, ">=", 0.5)),
        ("heft@3 >= lora@20 \N{MINUS SIGN} 0.5", Claim(HEFT, LORA, ">=", 0.5)),
        ("lora@20 <= heft@3 + 2", Claim(HEFT, LORA, ">=", 2.0)),
        ("heft@3 = lora@20 +- 1.25", Claim(HEFT, LORA, "=", 1.25)),
        ("heft@3 = lora@20 +/- 1", Claim(HEFT, LORA, "=", 1.0)),
        ("heft@3 = lora@20 ± 1", Claim(HEFT, LORA, "=", 1.0)),
        ("heft@3 > lora@20 by logprob", Claim(HEFT, LORA, ">", 0.0, "logprob")),
        ("heft@3 > lora@20 by accuracy", Claim(HEFT, LORA)),
        ("heft@3 = lora@20 +- 0.01 by logprob", Claim(HEFT, LORA, "=", 0.01, "logprob")),
        ("heft@3 >= lora@20 - 0.00001 by logprob", Claim(HEFT, LORA, ">=", 1e-5, "logprob")),
        ("heft@3 >= lora@20 - 1.2345678", Claim(HEFT, LORA, ">=", 1.2345678)),
    ],
)
def test_a_claim_is_read_and_written(text: str, claim: Claim) -> None:
    assert parse_claim(text) == claim
    assert parse_claim(str(claim)) == claim


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", ""),
        ("heft@3", ""),
        ("a@1 > b@1 > c@1", ""),
        ("heft@3 == lora@3", ""),
        ("heft > lora@3", "heft needs @EPOCHS"),
        ("heft@x > lora@3", "heft@x"),
        ("base@3 > lora@3", "base takes no @EPOCHS"),
        ("heft@3 > lora@3 - 0.5", "> takes no margin"),
        ("heft@3 >= lora@3", ">= needs - and a margin above 0"),
        ("heft@3 >= lora@3 + 0.5", ">= needs - and a margin above 0"),
        ("heft@3 <= lora@3 - 0.5", "<= needs + and a margin above 0"),
        ("heft@3 = lora@3", "= needs +- and a margin above 0"),
        ("heft@3 = lora@3 + 1", "= needs +- and a margin above 0"),
        ("heft@3 = lora@3 +- 0", "= needs +- and a margin above 0"),
        ("heft@3 > lora@3 by loss", "by loss is neither by accuracy nor by logprob"),
        ("heft@3 > majority by logprob", "a constant answer has no log-probability"),
    ],
)
def test_what_is_no_claim_is_refused_with_the_reason_and_the_form(text: str, why: str) -> None:
    with pytest.raises(UserError, match=r"report\.claims: .*METHOD@EPOCHS > METHOD@EPOCHS") as info:
        parse_claim(text)
    assert why in str(info.value)


def test_a_margin_is_in_percentage_points_of_accuracy_or_in_nats() -> None:
    assert Claim(HEFT, LORA).boundaries == (0.0,)
    assert Claim(HEFT, LORA, ">=", 0.5).boundaries == (-0.005,)
    assert Claim(HEFT, LORA, "=", 1.0).boundaries == (-0.01, 0.01)
    assert Claim(HEFT, LORA, "=", 0.1, "logprob").boundaries == (-0.1, 0.1)


@pytest.mark.parametrize(
    ("claim", "low", "high", "verdict"),
    [
        (Claim(HEFT, LORA), 0.001, 0.1, True),
        (Claim(HEFT, LORA), -0.1, -0.001, False),
        (Claim(HEFT, LORA), -0.001, 0.1, None),
        (Claim(HEFT, LORA), 0.0, 0.1, None),  # an interval that touches 0 does not leave it out
        (Claim(HEFT, LORA), -0.1, 0.0, None),
        (Claim(HEFT, LORA, ">=", 1.0), -0.009, 0.1, True),
        (Claim(HEFT, LORA, ">=", 1.0), -0.011, 0.1, None),
        (Claim(HEFT, LORA, ">=", 1.0), -0.02, -0.011, False),
        (Claim(HEFT, LORA, "=", 1.0), -0.009, 0.009, True),
        (Claim(HEFT, LORA, "=", 1.0), 0.001, 0.009, True),  # different, and yet equivalent
        (Claim(HEFT, LORA, "=", 1.0), -0.009, 0.011, None),
        (Claim(HEFT, LORA, "=", 1.0), -0.011, 0.011, None),
        (Claim(HEFT, LORA, "=", 1.0), 0.011, 0.02, False),
        (Claim(HEFT, LORA, "=", 1.0), -0.02, -0.011, False),
    ],
)
def test_a_claim_is_decided_by_an_interval_that_is_all_on_one_side(
    claim: Claim, low: float, high: float, verdict: bool | None
) -> None:
    assert claim.holds(low, high) is verdict
