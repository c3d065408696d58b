"""The figures in the page: inside it, as long as it stays a page that can be mailed and opened."""

import base64
from pathlib import Path

from markupsafe import Markup

from heft_pipeline.report.drawing import Figure

#: The most bytes of figures in a page; further ones are linked.
MOST_BYTES = 2_500_000


class Pictures:
    """Puts figures into a page, and links them once the page holds enough.

    Args:
        folder: The page's folder.

    Attributes:
        linked: Whether a figure was linked.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._left = folder, MOST_BYTES
        self.linked = False

    def __call__(self, figure: Figure, kind: str) -> Markup:
        """A figure as HTML.

        Args:
            figure: The figure.
            kind: The class of the element.

        Returns:
            The element, with the picture and its data inside, or with links to their files, of
            which the caption then says that they are beside the page.
        """
        image, data = (self._embedded(path) for path in (figure.svg, figure.csv))
        self._left -= len(image) + len(data)
        beside = ""
        if self._left < 0:
            self.linked = True
            image, data = (path.relative_to(self._folder).as_posix() for path in
                           (figure.svg, figure.csv))  # fmt: skip
            beside = f" (This page is large, so the figure is not in it but in {image} beside it.)"
        return Markup(
            '<figure class="{kind}"><h3>{title}</h3>'
            '<img alt="{title}. {caption}" src="{image}" loading="lazy">'
            "<figcaption>{caption}{beside} "
            '<a class="download" download="{name}" href="{data}">Data (CSV)</a>'
            "</figcaption></figure>"
        ).format(
            kind=kind,
            title=figure.title,
            caption=figure.caption,
            beside=beside,
            name=figure.csv.name,
            image=image,
            data=data,
        )

    def _embedded(self, path: Path) -> str:
        kind = {".svg": "image/svg+xml", ".csv": "text/csv"}[path.suffix]
        return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
