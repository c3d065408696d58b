"""The demo that ships with the package: a yes/no reading task and a tiny model that can learn it.

``language`` generates passages, statements and questions, ``task`` makes the three splits,
``corpus`` makes the text for pretraining, ``tokenizer`` and ``pretrain`` make the model, and
``build`` is the script that rebuilds all of it, bit for bit, from a seed. Importing this package
needs none of their libraries; it only says where the shipped files are.

Measured on the shipped files (900 training and 1,200 test questions, five seeds, float32 on a CPU):
the base model always says yes, and so scores 52 %; its perplexity on unseen documents is 1.6, and
2.1 on their passages alone. In the words of its pretraining ("true" and "false") it judges all
questions of a fact or its negation correctly, and 80 % of those that need the meaning of a word.
With an adapter of rank 8 it answers:

* LoRA, all linear layers, batch 8, learning rate 2e-3: 99.5 % after 3 epochs, 99.6 % after 20;
* LoReFT, all layers, 7 + 7 positions, batch 16, learning rate 5e-4: 93.9 % and 96.4 %.

It is made so that a training repeats: what an adapter has to add is small and can be learned
steadily, so that rounding, which differs from machine to machine, changes little. See
``benchmarks/README.md``.
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
