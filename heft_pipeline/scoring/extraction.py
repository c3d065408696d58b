"""The part of a written answer that counts, and whether it is accepted."""

from collections.abc import Sequence
from dataclasses import dataclass

from heft_pipeline.data.settings import DataSettings
from heft_pipeline.scoring.written import extracted, matches


@dataclass(frozen=True)
class Extraction:
    """How written answers are read and compared.

    Attributes:
        pattern: A regular expression for the part that counts; None for the whole text.
        which: ``first`` or ``last``: which match counts.
        normalize: ``exact`` or ``squad``: how texts are compared.
    """

    pattern: str | None
    which: str
    normalize: str

    def of(self, text: str) -> str | None:
        """The part of a text that counts; None where there is none."""
        return extracted(text, self.pattern, self.which)

    def accepts(self, found: str | None, accepted: Sequence[str]) -> bool:
        """Whether a part is that of an accepted text.

        Args:
            found: The part, from :meth:`of`.
            accepted: The whole accepted texts. One without such a part stands as it is.
        """
        return matches(found, [self.of(text) or text for text in accepted], self.normalize)


def extraction(data: DataSettings) -> Extraction:
    """How a task's written answers are read and compared."""
    return Extraction(data.extract, data.extract_match, data.compare)
