"""Prompts as a user's turn in a conversation, in the format that a chat model was trained on."""

from collections.abc import Sequence
from typing import Any

from heft_pipeline.data.row_choices import Piece
from heft_pipeline.errors import UserError

#: Stands for the user's turn while the template is rendered; no template or row contains it.
_MARK = "\u2063turn\u2063"
#: What templates print as today's date, so that prompts do not depend on when they are made. It is
#: the date that Llama 3's template has for where there is no clock.
_TODAY = "{%- macro strftime_now(format) -%}26 Jul 2024{%- endmacro -%}"


def conversation(
    tokenizer: Any, turns: Sequence[dict[str, str]], system: str | None, asked: str = ""
) -> str:
    """A conversation in a tokenizer's chat template, up to where the model's answer begins.

    Args:
        tokenizer: A transformers tokenizer with a chat template.
        turns: transformers' messages, each with ``role`` and ``content``.
        system: The system message; None for none.
        asked: What asked for it, to begin the message with, e.g. ``data.chat=true: ``.

    Raises:
        UserError: The template refuses the conversation.
    """
    first = [] if system is None else [{"role": "system", "content": system}]
    template = tokenizer.get_chat_template()
    try:
        return str(
            tokenizer.apply_chat_template(
                [*first, *turns],
                tokenize=False,
                add_generation_prompt=True,
                chat_template=_TODAY + template if "strftime_now" in template else template,
            )
        )
    except Exception as error:  # a template can raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{asked}the model's chat template refuses this conversation: {reason}"
        ) from error


class Chat:
    """A tokenizer's chat template with one turn of the user and, if there is one, a system message.

    Args:
        tokenizer: A transformers tokenizer.
        system: The system message; None for none.

    Raises:
        UserError: The tokenizer has no chat template, or its template does not allow this.
    """

    def __init__(self, tokenizer: Any, system: str | None) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise UserError(
                f"data.chat=true: {type(tokenizer).__name__} of this model has no chat template; "
                "use a chat model, or data.chat=false with the format in data.prompt"
            )
        self._tokenizer = tokenizer
        self._system = system
        self._before, mark, self._after = self._rendered(_MARK).partition(_MARK)
        if not mark:
            raise UserError("data.chat=true: the model's chat template leaves the user's turn out")

    def pieces(self, id: str, prompt: list[Piece]) -> list[Piece]:
        """A prompt inside the conversation, up to where the model's answer begins.

        Args:
            id: The row's id, for messages.
            prompt: The prompt's pieces; white space at its ends is taken off, as most chat
                templates do.

        Raises:
            UserError: The template changes the text of the turn.
        """
        inner = list(prompt)
        while inner and not inner[0][0].lstrip():
            inner.pop(0)
        if inner:
            inner[0] = (inner[0][0].lstrip(), inner[0][1])
        text = "".join(part for part, _ in inner)
        if self._rendered(text) != self._before + text + self._after:
            raise UserError(
                f"data.chat=true: the model's chat template changes the text of row {id}; use "
                "data.chat=false with the format in data.prompt"
            )
        return [(self._before, False), *inner, (self._after, False)]

    def _rendered(self, turn: str) -> str:
        with_system = " with data.system" if self._system is not None else ""
        turns = [{"role": "user", "content": turn}]
        asked = f"data.chat=true{with_system}: "
        return conversation(self._tokenizer, turns, self._system, asked)
