"""Text in the demo's language that the task does not touch, to measure forgetting on.

It is drawn like the documents of pretraining: passages that are told again, and passages with
notes and claims. Its passages are in none of the splits, and none of its remarks is a question.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from random import Random

from .corpus import Form, make_document, make_retelling
from .language import READ

NAME = "held_out_text.txt"
N_DOCUMENTS = 32
DOCUMENT_WORDS = 127
"""Each document is cut to this length: with the token before it, it fills one window."""

_ENOUGH_REMARKS, _ENOUGH_RETELLINGS = 20, 6
_FORMS: Mapping[Form, float] = {"note": 0.4, "mark": 0.3, "verdict": 0.3}


def held_out_text(seed: int, held_out: frozenset[str]) -> str:
    """Draw the text.

    Args:
        seed: Decides every word.
        held_out: The task's passages, which must not occur, as ``language.passage_key`` gives them.

    Returns:
        A line for each document.
    """
    rng = Random(f"{seed} held-out text")
    lines = []
    for number in range(N_DOCUMENTS):
        document = (
            make_retelling(rng, _ENOUGH_RETELLINGS, held_out)
            if number % 2
            else make_document(rng, _ENOUGH_REMARKS, READ, _FORMS, held_out)
        )
        words = document.words[:DOCUMENT_WORDS]
        if len(words) < DOCUMENT_WORDS or "[EOS]" in words:
            raise ValueError(f"a document has only {len(words)} words; ask for more remarks")
        lines.append(" ".join(words))
    return "\n".join(lines) + "\n"


def write_held_out_text(seed: int, held_out: frozenset[str], folder: Path) -> None:
    """Write :func:`held_out_text` to the file :data:`NAME` in a folder."""
    text = held_out_text(seed, held_out)
    (folder / NAME).write_text(text, encoding="utf-8", newline="\n")
