"""Files that a stranger may have written.

Whatever such a file is or says, it is read with bounded memory and time or refused in one message,
and a name in it leads nowhere but into its own folder.
"""

import json
from pathlib import Path, PurePosixPath
from typing import Any

from heft_pipeline.errors import UserError

#: Larger than every configuration and every list of shards; what is larger is something else.
MOST_BYTES = 64 * 2**20


def refuse_special(path: Path, name: str) -> None:
    """Refuse what is no file, such as a pipe, which reading would wait for or never end with.

    Args:
        path: What is about to be read; a folder, or nothing at all, is for the reader to refuse.
        name: How the message begins, e.g. ``data.train_split=train``.

    Raises:
        UserError: It is a pipe, a socket or a device.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UserError(f"{name}: {path} is a pipe, a socket or a device; give a file in its place")


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
    if not (text and leads_inside(text) and text.isprintable()) or "\\" in text:
        raise UserError(
            f"{name}: {listed_in} names the file {str(named)[:80]!r}, which does not lie in the "
            "folder; get the folder from a source that you trust"
        )
    return text


def leads_inside(name: str) -> bool:
    """Whether a file's name, with ``/`` between its parts, leads nowhere but into a folder."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts
