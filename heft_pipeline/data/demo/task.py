"""The demo task: train, dev and test splits of yes/no questions about passages.

Each row is a passage and a question about it in the columns of BoolQ (``question``, ``passage``,
``answer``), and the question's ``kind``. The share of yes is the same in each kind and split, and
no two rows have the same passage.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

from . import SPLITS, TRUE_SHARE, Split
from .language import KINDS, NAMES, READ, Kind, make_claim, make_world, passage_key, shuffled, tell

SIZES: dict[Split, int] = {"train": 900, "dev": 300, "test": 1200}
"""Rows per split, each a multiple of the number of kinds."""


@dataclass(frozen=True)
class Example:
    """One row of a split; the attributes are its columns."""

    question: str
    passage: str
    answer: bool
    kind: Kind


def make_splits(seed: int) -> tuple[dict[Split, list[Example]], frozenset[str]]:
    """Draw the splits.

    Args:
        seed: Decides every row.

    Returns:
        The rows of each split, and the keys of their passages (``language.passage_key``), none
        of which occurs twice.
    """
    rng = Random(f"{seed} task")
    seen: set[str] = set()
    splits = {split: _make_split(rng, SIZES[split], seen) for split in SPLITS}
    return splits, frozenset(seen)


def write_splits(splits: dict[Split, list[Example]], folder: Path) -> None:
    """Write each split as ``<split>.jsonl`` into ``folder``, one row per line."""
    for split, examples in splits.items():
        lines = [json.dumps(asdict(example)) + "\n" for example in examples]
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8", newline="\n")


def _make_split(rng: Random, size: int, seen: set[str]) -> list[Example]:
    per_kind = size // len(KINDS)
    n_true = round(TRUE_SHARE * per_kind)
    wanted = [(kind, i < n_true) for kind in KINDS for i in range(per_kind)]
    return [_make_example(rng, kind, truth, seen) for kind, truth in shuffled(rng, wanted)]


def _make_example(rng: Random, kind: Kind, truth: bool, seen: set[str]) -> Example:
    while True:
        world = make_world(rng, precise=0.5 if kind in READ else 1.0)
        sentences = tell(rng, world)
        key = passage_key(sentences)
        if key not in seen:
            seen.add(key)
            break
    claim = make_claim(rng, world, kind, truth)
    passage = " ".join(f"{_with_names(sentence, start=True)}." for sentence in sentences)
    return Example(_with_names(claim.question), passage, truth, kind)


def _with_names(text: str, start: bool = False) -> str:
    """Capitalise names, and the first word if it starts a sentence."""
    words = [word.capitalize() if word.strip(",") in NAMES else word for word in text.split()]
    if start:
        words[0] = words[0].capitalize()
    return " ".join(words)
