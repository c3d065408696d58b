"""How answers are written after a prompt."""

import re
import string
from dataclasses import dataclass
from typing import Any

from heft_pipeline.errors import UserError

#: Stands for the choice's text in a template.
CHOICE = "{choice}"
#: What a template for a row's choices may name: its text, its letter and its number.
_FIELDS = ("choice", "letter", "number")


@dataclass(frozen=True)
class AnswerText:
    """How an answer is written after a prompt.

    Attributes:
        template: The text, with ``{choice}`` for the choice's text in ``data.choices``.
        end_token: Whether the tokenizer's end token follows.
    """

    template: str = CHOICE
    end_token: bool = False

    def of(self, choice: str) -> str:
        """The answer's text for a choice's text."""
        return self.template.replace(CHOICE, choice)


#: The choice's text and nothing more.
PLAIN = AnswerText()


def check_template(key: str, value: Any) -> None:
    """Refuse a template without the choice.

    Args:
        key: The setting's key, for the message.
        value: Its value.

    Raises:
        UserError: The value does not contain ``{choice}`` exactly once.
    """
    if not isinstance(value, str) or value.count(CHOICE) != 1:
        raise UserError(
            f"{key}={value!r} must contain {CHOICE} once, for the choice's text of data.choices, "
            f"e.g. {key}=' {CHOICE}'"
        )


def check_choice(key: str, value: Any) -> None:
    """Refuse a template for a row's choices that does not tell them apart.

    Args:
        key: The setting's key, for the message.
        value: Its value.

    Raises:
        UserError: The value names none of ``{choice}``, ``{letter}`` and ``{number}``, or anything
            else in braces.
    """
    try:
        fields = [field for _, field, _, _ in string.Formatter().parse(value) if field is not None]
    except (ValueError, TypeError):
        fields = []
    if not fields or not set(fields) <= set(_FIELDS):
        raise UserError(
            f"{key}={value!r} must contain {{choice}}, {{letter}} or {{number}}, and no other "
            f"braces, e.g. {key}=' {CHOICE}'"
        )


def check_pattern(key: str, value: Any) -> None:
    """Refuse what is no regular expression.

    Args:
        key: The setting's key, for the message.
        value: Its value.

    Raises:
        UserError: The value is empty, or cannot be compiled; the message says where.
    """
    if value == "":
        raise UserError(f"{key}='' matches nothing; {key}=null takes all of an answer")
    try:
        re.compile(value)
    except (re.error, TypeError) as error:
        raise UserError(
            f"{key}={value!r} is no regular expression ({error}); e.g. {key}='#### (.+)'"
        ) from error
