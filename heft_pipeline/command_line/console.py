"""Rich's console for text from outside."""

from collections.abc import Iterable, Iterator
from typing import IO, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.style import Style
from rich.text import Text

from heft_pipeline.command_line.printable import printable
from heft_pipeline.command_line.secrets_kept import masked


class TextConsole(Console):
    """A console that shows text from outside as it is.

    A string is shown as it is: square brackets are no markup and ``:words:`` no emoji. Give a
    :class:`rich.text.Text` where a part is to have a style.

    Args:
        **options: As rich's.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    @property
    def file(self) -> IO[str]:
        """Where rich writes: past what takes its own sequences out."""
        given = super().file
        unfiltered: IO[str] = getattr(given, "unfiltered", given)
        return unfiltered

    @file.setter
    def file(self, new_file: IO[str]) -> None:
        self._file = new_file

    def render_str(self, text: str, **options: Any) -> Text:
        """See rich; the text is made printable before it is laid out."""
        return super().render_str(printable(masked(text)), **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """See rich; what it draws is printable, and nothing in it is hidden or a link."""
        return self._harmless(super().render(renderable, options))

    @staticmethod
    def _harmless(segments: Iterable[Segment]) -> Iterator[Segment]:
        for segment in segments:
            text, style, control = segment
            if control:
                yield segment
                continue
            if style and (style.link or style.conceal):
                style = style.update_link(None) + Style(conceal=False)
            yield Segment(printable(masked(text)), style)


def marked(mark: str, style: str, text: str) -> Text:
    """A line that begins with a coloured mark.

    Args:
        mark: The mark.
        style: Its style; empty for none.
        text: The rest of the line.

    Returns:
        The line.
    """
    return Text.assemble((mark, style), f" {text}")
