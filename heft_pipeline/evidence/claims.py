"""Claims that a report tests: how two settings compare, as text."""

import re
from dataclasses import dataclass

import numpy as np

from heft_pipeline.errors import UserError

UNTRAINED = ("base", "majority")
#: What a claim compares: the share of right answers, or the mean log-probability of the right one.
ACCURACY, LOGPROB = "accuracy", "logprob"
_SIDE = re.compile(
    r"(?P<method>[a-z_]+(?:\+[a-z_]+)*)(?:@(?P<epochs>\d+(?:\+\d+)*))?(?:\s+r(?P<rank>\d+))?"
)
_MARGIN = re.compile(r"(?P<side>.*?\S)\s+(?P<sign>\+-|\+/-|±|\+|-)\s*(?P<size>\d+(?:\.\d+)?)")
_BY = re.compile(r"(?P<claim>.*\S)\s+by\s+(?P<metric>\S+)")
_FORM = (
    "METHOD@EPOCHS > METHOD@EPOCHS, e.g. 'heft@3 > lora@20'; 'heft@3 >= lora@20 - 0.5' (at most "
    "0.5 points worse), 'heft@3 = lora@20 +- 1.0' (within one point) and a last 'by logprob' are "
    "allowed, and so are <, <=, a rank (heft@3 r8), epochs of each stage (heft@2+1), base and "
    "majority"
)


@dataclass(frozen=True)
class Side:
    """One side of a claim.

    Attributes:
        method: A method's name, ``base`` (the untouched model) or ``majority`` (always the most
            frequent answer).
        epochs: Of each stage; one number stands for all stages. Empty for what is not trained.
        rank: Of an adapter; None for any.
    """

    method: str
    epochs: tuple[int, ...]
    rank: int | None

    def __str__(self) -> str:
        epochs = f"@{'+'.join(map(str, self.epochs))}" if self.epochs else ""
        return f"{self.method}{epochs}" + (f" r{self.rank}" if self.rank is not None else "")


@dataclass(frozen=True)
class Claim:
    """A statement about the difference of two settings, the first minus the second.

    Attributes:
        first: The one side.
        second: The other.
        relation: ``>`` (the difference is above 0), ``>=`` (it is above minus the margin: the
            first is not inferior) or ``=`` (it is within the margin on both sides: they are
            equivalent).
        margin: In percentage points of accuracy, or in nats; 0 for ``>``.
        metric: ``accuracy`` or ``logprob``.
    """

    first: Side
    second: Side
    relation: str = ">"
    margin: float = 0.0
    metric: str = ACCURACY

    def __str__(self) -> str:
        sign = {">": "", ">=": " - ", "=": " +- "}[self.relation]
        size = f"{sign}{self.margin_text}" if sign else ""
        by = f" by {self.metric}" if self.metric != ACCURACY else ""
        return f"{self.first} {self.relation} {self.second}{size}{by}"

    @property
    def margin_text(self) -> str:
        """The margin in everyday notation, as :func:`parse_claim` reads it."""
        return np.format_float_positional(self.margin, trim="-")

    @property
    def boundaries(self) -> tuple[float, ...]:
        """The differences at which the claim turns from true to false: shares, or nats."""
        size = self.margin / 100 if self.metric == ACCURACY else self.margin
        return {">": (0.0,), ">=": (-size,), "=": (-size, size)}[self.relation]

    def holds(self, low: float, high: float) -> bool | None:
        """What an interval of the difference says of the claim.

        Args:
            low: The interval's lower end.
            high: Its upper end.

        Returns:
            True where all of the interval agrees with the claim, False where none of it does,
            None where only a part does.
        """
        least, *most = self.boundaries
        if low > least and (not most or high < most[0]):
            return True
        return False if high < least or (most and low > most[0]) else None


def parse_claim(text: str) -> Claim:
    """Read a claim.

    Args:
        text: For instance ``heft@3 > lora@20``.

    Returns:
        The claim; with ``<`` and ``<=`` its sides are swapped.

    Raises:
        UserError: The text is of another form.
    """
    plain = text.strip().replace("\N{MINUS SIGN}", "-")
    by = _BY.fullmatch(plain)
    whole, metric = (by["claim"], by["metric"]) if by else (plain, ACCURACY)
    if metric not in (ACCURACY, LOGPROB):
        raise _refused(text, f"by {metric} is neither by {ACCURACY} nor by {LOGPROB}")
    parts = re.split(r"\s*([<>]=?|=)\s*", whole)
    if len(parts) != 3:
        raise _refused(text)
    one, relation, other = parts
    match = _MARGIN.fullmatch(other)
    sign, margin = (match["sign"], float(match["size"])) if match else ("", 0.0)
    wanted = {">": "", "<": "", ">=": "-", "<=": "+", "=": "+-"}[relation]
    given = "+-" if sign in ("±", "+/-") else sign
    if given != wanted or (wanted and not margin):
        what = f"needs {wanted} and a margin above 0" if wanted else "takes no margin"
        raise _refused(text, f"{relation} {what}")
    first, second = _side(one, text), _side(match["side"] if match else other, text)
    if "majority" in (first.method, second.method) and metric == LOGPROB:
        raise _refused(text, "a constant answer has no log-probability")
    if "<" in relation:
        first, second = second, first
    return Claim(first, second, relation.replace("<", ">"), margin, metric)


def _side(text: str, claim: str) -> Side:
    match = _SIDE.fullmatch(text)
    if not match:
        raise _refused(claim, repr(text))
    method, epochs, rank = match.group("method", "epochs", "rank")
    if (method in UNTRAINED) == (epochs is not None):
        raise _refused(claim, f"{method} {'takes no @EPOCHS' if epochs else 'needs @EPOCHS'}")
    return Side(
        method, tuple(map(int, epochs.split("+"))) if epochs else (), int(rank) if rank else None
    )


def _refused(claim: str, why: str = "") -> UserError:
    because = f" ({why})" if why else ""
    return UserError(f"report.claims: {claim!r} is not a claim{because}; write {_FORM}")
