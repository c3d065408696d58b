"""Which part of a written answer counts, and which answers are the same."""

import random
from decimal import Decimal

import pytest

from heft_pipeline.scoring.extraction import Extraction
from heft_pipeline.scoring.written import extracted, matches

GSM8K = "#### *(-?[0-9.,]+)"


@pytest.mark.parametrize(
    ("text", "pattern", "first", "last"),
    [
        (" so it is 5 \n", None, "so it is 5", "so it is 5"),
        (" \n", None, None, None),
        ("2 + 3 = 5\n#### 5", GSM8K, "5", "5"),
        ("#### -1,200\nNo: #### 7.", GSM8K, "-1,200", "7."),
        ("It is 5.", GSM8K, None, None),
        ("3 apples, 4 pears", "[0-9]+ [a-z]+", "3 apples", "4 pears"),
        ("a: b: c", "([a-z]):( [0-9])?", "a", "b"),
        ("one\ntwo", ".*", "one", "two"),  # .* also matches the empty end of each line
        ("x=, x=7, x= ", "x=([^,]*)", "7", "7"),
        ("no", "(yes)?|no", None, None),
    ],
)
def test_the_part_that_counts(
    text: str, pattern: str | None, first: str | None, last: str | None
) -> None:
    assert extracted(text, pattern, "first") == first
    assert extracted(text, pattern, "last") == last


@pytest.mark.parametrize("normalize", ["exact", "squad"])
@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("1,000", "1000.0", True),
        ("$1000", "1,000.", True),
        ("1,234,567.50", "1234567.5", True),
        ("+5", " 5 ", True),
        ("\N{MINUS SIGN}3", "-3.0", True),
        ("-$3", "$-3", True),
        ("-3", "3", False),
        ("007", "7", True),
        (".5", "0.50", True),
        ("72,", "72", True),
        ("0.1", "0.10000000000000000000000001", False),
        ("-0", "0", True),
        ("1.5", "15", False),
        ("50%", "50", True),
        ("50 %", "50%", True),
        ("50%", "0.5", False),
        ("$5", "5%", False),
        ("5 €", "€5", True),
        ("12", "1.2", False),
    ],
)
def test_numbers_are_compared_as_numbers_only(
    one: str, other: str, same: bool, normalize: str
) -> None:
    assert matches(one, [other], normalize) is same
    assert matches(other, [one], normalize) is same


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1e400", "inf"),
        ("1e400", "2e400"),
        ("1e3", "1000"),
        ("nan", "NaN "),
        ("infinity", "Infinity"),
        ("1/2", "0.5"),
        ("1/2", "2/4"),
        ("2020-01-02", "2017"),
        ("1,2,3", "123"),
        ("1,23", "123"),
        ("0,500", "500"),
        ("12,3456", "123456"),
        ("1_000", "1000"),
        ("1.2.3", "1.23"),
        ("--5", "5"),
        ("-+5", "-5"),
        ("$5%", "5"),
        ("\N{ARABIC-INDIC DIGIT FIVE}", "5"),
        ("five", "5"),
        ("5 apples", "5"),
        ("", "0"),
        (".", "0"),
    ],
)
def test_what_is_no_number_is_text(one: str, other: str) -> None:
    assert not matches(one, [other], "exact")
    assert not matches(other, [one], "exact")
    assert matches(one, [one], "exact")


def test_text_is_compared_but_for_white_space_or_as_squad_does() -> None:
    assert matches(" New\n York ", ["Boston", "New York"], "exact")
    assert not matches("new york", ["New York"], "exact")
    assert matches("The new-york,", ["NewYork"], "squad")
    assert matches("a cat and an owl", ["Cat and the owl!"], "squad")
    assert not matches("theatre", ["atre"], "squad")
    assert not matches("the", ["a"], "squad"), "nothing remains that could be equal"
    assert matches("A", ["A"], "squad")
    assert not matches(None, ["", "None"], "squad")
    assert not matches("x", [], "squad")


def test_however_a_number_is_written_it_is_the_same_number() -> None:
    random.seed(0)
    for _ in range(500):
        value = Decimal(random.randint(-(10**9), 10**9)).scaleb(-random.randint(0, 4))
        sign, size = "-" if value < 0 else "", abs(value)
        written = [f"{value:f}", f"{value:,f}", f"{value:f}".replace("-", "\N{MINUS SIGN}"),
                   f"{sign}${size:,f}", f" {value:f}%", f"{sign}00{size:f}"]  # fmt: skip
        written += [f"{value:f}."] + ([f"+{value:,f}"] if value >= 0 else [])
        one, other = random.sample(written, 2)
        same = ("$" in one and "%" in other) or ("%" in one and "$" in other)
        assert matches(one, [other], "exact") is not same, (one, other)
        assert not matches(one, [f"{value + 1:f}", f"{value * 10 + 1:f}"], "squad"), one


def test_equality_goes_both_ways_and_squad_accepts_what_exact_does() -> None:
    random.seed(1)
    parts = ["a", "The", " ", "5", ",", ".", "-", "$", "%", "000", "x", "/", "e", "\n"]
    for _ in range(3000):
        one, other = ("".join(random.choices(parts, k=random.randint(1, 4))) for _ in range(2))
        exact, squad = (matches(one, [other], how) for how in ("exact", "squad"))
        assert exact == matches(other, [one], "exact"), (one, other)
        assert squad == matches(other, [one], "squad"), (one, other)
        assert squad or not exact, (one, other)
        assert matches(one, [other, one], "exact")
    assert matches("9" * 100_000, ["9" * 100_000 + ".0"], "exact")


def test_accepted_texts_are_read_as_answers_are() -> None:
    how = Extraction(GSM8K, "last", "exact")
    solution = "He has 3 * 400 = 1200.\n#### 1,200"
    assert how.accepts(how.of("#### 5 no, #### 1200."), [solution])
    assert not how.accepts(how.of("It is 1200."), [solution])
    assert how.accepts(how.of("#### 7"), ["7"]), "a reference without the mark stands as it is"
