"""A tiny task and its tokenizer, as files that any tool can read."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.architectures.tiny_models import TOKENS

_SPECIAL = ("<unk>", "<s>", "</s>")
_WORDS = [f"w{i}" for i in range(TOKENS - len(_SPECIAL) - 5)]
_ANSWERS = ("yes", "no", "maybe")
#: The text of each choice, by its label: two of one token, and one of two tokens.
CHOICES = {"true": " yes", "false": " no", "maybe": " maybe w3"}
PROMPT = "{passage} Question: {question} Answer:"
#: The numbers of words of the reported rows; a prompt has four tokens more.
_REPORTED = (10, 13, 18, 23, 29, 35)
_TRAINED = (11, 14, 20, 24, 27, 33) * 3


@dataclass(frozen=True)
class Row:
    """A question about a passage, with the label of its answer."""

    passage: str
    question: str
    answer: str

    @property
    def prompt(self) -> str:
        """The text that a model reads."""
        return PROMPT.format(passage=self.passage, question=self.question)


def write_task(folder: Path) -> list[Row]:
    """Write ``train.jsonl`` and ``validation.jsonl``, and return the rows of the latter."""
    source = random.Random(0)
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for name, lengths in (("train", _TRAINED), ("validation", _REPORTED)):
        labels = [list(CHOICES)[i % len(CHOICES)] for i in range(len(lengths))]
        rows = [
            Row(" ".join(source.choices(_WORDS, k=length)), source.choice(_WORDS), label)
            for length, label in zip(lengths, labels, strict=True)
        ]
        lines = [json.dumps(vars(row)) + "\n" for row in rows]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    return rows


def save_tokenizer(folder: Path) -> None:
    """Write a word-level tokenizer that puts a token before each text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary: Sequence[str] = [*_SPECIAL, *_ANSWERS, "Question:", "Answer:", *_WORDS]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(vocabulary)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
