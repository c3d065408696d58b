"""A row's text and its token ids: the filled-in template, and one rule for special tokens."""

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from heft_pipeline.data.dev_split import Row
from heft_pipeline.data.row_choices import Piece, option_pieces, row_choices
from heft_pipeline.data.settings import DataSettings
from heft_pipeline.errors import UserError

_TOKENIZE_AT_ONCE = 1024

#: What stands for a list of the row's choices in a prompt.
_OPTIONS = "options"


@dataclass(frozen=True)
class Rendered:
    """A row's prompt as text.

    Attributes:
        prompt: Its pieces, without white space at its end.
        space: The white space that was there.
        rest: What follows each choice, where choices take the place of a blank.
    """

    prompt: list[Piece]
    space: str = ""
    rest: tuple[Piece, ...] = ()

    @property
    def text(self) -> str:
        """The prompt as one text."""
        return "".join(text for text, _ in self.prompt)


def render(data: DataSettings, id: str, row: Row) -> Rendered:
    """Fill the prompt template with a row.

    Args:
        data: The task; its ``prompt`` is a template for Python's ``str.format``.
        id: The row's id, for messages.
        row: The row.

    Returns:
        The pieces of the prompt as the template and the row give them.

    Raises:
        UserError: The template is not valid or names a column that the row does not have, or a
            column has no text, number or truth value, or the blank is not there once.
    """
    try:
        found: list[Piece] = []
        for literal, field, spec, conversion in string.Formatter().parse(data.prompt):
            found.append((literal, False))
            if field == _OPTIONS and data.own_choices:
                found += option_pieces(data, row_choices(data, id, row))
            elif field is not None:
                found.append((_filled(data, id, row, field, spec or "", conversion), True))
    except (ValueError, IndexError, AttributeError, KeyError, TypeError) as error:
        raise UserError(
            f"data.prompt={data.prompt!r} cannot be filled in ({error}); write {{column}} for a "
            "column and {{ for a brace"
        ) from error
    rest: list[Piece] = []
    if data.blank is not None:
        found, rest = _at_blank(data, id, found)
    prompt = _stripped(found)
    # White space at the end of a row's own text is no part of the format.
    template = data.prompt if data.blank is None else "".join(text for text, _ in found)
    return Rendered(prompt, template[len(template.rstrip()) :], tuple(rest))


def _stripped(found: list[Piece]) -> list[Piece]:
    """Pieces without the white space at their end."""
    kept = list(found)
    while kept and not kept[-1][0].rstrip():
        kept.pop()
    return [*kept[:-1], (kept[-1][0].rstrip(), kept[-1][1])] if kept else []


def _at_blank(data: DataSettings, id: str, whole: list[Piece]) -> tuple[list[Piece], list[Piece]]:
    """What stands before and after the blank."""
    blank = data.blank or ""
    count = sum(text.count(blank) for text, _ in whole)
    if count != 1:
        raise UserError(
            f"row {id} of {data.name} has data.blank={blank!r} {count or 'no'} "
            f"time{'' if count == 1 else 's'} in its prompt, and needs it once; mend the row or "
            "leave it out"
        )
    for number, (text, own) in enumerate(whole):
        before, found, after = text.partition(blank)
        if found:
            return [*whole[:number], (before, own)], [(after, own), *whole[number + 1 :]]
    raise AssertionError("a blank that was counted is in one of the pieces")


def _filled(
    data: DataSettings, id: str, row: Row, field: str, spec: str, conversion: str | None
) -> str:
    column = re.split(r"[.\[]", field)[0]
    # Attributes of Python's objects lead anywhere, and a task may be a stranger's.
    if "." in re.sub(r"\[[^\]]*\]", "", field) or re.search(r"\d{4}", spec):
        raise UserError(
            f"data.prompt names {{{field}{':' + spec if spec else ''}}}; write {{column}}, or a "
            "part of one as {column[part]}, and no width above 999"
        )
    if column not in row:
        raise UserError(
            f"data.prompt names {{{column}}}, which row {id} of {data.name} does not have; "
            f"it has {', '.join(map(str, row))}"
        )
    value, _ = string.Formatter().get_field(field, (), row)
    if value is None or isinstance(value, list | tuple | dict | bytes):
        kind = "nothing (null)" if value is None else f"a {type(value).__name__}"
        raise UserError(
            f"row {id} of {data.name} has {kind} in {field}, where data.prompt needs text; mend "
            "the row or leave it out, or name a part of it, e.g. {answers[text]}"
        )
    return ("{value" + (f"!{conversion}" if conversion else "") + f":{spec}}}").format(value=value)


class Encoder:
    """Turns text into token ids.

    The special tokens that the tokenizer puts first come first, and none comes last. The template
    and the answer choices may name special tokens; a row's own text is only text.

    Args:
        tokenizer: A transformers tokenizer.
        special_tokens: The value of ``data.special_tokens``.

    Attributes:
        tokenizer: The same.
        doubled: The text of the leading special tokens if a prompt has them twice; else empty.

    Raises:
        UserError: The tokenizer changes the text itself where it adds special tokens.
    """

    def __init__(self, tokenizer: Any, special_tokens: str = "once") -> None:
        self.tokenizer = tokenizer
        self.doubled = ""
        self._first = () if special_tokens == "as_written" else _leading(tokenizer)
        self._always = special_tokens == "add"
        added = tokenizer.added_tokens_decoder.values()
        names = {*tokenizer.all_special_tokens, *(str(token) for token in added if token.special)}
        longest_first = sorted(filter(None, names), key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def encode(self, prompts: Sequence[Sequence[Piece]]) -> list[tuple[int, ...]]:
        """The token ids of prompts, each given as its pieces."""
        plain = [i for i, prompt in enumerate(prompts) if not self._has_own_special(prompt)]
        texts = ["".join(text for text, _ in prompts[i]) for i in plain]
        ids: dict[int, list[int]] = {}
        for start in range(0, len(texts), _TOKENIZE_AT_ONCE):
            chunk = slice(start, start + _TOKENIZE_AT_ONCE)
            encoded = self.tokenizer(texts[chunk], add_special_tokens=False)["input_ids"]
            ids.update(zip(plain[chunk], encoded, strict=True))
        return [
            self._started(tuple(ids[i] if i in ids else self._guarded(prompt)))
            for i, prompt in enumerate(prompts)
        ]

    def _started(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        """Put the leading special tokens first, unless the template has them already."""
        if not self._first or ids[: len(self._first)] != self._first:
            return self._first + ids
        if not self._always:
            return ids
        self.doubled = self.tokenizer.decode(list(self._first))
        return self._first + ids

    def alone(self, text: Sequence[Piece]) -> tuple[int, ...]:
        """The token ids of text that nothing stands before, given as its pieces."""
        if self._has_own_special(text):
            return tuple(self._guarded(text))
        whole = "".join(part for part, _ in text)
        return tuple(self.tokenizer(whole, add_special_tokens=False)["input_ids"])

    def token_ends(self, text: str) -> list[int]:
        """Where a row's text may be cut: 0 and the end of each of its tokens, in characters.

        Tokenizers without offsets (those written in Python) allow a cut after any character.
        """
        if not self.tokenizer.is_fast:
            return list(range(len(text) + 1))
        encoded = self.tokenizer(
            text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
        )
        return sorted({0, *(end for _, end in encoded["offset_mapping"])})

    def _has_own_special(self, prompt: Sequence[Piece]) -> bool:
        return any(own and self._special.search(text) for text, own in prompt)

    def _guarded(self, prompt: Sequence[Piece]) -> list[int]:
        """Token ids in which only the template's special tokens are special."""
        ids: list[int] = []
        run = ""
        for text, own in prompt:
            start = 0
            for match in () if own else self._special.finditer(text):
                ids += self._as_text(run + text[start : match.start()])
                ids.append(self.tokenizer.convert_tokens_to_ids(match.group()))
                run, start = "", match.end()
            run += text[start:]
        return ids + self._as_text(run)

    def _as_text(self, text: str) -> list[int]:
        if not text:
            return []
        encoded = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)
        ids = list(encoded["input_ids"])
        for token in self._special.findall(text):
            # Some vocabularies also have it as an ordinary word.
            if self.tokenizer.convert_tokens_to_ids(token) in ids:
                raise UserError(
                    f"a row has {token} in its text, which the model's tokenizer always reads as a "
                    "special token; take it out of the row"
                )
        return ids


def _leading(tokenizer: Any) -> tuple[int, ...]:
    """The special tokens that a tokenizer puts before a text, e.g. BOS or [CLS]."""
    for text in ("a", "0", "."):
        own = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        whole = list(tokenizer(text)["input_ids"])
        for start in range(len(whole) - len(own) + 1):
            if own and whole[start : start + len(own)] == own:
                return tuple(whole[:start])
    raise UserError(
        f"model.id: {type(tokenizer).__name__} tokenises text differently where it adds special "
        "tokens, so prompts and answers cannot be told apart; use another tokenizer"
    )
