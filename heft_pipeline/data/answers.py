"""The token ids of answers as they follow a prompt."""

from collections.abc import Sequence
from typing import Any

from heft_pipeline.data.answer_text import AnswerText
from heft_pipeline.data.encode import Encoder, Piece
from heft_pipeline.data.settings import DataSettings
from heft_pipeline.errors import UserError


def answer_tokens(
    data: DataSettings, encoder: Encoder, prompt: Sequence[Piece], answer: AnswerText
) -> tuple[tuple[int, ...], ...]:
    """Tokenise the answers as they follow a prompt.

    White space at the end of the template goes to the answers, as in lm-evaluation-harness. All
    answers have the same boundary: if the tokenizer merges any of them with the prompt, each is
    tokenised by itself.

    Args:
        data: The task.
        encoder: Turns text into token ids.
        prompt: The pieces of any prompt of the task.
        answer: How answers are written.

    Returns:
        The token ids of each choice's answer.

    Raises:
        UserError: An answer tokenises to nothing or has unknown tokens, or the tokenizer has no end
            token.
    """
    tokenizer = encoder.tokenizer
    # In a conversation, what stands between prompt and answer is the chat template's.
    blank = "" if data.chat else data.prompt[len(data.prompt.rstrip()) :]
    texts = [blank + answer.of(text) for text in data.choices.values()]
    before, *joined = encoder.encode([prompt, *([*prompt, (text, False)] for text in texts)])
    apart = all(one[: len(before)] == before and len(one) > len(before) for one in joined)
    end = _end(tokenizer) if answer.end_token else ()
    found = []
    for label, text, whole in zip(data.choices, texts, joined, strict=True):
        ids = whole[len(before) :] if apart else encoder.alone(text)
        if not ids:
            raise UserError(
                f"data.choices.{label}={text!r} tokenises to nothing; give text that the model's "
                "tokenizer keeps, e.g. ' yes'"
            )
        if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids:
            raise UserError(
                f"data.choices.{label}={text!r} has words that the model's tokenizer does not "
                f"know ({tokenizer.unk_token}); use other words"
            )
        found.append(ids + end)
    return tuple(found)


def refuse_beginnings(data: DataSettings, choices: Sequence[tuple[int, ...]]) -> None:
    """Refuse to compare the likelihoods of answers of which one begins with another.

    Raises:
        UserError: The message names both.
    """
    texts = list(data.choices.values())
    for i, one in enumerate(choices):
        for j, other in enumerate(choices):
            if i != j and other[: len(one)] == one:
                raise UserError(
                    f"data.choices: the tokens of {texts[j]!r} begin with those of "
                    f"{texts[i]!r}, which would always be at least as likely; use "
                    "choices that differ from the first word on"
                )


def _end(tokenizer: Any) -> tuple[int]:
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"end_token=true: {type(tokenizer).__name__} has no end token; use end_token=false"
        )
    return (int(tokenizer.eos_token_id),)
