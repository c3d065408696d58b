import pytest

from heft_pipeline.errors import UserError
from heft_pipeline.evidence.claims import Claim, Side, parse_claim


@pytest.mark.parametrize(
    ("text", "claim"),
    [
        ("heft@3 > lora@20", Claim(Side("heft", (3,), None), Side("lora", (20,), None))),
        ("lora@20<heft@3", Claim(Side("heft", (3,), None), Side("lora", (20,), None))),
        (" heft@2+1 r8 > reft@3  r16 ", Claim(Side("heft", (2, 1), 8), Side("reft", (3,), 16))),
        ("reft+lora@3 > base", Claim(Side("reft+lora", (3,), None), Side("base", (), None))),
        ("lora@3 > majority", Claim(Side("lora", (3,), None), Side("majority", (), None))),
    ],
)
def test_a_claim_is_read(text: str, claim: Claim) -> None:
    assert parse_claim(text) == claim
    assert parse_claim(str(claim)) == claim


@pytest.mark.parametrize(
    "text", ["", "heft@3", "heft > lora@3", "heft@x > lora@3", "base@3 > lora@3", "a@1 > b@1 > c@1"]
)
def test_what_is_no_claim_is_refused_with_the_form(text: str) -> None:
    with pytest.raises(UserError, match=r"report\.claims: .*METHOD@EPOCHS > METHOD@EPOCHS"):
        parse_claim(text)
