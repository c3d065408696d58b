"""A text cut into windows, each a prompt and the continuation that is scored."""

from typing import Any

from heft_pipeline.data.batches import AnsweredPrompt
from heft_pipeline.data.encode import Encoder
from heft_pipeline.data.other_text import KEY, MOST_WINDOWS, WINDOW_TOKENS, OtherText
from heft_pipeline.errors import UserError

#: A text with a larger share of unknown tokens is not one that the model can read.
_MOST_UNKNOWN = 0.1


def text_windows(
    text: OtherText, tokenizer: Any, vocabulary: int, longest: int | None = None
) -> list[AnsweredPrompt]:
    """Cut a text into windows of ``WINDOW_TOKENS`` tokens.

    Each window begins with the special tokens that the tokenizer puts before a text. Its first
    half is the prompt. What is left over at the end of the text is not used.

    Args:
        text: The text.
        tokenizer: The model's tokenizer.
        vocabulary: How many tokens the model has embeddings for.
        longest: The most tokens that the model reads; None for any number.

    Returns:
        At least 2 and at most ``MOST_WINDOWS`` windows.

    Raises:
        UserError: The text is too short, or the model cannot read it.
    """
    encoder = Encoder(tokenizer, "add")
    first = encoder.encode([[("", False)]])[0]
    body = encoder.encode([[(text.read(), True)]])[0][len(first) :]
    step = WINDOW_TOKENS - len(first)
    count = len(body) // step
    if count < 2:
        raise UserError(
            f"{KEY}: {text.name} has {len(body)} tokens, and two windows need {2 * step}; give a "
            "longer text"
        )
    if longest is not None and 0 < longest < WINDOW_TOKENS:
        raise UserError(
            f"{KEY}: a window has {WINDOW_TOKENS} tokens and the model reads {longest}; use "
            f"{KEY}=off"
        )
    if max(body) >= vocabulary:
        raise UserError(
            f"{KEY}: {text.name} has the token {max(body)}, and the model has embeddings for "
            f"tokens 0 to {vocabulary - 1} only"
        )
    unknown = body.count(tokenizer.unk_token_id) / len(body)
    if unknown > _MOST_UNKNOWN:
        raise UserError(
            f"{KEY}: the model's tokenizer does not know {unknown:.0%} of the tokens of "
            f"{text.name}; give a text in a language that the model can read, {KEY}=FILE"
        )
    kept = range(count)
    if count > MOST_WINDOWS:
        kept = [i * count // MOST_WINDOWS for i in range(MOST_WINDOWS)]  # type: ignore[assignment]
    windows = (first + body[i * step : (i + 1) * step] for i in kept)
    half = WINDOW_TOKENS // 2
    return [AnsweredPrompt(one[:half], one[half:]) for one in windows]
