"""How answers are written after a prompt."""

from dataclasses import dataclass
from typing import Any

from heft_pipeline.errors import UserError

#: Stands for the choice's text in a template.
CHOICE = "{choice}"


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
