"""Answers that are written: the part of a text that counts, and whether it equals a reference."""

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

_UNITS = "$€£¥%"
#: A sign, a unit on one side, and digits that may have thousands separators and a fraction. Python
#: itself would also read nan, infinity, 1e400, 1_000 and the digits of other scripts.
_NUMBER = re.compile(
    rf"""
    (?P<sign>[+-]?) (?P<before>[$€£¥]?) (?P<inner>[+-]?)
    (?P<whole> [1-9][0-9]{{0,2}}(?:,[0-9]{{3}})+ | [0-9]+ | (?=\.[0-9]) )
    (?P<fraction> (?:\.[0-9]+)? )
    \s* (?P<behind>[{_UNITS}]?)
    [.,]?                       # what a sentence goes on with
    """,
    re.VERBOSE,
)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class _Number:
    """A number, and its unit if it was written with one."""

    value: Decimal
    unit: str

    def same(self, other: "_Number") -> bool:
        """Whether it is the same number; a unit may be left out, but not be another one."""
        units = {self.unit, other.unit} - {""}
        return self.value == other.value and len(units) < 2


def extracted(text: str, pattern: str | None, which: str) -> str | None:
    """The part of a text that counts as its answer.

    Args:
        text: What was written.
        pattern: A regular expression of Python's ``re``; its first group counts if it has one, else
            the whole match. None: the whole text counts.
        which: ``first`` or ``last``: which match counts, among those with more than white space.

    Returns:
        The part without white space around it; None if there is none.
    """
    if pattern is None:
        return text.strip() or None
    compiled = re.compile(pattern)
    group = min(1, compiled.groups)
    parts = [(match[group] or "").strip() for match in compiled.finditer(text)]
    return next(filter(None, parts if which == "first" else reversed(parts)), None)


def matches(answer: str | None, references: Sequence[str], normalize: str) -> bool:
    """Whether an answer equals one of its references.

    Two numbers are compared as numbers, and as nothing else: ``1,000``, ``1000.0``, ``+1000`` and
    ``1000.`` are the same, ``-3`` and ``3`` are not. A unit out of ``$ € £ ¥ %`` may be left out on
    either side, since questions imply it: ``$5`` is ``5`` and ``50%`` is ``50`` (and not ``0.5``),
    but ``$5`` is not ``5%``. Fractions, dates, lists, exponents and words are text; ``1,2,3`` is a
    list, because thousands have three digits.

    Args:
        answer: The answer; None is never right.
        references: The texts that are accepted.
        normalize: How text is compared. ``exact``: it is the same, whatever the white space.
            ``squad``: or the same in lower case without ASCII punctuation and articles (Rajpurkar
            et al. 2016, arXiv 1606.05250, their evaluation script); of which something must remain.
    """
    return answer is not None and any(_equal(answer, one, normalize) for one in references)


def _equal(one: str, other: str, normalize: str) -> bool:
    first, second = _number(one), _number(other)
    if first and second:
        return first.same(second)
    if _spaced(one) == _spaced(other):
        return True
    return normalize == "squad" and _squad(one) == _squad(other) != ""


def _number(text: str) -> _Number | None:
    """The number that a text is; None if it is anything else."""
    found = _NUMBER.fullmatch(text.strip().replace("\N{MINUS SIGN}", "-"))
    if not found or (found["sign"] and found["inner"]) or (found["before"] and found["behind"]):
        return None
    digits = found["whole"].replace(",", "") + found["fraction"]
    sign = found["sign"] or found["inner"]
    return _Number(Decimal(sign + digits), found["before"] or found["behind"])


def _spaced(text: str) -> str:
    return " ".join(text.split())


def _squad(text: str) -> str:
    return _spaced(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)))
