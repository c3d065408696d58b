"""The demo's language: small worlds of people and things, told in plain English sentences.

In each world, two people have one thing each. Either both things have a colour or both are in a
town, and either the things are compared by size or the people by age. A passage tells each of
these facts in one sentence, in random order:

    The cup is red. The box is with Ben. The cup is bigger than the box. The cup is with Anna.
    The box is blue.

A claim is a proposition about a world that its passage decides. It can be said in three ways:
as a statement ("the cup is red"), as a question ("is the cup red"), and as the plain fact behind
it ("the cup is blue"). There are four kinds:

* ``fact``: one sentence of the passage decides it ("does Anna have the cup");
* ``negation``: the same, denied ("the cup is red, is that wrong");
* ``comparison``: size or age, said in the direction of the passage or in the opposite one
  ("is the box smaller than the cup");
* ``two_facts``: two sentences must be joined ("is the thing that Anna has in Rome", "does Anna
  have the red thing", "is the holder of the cup older than Ben").

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
COLOURS = ("black", "blue", "green", "orange", "red", "white")
TOWNS = ("athens", "berlin", "london", "oslo", "paris", "rome")
NAMES = frozenset(PEOPLE + TOWNS)
"""The words that are capitalised."""

OPPOSITE = {"bigger": "smaller", "smaller": "bigger", "older": "younger", "younger": "older"}

Kind = Literal["fact", "negation", "comparison", "two_facts"]
KINDS: tuple[Kind, ...] = ("fact", "negation", "comparison", "two_facts")

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
        trait: ``"colour"`` or ``"town"``, the property that every thing of this world has.
        value: Thing -> its colour or town.
        greater: The bigger thing, or the older person.
        lesser: The smaller thing, or the younger person.
        by_size: Whether two things are compared by size, rather than two people by age.
    """

    holder: dict[str, str]
    trait: Literal["colour", "town"]
    value: dict[str, str]
    greater: str
    lesser: str
    by_size: bool


@dataclass(frozen=True)
class Claim:
    """One proposition about a world, said in three ways, without final punctuation.

    Attributes:
        kind: The kind of reading it needs.
        statement: The proposition as a sentence ("the cup is red").
        question: The proposition as a question ("is the cup red").
        fact: The true, affirmative sentence about the same subject ("the cup is blue").
        truth: Whether the proposition holds.
    """

    kind: Kind
    statement: str
    question: str
    fact: str
    truth: bool


def make_world(rng: Random) -> World:
    """Draw a world whose two things differ in their holder and in their colour or town."""
    things = shuffled(rng, THINGS)[:2]
    people = shuffled(rng, PEOPLE)[:2]
    trait: Literal["colour", "town"] = "colour" if rng.random() < 0.5 else "town"
    values = shuffled(rng, COLOURS if trait == "colour" else TOWNS)[:2]
    by_size = rng.random() < 0.5
    greater, lesser = shuffled(rng, things if by_size else people)
    return World(
        holder=dict(zip(things, people, strict=True)),
        trait=trait,
        value=dict(zip(things, values, strict=True)),
        greater=greater,
        lesser=lesser,
        by_size=by_size,
    )


def tell(rng: Random, world: World) -> list[str]:
    """Tell a world.

    Args:
        rng: Chooses the order of the sentences and which of a pair is compared with the other.
        world: The world to tell.

    Returns:
        The passage's sentences in lower case, without final punctuation.
    """
    sentences = [f"the {thing} is with {person}" for thing, person in world.holder.items()]
    sentences += [f"the {thing} is {_predicate(world, thing)}" for thing in world.value]
    sentences.append(_compare(world, world.greater, world.lesser, swap=rng.random() < 0.5))
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
    if kind == "comparison":
        return _comparison(rng, world, truth)
    if kind == "two_facts":
        return _two_facts(rng, world, truth)
    thing = pick(rng, list(world.holder))
    make = _holding if rng.random() < 0.5 else _property
    if kind == "fact":
        return make(world, kind, thing, f"the {thing}", truth)
    denied = make(world, kind, thing, f"the {thing}", not truth)
    return replace(
        denied,
        statement=f"that {denied.statement} is wrong",
        question=f"{denied.statement}, is that wrong",
        truth=truth,
    )


def _predicate(world: World, thing: str) -> str:
    value = world.value[thing]
    return value if world.trait == "colour" else f"in {value}"


def _name(world: World, entity: str) -> str:
    return f"the {entity}" if world.by_size else entity


def _compare(world: World, greater: str, lesser: str, swap: bool) -> str:
    more = "bigger" if world.by_size else "older"
    if swap:
        greater, lesser, more = lesser, greater, OPPOSITE[more]
    return f"{_name(world, greater)} is {more} than {_name(world, lesser)}"


def _other_thing(world: World, thing: str) -> str:
    return next(other for other in world.holder if other != thing)


def _property(world: World, kind: Kind, thing: str, subject: str, truth: bool) -> Claim:
    named = _predicate(world, thing if truth else _other_thing(world, thing))
    return Claim(
        kind=kind,
        statement=f"{subject} is {named}",
        question=f"is {subject} {named}",
        fact=f"{subject} is {_predicate(world, thing)}",
        truth=truth,
    )


def _holding(world: World, kind: Kind, thing: str, subject: str, truth: bool) -> Claim:
    named = world.holder[thing if truth else _other_thing(world, thing)]
    return Claim(
        kind=kind,
        statement=f"{subject} is with {named}",
        question=f"does {named} have {subject}",
        fact=f"{subject} is with {world.holder[thing]}",
        truth=truth,
    )


def _comparison(
    rng: Random, world: World, truth: bool, subject: str | None = None, first: str | None = None
) -> Claim:
    """Compare ``first`` (drawn if not given), called ``subject``, with the other of the pair."""
    first = first or pick(rng, (world.greater, world.lesser))
    other = world.lesser if first == world.greater else world.greater
    right = "bigger" if world.by_size else "older"
    if first == world.lesser:
        right = OPPOSITE[right]
    said = right if truth else OPPOSITE[right]
    name = subject or _name(world, first)
    rest = f"than {_name(world, other)}"
    return Claim(
        kind="comparison" if subject is None else "two_facts",
        statement=f"{name} is {said} {rest}",
        question=f"is {name} {said} {rest}",
        fact=f"{name} is {right} {rest}",
        truth=truth,
    )


def _two_facts(rng: Random, world: World, truth: bool) -> Claim:
    thing = pick(rng, list(world.holder))
    held = f"the thing that {world.holder[thing]} has"
    which = rng.random()
    if which < 0.4:
        return _property(world, "two_facts", thing, held, truth)
    if which < 0.8:
        value = world.value[thing]
        known = f"the {value} thing" if world.trait == "colour" else f"the thing in {value}"
        return _holding(world, "two_facts", thing, known, truth)
    first = pick(rng, (world.greater, world.lesser))
    if world.by_size:
        return _comparison(rng, world, truth, f"the thing that {world.holder[first]} has", first)
    thing = next(held for held, person in world.holder.items() if person == first)
    return _comparison(rng, world, truth, f"the holder of the {thing}", first)
