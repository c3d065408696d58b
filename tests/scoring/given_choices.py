"""Examples with other choices than their task's."""

import dataclasses
from collections.abc import Sequence

from heft_pipeline.data.prompts import Example


def with_choices(
    examples: Sequence[Example], choices: Sequence[Sequence[int]], texts: Sequence[str] = ()
) -> list[Example]:
    """The same examples with choices, given as token ids and, where text is read, as text."""
    own = tuple(map(tuple, choices))
    named = tuple(texts) or ("",) * len(own)
    return [dataclasses.replace(example, choices=own, texts=named) for example in examples]
