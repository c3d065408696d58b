"""What the README and the pages of docs/ tell people to type, read off the pages."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"(?<!`)`((?:python -m|heft [^\s`]+) [^`\n]+)`(?!`)")
_NAMED = re.compile(r"(?:# @package _global_\n)?# ([\w./-]+\.\w+)\n")


@dataclass(frozen=True)
class Block:
    """A fenced block, or a command in a sentence or a table.

    Attributes:
        where: The page and the line, for messages.
        language: What stands behind the fence; ``bash`` for a command in a sentence.
        text: What is in it.
    """

    where: str
    language: str
    text: str

    @property
    def file(self) -> str:
        """The file to save the block as, which its first comment names; empty for none."""
        named = _NAMED.match(self.text)
        return named[1] if named else ""

    def commands(self) -> Iterator[str]:
        """The commands of a block of bash, one by one, without comments."""
        for line in self.text.replace("\\\n", " ").splitlines():
            for command in re.split(r"\s&&\s", _uncommented(line)):
                if command:
                    yield command


def blocks(page: Path) -> list[Block]:
    """A page's blocks and the commands in its sentences, in their order."""
    text, found = page.read_text(), []

    def where(at: int) -> str:
        return f"{page.relative_to(ROOT)}:{text.count(chr(10), 0, at) + 1}"

    for match in _FENCE.finditer(text):
        found.append((match.start(), Block(where(match.start()), match[1], match[2])))
    outside = _FENCE.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)
    for match in _INLINE.finditer(outside):
        command = match[1].replace("\\|", "|")
        found.append((match.start(), Block(where(match.start()), "bash", command)))
    return [block for _, block in sorted(found, key=lambda one: one[0])]


def _uncommented(line: str) -> str:
    """A line of bash without its comment, its blanks single."""
    words = shlex.shlex(line, posix=False, punctuation_chars=False)
    words.whitespace_split, words.commenters = True, "#"
    return " ".join(words)
