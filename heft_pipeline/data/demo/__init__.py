"""The demo that ships with the package: a yes/no reading task and a tiny model that can learn it.

``language`` generates passages, statements and questions, ``task`` makes the three splits,
``corpus`` makes the text for pretraining, ``tokenizer`` and ``pretrain`` make the model, and
``build`` is the script that rebuilds all of it, bit for bit, from a seed. Importing this package
needs none of their libraries; it only says where the shipped files are.

Measured on the shipped files (800 training and 1,000 test questions, one seed, float32 on a CPU,
last checkpoint, linear schedule with 10 % warm-up): the base model answers 49 % correctly, while
always answering yes scores 52 %; its perplexity on unseen documents is 1.8, and 2.7 on their
passages alone. It judges 89 % of claims of one fact, 74 % of comparisons and 58 % of claims of two
facts correctly in the words of its pretraining. With an adapter of rank 8 it answers:

* LoRA, all linear layers, batch 16, learning rate 2e-3: 62 % after 3 epochs, 68 % after 20;
* LoReFT, all layers, 7 + 7 positions, batch 32, learning rate 4e-3: 60 % and 70 %.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

Split = Literal["train", "dev", "test"]

SPLITS: tuple[Split, ...] = ("train", "dev", "test")

FILES = Path(__file__).parent / "files"
"""The folder of the shipped splits and of the manifest."""

MODEL = Path(__file__).parents[2] / "models" / "tiny"
"""The folder of the shipped model and tokenizer; ``from_pretrained`` takes it."""

HELD_OUT_TEXT = FILES / "held_out_text.txt"
"""Text in the demo's language that the task does not touch."""

MANIFEST = FILES / "manifest.json"
"""The SHA-256 of every shipped file, and the versions of the libraries that built them."""

SEED = 2509
"""The seed of the shipped files."""

TRUE_SHARE = 0.52
"""The share of questions of each kind whose answer is yes: the majority class scores this."""


def split_path(split: Split) -> Path:
    """Return the path of a split's JSONL file.

    Its columns are BoolQ's ``question``, ``passage`` and ``answer``, and ``kind``, the kind of
    reading that the question needs (see ``language.KINDS``).
    """
    return FILES / f"{split}.jsonl"
