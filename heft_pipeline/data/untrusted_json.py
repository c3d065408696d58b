"""Reading JSON files and names of files that a stranger may have written.

Whatever such a file says, it is read with bounded memory or refused in one message, and a name in
it leads nowhere but into its own folder.
"""

import json
from pathlib import Path, PurePosixPath
from typing import Any

from heft_pipeline.errors import UserError

#: Larger than every configuration and every list of shards; what is larger is something else.
MOST_BYTES = 64 * 2**20


def read_untrusted(file: Path, name: str, what: str = "") -> dict[str, Any]:
    """Read a JSON object.

    Args:
        file: The file.
        name: What to call its folder in messages, e.g. ``model.id=FOLDER``.
        what: What to give instead, for the message where there is none.

    Returns:
        The object.

    Raises:
        UserError: There is none, or it is no JSON object, or too large or nested too deep for one.
    """
    try:
        if (size := file.stat().st_size) > MOST_BYTES:
            raise UserError(
                f"{name}: {file.name} has {size / 2**20:,.0f} MB, and no configuration is larger "
                f"than {MOST_BYTES // 2**20}; {what or 'give a folder with a whole model'}"
            )
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{name} has no {file.name}; {what}") from None
    except (ValueError, RecursionError) as error:
        said = "is nested too deep" if isinstance(error, RecursionError) else str(error)
        raise UserError(f"{name}: {file.name} is not JSON ({said})") from error
    if not isinstance(found, dict):
        raise UserError(f"{name}: {file.name} is not a JSON object")
    return found


def name_inside(named: object, listed_in: str, name: str) -> str:
    """A file's name that another file lists, refused if it leads out of the folder.

    Args:
        named: The name.
        listed_in: The file that lists it.
        name: What to call the folder in messages.

    Returns:
        The name.

    Raises:
        UserError: It is absolute, goes up, or is no name of a file.
    """
    text = named if isinstance(named, str) else ""
    path = PurePosixPath(text)
    plain = text and not path.is_absolute() and ".." not in path.parts and text.isprintable()
    if not plain or "\\" in text:
        raise UserError(
            f"{name}: {listed_in} names the file {str(named)[:80]!r}, which does not lie in the "
            "folder; get the folder from a source that you trust"
        )
    return text
