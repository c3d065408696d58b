"""The token ids of answers as they follow a prompt."""

from collections.abc import Sequence
from typing import Any

from heft_pipeline.data.answer_text import AnswerText
from heft_pipeline.data.encode import Encoder
from heft_pipeline.data.row_choices import Piece
from heft_pipeline.data.settings import DataSettings
from heft_pipeline.errors import UserError

#: One text's token ids.
Ids = tuple[int, ...]
#: How many rows' answers are tokenised at once.
_ROWS_AT_ONCE = 256


def answer_tokens(
    data: DataSettings, encoder: Encoder, prompt: Sequence[Piece], answer: AnswerText
) -> tuple[Ids, ...]:
    """Tokenise the answers that all rows share, as they follow a prompt.

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
    # In a conversation, what stands between prompt and answer is the chat template's.
    blank = "" if data.chat else data.prompt[len(data.prompt.rstrip()) :]
    texts = [[(blank + answer.of(text), False)] for text in data.choices.values()]
    (before,) = encoder.encode([prompt])
    joined = encoder.encode([[*prompt, *text] for text in texts])
    found = _cut_off(encoder, before, texts, joined)
    for label, [(text, _)], ids in zip(data.choices, texts, found, strict=True):
        _refuse_untold(encoder, f"data.choices.{label}={text!r}", ids)
    end = _end(encoder.tokenizer) if answer.end_token else ()
    return tuple(ids + end for ids in found)


def row_answer_tokens(
    encoder: Encoder,
    names: Sequence[str],
    prompts: Sequence[tuple[Sequence[Piece], Ids]],
    answers: Sequence[Sequence[Sequence[Piece]]],
    *,
    end_token: bool = False,
) -> list[tuple[Ids, ...]]:
    """Tokenise each row's own answers, as they follow its prompt.

    The boundary is as in :func:`answer_tokens`, row by row.

    Args:
        encoder: Turns text into token ids.
        names: What to call each row in messages.
        prompts: Each row's prompt, as pieces and as token ids.
        answers: The pieces of each row's answers, with the white space before them.
        end_token: Whether the tokenizer's end token follows.

    Returns:
        The token ids of each row's answers.

    Raises:
        UserError: An answer tokenises to nothing or has unknown tokens, or the tokenizer has no end
            token.
    """
    end = _end(encoder.tokenizer) if end_token else ()
    found: list[tuple[Ids, ...]] = []
    for start in range(0, len(prompts), _ROWS_AT_ONCE):
        some = slice(start, start + _ROWS_AT_ONCE)
        own = answers[some]
        whole = iter(
            encoder.encode(
                [
                    [*prompt, *one]
                    for (prompt, _), each in zip(prompts[some], own, strict=True)
                    for one in each
                ]
            )
        )
        for name, (_, ids), each in zip(names[some], prompts[some], own, strict=True):
            tokens = _cut_off(encoder, ids, each, [next(whole) for _ in each])
            for one, answered in zip(each, tokens, strict=True):
                text = "".join(part for part, _ in one)
                _refuse_untold(encoder, f"the answer {text!r} of row {name}", answered)
            found.append(tuple(answered + end for answered in tokens))
    return found


def _cut_off(
    encoder: Encoder, before: Ids, texts: Sequence[Sequence[Piece]], joined: Sequence[Ids]
) -> list[Ids]:
    """What is behind a prompt's token ids, or each text by itself if any merges with the prompt."""
    if all(one[: len(before)] == before and len(one) > len(before) for one in joined):
        return [one[len(before) :] for one in joined]
    return [encoder.alone(text) for text in texts]


def _refuse_untold(encoder: Encoder, what: str, ids: Ids) -> None:
    tokenizer = encoder.tokenizer
    if not ids:
        raise UserError(
            f"{what} tokenises to nothing; give text that the model's tokenizer keeps, e.g. ' yes'"
        )
    if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids:
        raise UserError(
            f"{what} has words that the model's tokenizer does not know ({tokenizer.unk_token}); "
            "use other words"
        )


def refuse_beginnings(data: DataSettings, choices: Sequence[Ids]) -> None:
    """Refuse to compare the likelihoods of answers of which one begins with another.

    Raises:
        UserError: The message names both.
    """
    texts = list(data.choices.values())
    if (found := beginning(choices)) is not None:
        shorter, longer = (texts[index] for index in found)
        raise UserError(
            f"data.choices: the tokens of {longer!r} begin with those of {shorter!r}, which would "
            "always be at least as likely; use choices that differ from the first word on"
        )


def beginning(choices: Sequence[Ids]) -> tuple[int, int] | None:
    """The indices of a choice and of another that begins with it; None where there are none."""
    for i, one in enumerate(choices):
        for j, other in enumerate(choices):
            if i != j and other[: len(one)] == one:
                return i, j
    return None


def _end(tokenizer: Any) -> tuple[int]:
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"end_token=true: {type(tokenizer).__name__} has no end token; use end_token=false"
        )
    return (int(tokenizer.eos_token_id),)
