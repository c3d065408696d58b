"""The demo's language: small worlds of people and things, told in plain English sentences.

In each world, two people have one thing each, and both things have a colour or both are in a
place. A passage tells each of these facts in one sentence, in random order:

    The cup is ruby. The box is with Ben. The cup is with Anna. The box is navy.

A claim is a proposition about a world that its passage decides. It can be said in three ways:
as a statement ("the cup is ruby"), as a question ("is the cup ruby"), and as the plain fact behind
it ("the cup is navy"). There are four kinds:

* ``fact``: one sentence of the passage decides it ("is the cup with Anna");
* ``negation``: the same, denied ("the cup is ruby, is that wrong");
* ``meaning``: it follows from one sentence and from what a word means: what is ruby is red, and
  what is in Oslo is in Norway ("is the cup red");
* ``denied_meaning``: the same, denied ("the cup is red, is that wrong").

Every wrong value in a claim is the right value of the other thing in the same passage, so that
a word's presence in the passage says nothing about the answer.

The only source of randomness is ``random.Random.random()``, the one method whose sequence for a
given seed Python promises to keep across versions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Literal, TypeVar

PEOPLE = ("anna", "ben", "clara", "david", "emma", "frank", "grace", "henry")
THINGS = ("ball", "bell", "book", "box", "cup", "drum", "hat", "lamp")
SHADES = {"ivory": "white", "jade": "green", "navy": "blue", "ruby": "red"}
"""Each shade, and the colour that a thing of this shade has."""

TOWNS = {"london": "england", "oslo": "norway", "paris": "france", "rome": "italy"}
"""Each town, and the country that a thing in this town is in."""

NAMES = frozenset((*PEOPLE, *TOWNS, *TOWNS.values()))
"""The words that are capitalised."""

WIDER = SHADES | TOWNS
"""Each narrow word, and the wider one that follows from it."""

Kind = Literal["fact", "negation", "meaning", "denied_meaning"]
KINDS: tuple[Kind, ...] = ("fact", "negation", "meaning", "denied_meaning")

READ: tuple[Kind, ...] = ("fact", "negation")
"""The kinds that pretraining teaches."""

Item = TypeVar("Item")


def pick(rng: Random, items: Sequence[Item]) -> Item:
    """Return one of ``items``, each equally likely."""
    return items[int(rng.random() * len(items))]


def shuffled(rng: Random, items: Sequence[Item]) -> list[Item]:
    """Return ``items`` in a random order."""
    rest = list(items)
    return [rest.pop(int(rng.random() * len(rest))) for _ in items]


@dataclass(frozen=True)
class World:
    """What is true in one passage.

    Attributes:
        holder: Thing -> the person who has it; its keys are the things of the world.
        trait: ``"colour"`` or ``"place"``, the property that every thing of this world has.
        value: Thing -> its colour or shade, or its town or country.
    """

    holder: dict[str, str]
    trait: Literal["colour", "place"]
    value: dict[str, str]


@dataclass(frozen=True)
class Claim:
    """One proposition about a world, said in three ways, without final punctuation.

    Attributes:
        kind: The kind of reading it needs.
        statement: The proposition as a sentence ("the cup is ruby").
        question: The proposition as a question ("is the cup ruby").
        fact: The true, affirmative sentence about the same subject ("the cup is navy").
        truth: Whether the proposition holds.
    """

    kind: Kind
    statement: str
    question: str
    fact: str
    truth: bool


def make_world(rng: Random, precise: float = 0.5) -> World:
    """Draw a world whose two things differ in their holder and in their colour or country.

    Args:
        rng: The source of randomness.
        precise: The probability that the passage says a shade rather than a colour, or a town
            rather than a country.
    """
    things = shuffled(rng, THINGS)[:2]
    people = shuffled(rng, PEOPLE)[:2]
    trait: Literal["colour", "place"] = "colour" if rng.random() < 0.5 else "place"
    pairs = shuffled(rng, list((SHADES if trait == "colour" else TOWNS).items()))[:2]
    values = [narrow if rng.random() < precise else wide for narrow, wide in pairs]
    return World(
        holder=dict(zip(things, people, strict=True)),
        trait=trait,
        value=dict(zip(things, values, strict=True)),
    )


def tell(rng: Random, world: World) -> list[str]:
    """Tell a world.

    Args:
        rng: Chooses the order of the sentences.
        world: The world to tell.

    Returns:
        The passage's sentences in lower case, without final punctuation.
    """
    sentences = [f"the {thing} is with {person}" for thing, person in world.holder.items()]
    sentences += [
        f"the {thing} is {_predicate(world, value)}" for thing, value in world.value.items()
    ]
    return shuffled(rng, sentences)


def passage_key(sentences: list[str]) -> str:
    """Return a key that two passages share if they tell the same facts in the same words."""
    return " . ".join(sorted(sentences))


def make_claim(rng: Random, world: World, kind: Kind, truth: bool) -> Claim:
    """Draw a claim about a world.

    Args:
        rng: The source of randomness.
        world: The world that it is about.
        kind: The kind of reading that it needs.
        truth: Whether it is to hold.
    """
    thing = pick(rng, list(world.holder))
    denied = kind in ("negation", "denied_meaning")
    if kind in ("meaning", "denied_meaning") or rng.random() < 0.5:
        claim = _property(world, kind, thing, truth != denied)
    else:
        claim = _holding(world, kind, thing, truth != denied)
    return _denied(claim) if denied else claim


def _denied(claim: Claim) -> Claim:
    return replace(
        claim,
        statement=f"that {claim.statement} is wrong",
        question=f"{claim.statement}, is that wrong",
        truth=not claim.truth,
    )


def _predicate(world: World, value: str) -> str:
    return value if world.trait == "colour" else f"in {value}"


def _other_thing(world: World, thing: str) -> str:
    return next(other for other in world.holder if other != thing)


def _property(world: World, kind: Kind, thing: str, truth: bool) -> Claim:
    value, named = world.value[thing], world.value[thing if truth else _other_thing(world, thing)]
    if kind in ("meaning", "denied_meaning"):
        value, named = WIDER[value], WIDER[named]
    return Claim(
        kind=kind,
        statement=f"the {thing} is {_predicate(world, named)}",
        question=f"is the {thing} {_predicate(world, named)}",
        fact=f"the {thing} is {_predicate(world, value)}",
        truth=truth,
    )


def _holding(world: World, kind: Kind, thing: str, truth: bool) -> Claim:
    named = world.holder[thing if truth else _other_thing(world, thing)]
    return Claim(
        kind=kind,
        statement=f"the {thing} is with {named}",
        question=f"is the {thing} with {named}",
        fact=f"the {thing} is with {world.holder[thing]}",
        truth=truth,
    )
