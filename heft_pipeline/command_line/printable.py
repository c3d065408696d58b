"""Text from outside as a terminal may be given it: nothing in it moves, hides or renames.

Rows, labels, names and messages can hold what a terminal takes for orders: escape sequences, the
C1 controls, carriage returns, and characters that turn the direction of writing around. Everything
on its way to standard output or error passes :func:`printable`: plain text in the streams of
``streams.py``, and what rich draws in ``console.py``, which lets rich's own colours and cursor
movements through.
"""

import re

#: The C0 and C1 controls except the line feed and the tab, the separators of lines and paragraphs,
#: what embeds, overrides or isolates a direction (arXiv 2111.00169), and tags, which are invisible.
_ORDERS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\U000e0000-\U000e007f]"
)


def printable(text: str) -> str:
    """Text with a visible sign in place of each character that a terminal takes for an order.

    Args:
        text: Any text.

    Returns:
        The text with as many characters, except that line ends are those of this system.
    """
    return _ORDERS.sub(_sign, text.replace("\r\n", "\n")) if _ORDERS.search(text) else text


def _sign(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code < 0x20:
        return chr(0x2400 + code)
    return "\N{SYMBOL FOR DELETE}" if code == 0x7F else "\N{REPLACEMENT CHARACTER}"
