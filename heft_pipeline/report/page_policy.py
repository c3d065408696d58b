"""What a browser may do with a report's page."""

import base64
import hashlib
from pathlib import Path

#: The page's only script, and its look, which the local web view has as well.
SORT_SCRIPT, LOOK = (Path(__file__).parent / "templates" / name for name in ("sort.js", "look.css"))


def content_policy(script: str, linked: bool = False) -> str:
    """Show the page with its own figures, and run this one script.

    Args:
        script: The text of the page's script element.
        linked: Whether there are figures beside the page.

    Returns:
        The content of a ``Content-Security-Policy``.
    """
    beside = " 'self' file:" if linked else ""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; "
        f"img-src data:{beside}; base-uri 'none'; form-action 'none'"
    )
