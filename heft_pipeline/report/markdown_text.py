"""Text from outside in Markdown: it is shown as it is, and makes no link, table, image or HTML."""

import re

from markupsafe import Markup

from heft_pipeline.command_line.printable import printable

_SPECIAL = re.compile(r"[\\`*\[\]<|~]|(?<!\w)_|_(?!\w)|&(?=#?\w+;)")
#: What would make a heading, a list or a quotation of a line that it begins.
_FIRST = re.compile(r"^(?:#(?=#*\s)|[-+](?=\s)|>|=)")


def escape(value: object) -> object:
    """What a template shows: text in one line and with its signs escaped.

    Args:
        value: Any value; what is Markdown already is given as :class:`markupsafe.Markup`.

    Returns:
        The text for Markdown; what is no text is returned as it is.
    """
    if isinstance(value, Markup):
        return printable(str(value))
    if not isinstance(value, str):
        return value
    text = " ".join(printable(value).split("\n"))
    return _FIRST.sub(r"\\\g<0>", _SPECIAL.sub(r"\\\g<0>", text))


def code(text: str) -> Markup:
    """Text as a code span, whatever backquotes it has; a line end is shown as ``\\n``."""
    shown = text.replace("\n", "\\n")
    fence = "`" * (_longest(shown) + 1)
    blank = " " if shown.startswith("`") or shown.endswith("`") or not shown.strip() else ""
    return Markup(f"{fence}{blank}{shown}{blank}{fence}")


def block(text: str, language: str = "") -> Markup:
    """Text as a fenced block."""
    fence = "`" * max(3, _longest(text) + 1)
    return Markup(f"{fence}{language}\n{text}\n{fence}")


def _longest(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)
