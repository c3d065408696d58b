"""The text the tiny model is pretrained on: passages of the demo language, then remarks on them.

A document is a passage and a number of remarks, each of one of these forms:

* ``note``, which repeats what the passage says: ``note : the cup is ruby .``
* ``mark``, a claim that is marked true or false at once: ``claim : the cup is ruby false .``
* ``verdict``, a claim that is judged after it: ``claim : the cup is ruby . verdict : true .``
* ``ask``, the same as a mark, but worded as a question: ``ask : is the cup ruby true .``
* ``answer``, a question that is judged after it: ``question : is the cup ruby ? answer : true .``
* ``guess``, the same question with a yes or a no that is **decided by a coin flip**: ``question :
  is the cup ruby ? answer : yes .``

So the model learns to read the passages and the questions, and to judge the questions of the task
where the task wants their answer. It cannot learn here when yes is the correct answer, because in
this text yes and no are independent of the truth. No claim leads from a narrow word to a wider one
either. That what is ruby is red can only be guessed from the two never being in the same passage,
which gets the model most of the way. Both are left to an adapter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from .language import (
    PEOPLE,
    SHADES,
    THINGS,
    TOWNS,
    Claim,
    Kind,
    World,
    make_claim,
    make_world,
    passage_key,
    pick,
    shuffled,
    tell,
)

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[BOS]", "[EOS]")
FUNCTION_WORDS = (
    *(".", ",", "?", ":", "the", "is", "that", "wrong", "in", "with"),
    *("question", "answer", "yes", "no", "ask", "note", "claim", "verdict"),
    *("true", "false"),
)
VOCABULARY = (
    *SPECIAL_TOKENS,
    *FUNCTION_WORDS,
    *PEOPLE,
    *THINGS,
    *SHADES,
    *SHADES.values(),
    *TOWNS,
    *TOWNS.values(),
)
"""Every token of the language; a token's id is its index."""


@dataclass(frozen=True)
class Document:
    """One pretraining text.

    Attributes:
        words: The tokens after the beginning-of-sequence token.
        weights: The weight of each token's loss.
    """

    words: list[str]
    weights: list[float]


PASSAGE_WEIGHT = 0.1
"""Most of a passage cannot be predicted, so its words count little."""

PROMPT_WEIGHT = 0.3
"""The same goes for the words that introduce a verdict or an answer."""

FACT_WEIGHT = 1.0
VERDICT_WEIGHT = 3.0

YES_SHARE = 0.7
"""How often a guess is yes, whatever the truth. The coin is not fair, so that the untouched model
always says yes; from equally likely words it would pick one by small differences, which can go with
the truth or against it."""


Form = Literal["note", "mark", "verdict", "ask", "answer", "guess"]


def make_document(
    rng: Random,
    n_remarks: int,
    kinds: Sequence[Kind],
    forms: Mapping[Form, float],
    held_out: frozenset[str],
) -> Document:
    """Draw a document.

    Args:
        rng: The source of randomness.
        n_remarks: How many remarks follow the passage.
        kinds: The kinds of claims in them, each equally likely.
        forms: The probability of each form of remark; they add up to 1.
        held_out: Passages that must not occur, as ``language.passage_key`` gives them.

    Returns:
        The document. Its passage is not in ``held_out``.
    """
    world, _, document = _begin(rng, held_out)
    for _ in range(n_remarks):
        claim = make_claim(rng, world, pick(rng, kinds), truth=rng.random() < 0.5)
        _remark(document, rng, claim, _pick_form(rng, forms))
    _append(document, "[EOS]", PROMPT_WEIGHT)
    return document


def make_retelling(rng: Random, n_retellings: int, held_out: frozenset[str]) -> Document:
    """Draw a document that only tells its passage again and again, in different orders.

    Args:
        rng: The source of randomness.
        n_retellings: How often the passage is told after the first time.
        held_out: Passages that must not occur, as ``language.passage_key`` gives them.

    Returns:
        The document. It teaches the simplest kind of reading, looking up a sentence.
    """
    _, sentences, document = _begin(rng, held_out)
    for _ in range(n_retellings):
        for sentence in shuffled(rng, sentences):
            told, last = sentence.rsplit(maxsplit=1)
            _append(document, told, PASSAGE_WEIGHT)
            _append(document, last, FACT_WEIGHT)
            _append(document, ".", PASSAGE_WEIGHT)
    return document


def _begin(rng: Random, held_out: frozenset[str]) -> tuple[World, list[str], Document]:
    while True:
        world = make_world(rng)
        sentences = tell(rng, world)
        if passage_key(sentences) not in held_out:
            break
    document = Document([], [])
    for sentence in sentences:
        _append(document, f"{sentence} .", PASSAGE_WEIGHT)
    return world, sentences, document


def _pick_form(rng: Random, forms: Mapping[Form, float]) -> Form:
    point = rng.random()
    for form, probability in forms.items():
        point -= probability
        if point < 0:
            return form
    return form


def _remark(document: Document, rng: Random, claim: Claim, form: Form) -> None:
    truth = "true" if claim.truth else "false"
    if form == "note":
        _append(document, "note :", PROMPT_WEIGHT)
        _append(document, f"{claim.fact} .", FACT_WEIGHT)
    elif form == "mark":
        _append(document, f"claim : {claim.statement}", PROMPT_WEIGHT)
        _append(document, truth, VERDICT_WEIGHT)
        _append(document, ".", PROMPT_WEIGHT)
    elif form == "ask":
        _append(document, f"ask : {claim.question}", PROMPT_WEIGHT)
        _append(document, truth, VERDICT_WEIGHT)
        _append(document, ".", PROMPT_WEIGHT)
    elif form == "verdict":
        _append(document, f"claim : {claim.statement} . verdict :", PROMPT_WEIGHT)
        _append(document, truth, VERDICT_WEIGHT)
        _append(document, ".", PROMPT_WEIGHT)
    elif form == "answer":
        _append(document, f"question : {claim.question} ? answer :", PROMPT_WEIGHT)
        _append(document, truth, VERDICT_WEIGHT)
        _append(document, ".", PROMPT_WEIGHT)
    else:
        _append(document, f"question : {claim.question} ? answer :", PROMPT_WEIGHT)
        _append(document, "yes" if rng.random() < YES_SHARE else "no", FACT_WEIGHT)
        _append(document, ".", PROMPT_WEIGHT)


def _append(document: Document, text: str, weight: float) -> None:
    words = text.replace(",", " ,").split()
    document.words.extend(words)
    document.weights.extend([weight] * len(words))
