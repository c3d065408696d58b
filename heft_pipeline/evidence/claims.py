"""Claims that a report tests: which of two settings is more accurate, as text."""

import re
from dataclasses import dataclass

from heft_pipeline.errors import UserError

_UNTRAINED = ("base", "majority")
_SIDE = re.compile(
    r"(?P<method>[a-z_]+(?:\+[a-z_]+)*)(?:@(?P<epochs>\d+(?:\+\d+)*))?(?:\s+r(?P<rank>\d+))?"
)
_FORM = (
    "METHOD@EPOCHS > METHOD@EPOCHS, e.g. 'heft@3 > lora@20'; < is allowed, so are a rank "
    "(heft@3 r8), epochs of each stage (heft@2+1), base and majority"
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
    """That the first side is more accurate than the second."""

    better: Side
    worse: Side

    def __str__(self) -> str:
        return f"{self.better} > {self.worse}"


def parse_claim(text: str) -> Claim:
    """Read a claim.

    Args:
        text: For instance ``heft@3 > lora@20``.

    Returns:
        The claim; with ``<`` its sides are swapped.

    Raises:
        UserError: The text is of another form.
    """
    parts = re.split(r"\s*([<>])\s*", text.strip())
    if len(parts) != 3:
        raise UserError(f"report.claims: {text!r} is not a claim; write {_FORM}")
    first, second = _side(parts[0], text), _side(parts[2], text)
    return Claim(first, second) if parts[1] == ">" else Claim(second, first)


def _side(text: str, claim: str) -> Side:
    match = _SIDE.fullmatch(text)
    if not match:
        raise UserError(f"report.claims: {claim!r} is not a claim ({text!r}); write {_FORM}")
    method, epochs, rank = match.group("method", "epochs", "rank")
    if (method in _UNTRAINED) == (epochs is not None):
        lacks = "takes no @EPOCHS" if epochs else "needs @EPOCHS"
        raise UserError(f"report.claims: {method} in {claim!r} {lacks}; write {_FORM}")
    return Side(
        method, tuple(map(int, epochs.split("+"))) if epochs else (), int(rank) if rank else None
    )
