"""The lengths of answer choices, which their log-probabilities can be divided by."""

from collections.abc import Sequence

import torch

from heft_pipeline.data.answer_text import AnswerText
from heft_pipeline.data.prompts import Example
from heft_pipeline.scoring.settings import NORMALIZE

#: [N, C] of N examples' choices, by the value of ``evaluation.normalize``; 1 where an example has
#: fewer than C.
Lengths = dict[str, torch.Tensor]


def choice_lengths(examples: Sequence[Example], answer: AnswerText) -> Lengths:
    """The lengths of choices as they are scored.

    ``token`` is the number of tokens. ``byte`` is the length of the text in UTF-8, without white
    space around it, which lm-evaluation-harness's ``acc_norm`` divides by (it counts characters,
    which is the same for plain English).

    Args:
        examples: N examples with up to C choices.
        answer: How answers are written.
    """
    width = max((len(example.choices) for example in examples), default=0)

    def filled(values: Sequence[int]) -> list[float]:
        return [*values, *[1.0] * (width - len(values))]

    def in_tokens(example: Example) -> list[int]:
        pairs = zip(example.choices, example.unscored, strict=True)
        return [len(choice) - unscored for choice, unscored in pairs]

    def in_bytes(example: Example) -> list[int]:
        if example.given:  # what is scored is the same text after each choice
            return []
        texts = example.texts[: len(example.choices)]
        return [max(1, len(answer.of(text).strip().encode())) for text in texts]

    rows = {
        "none": [filled([]) for _ in examples],
        "token": [filled(in_tokens(example)) for example in examples],
        "byte": [filled(in_bytes(example)) for example in examples],
    }
    return {name: torch.tensor(rows[name], dtype=torch.float32) for name in NORMALIZE}
