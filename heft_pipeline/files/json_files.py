"""Files that are read by other processes while they are written, and after a crash."""

import json
from pathlib import Path
from typing import Any

from heft_pipeline.errors import UserError
from heft_pipeline.files.replaced import replaced


def write_json(path: Path, data: Any, durable: bool = True) -> None:
    """Write JSON so that readers see either the old file or the whole new one.

    Args:
        path: The file.
        data: JSON-ready data.
        durable: Whether to wait until the file is on disk.
    """
    with replaced(path, durable=durable) as partial:
        partial.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a file that can do without: a note that is written again, or that only displays read.

    Args:
        path: The file.

    Returns:
        The object that it holds; None where there is no file, or one that is cut off or broken.

    Raises:
        OSError: The file is there and cannot be read.
    """
    try:
        return json_object(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def require_json(path: Path, way_out: str) -> dict[str, Any]:
    """Read a file that nothing can stand in for.

    Args:
        path: The file.
        way_out: What to do where it is broken: a clause in the imperative.

    Returns:
        The object that it holds.

    Raises:
        UserError: It is missing, cut off or broken; the message names it and the way out.
        OSError: The file is there and cannot be read.
    """
    try:
        return json_object(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{path} is missing; {way_out}") from error
    except ValueError as error:
        raise UserError(
            f"{path} is cut off or broken ({error}), as after a crash or on a full disk; {way_out}"
        ) from error


def json_object(path: Path) -> dict[str, Any]:
    """The object that a file holds.

    Raises:
        ValueError: The file is cut off or broken.
        OSError: It is missing, or cannot be read.
    """
    text = path.read_bytes()
    if not text.strip(b"\0 \r\n\t"):  # a crash can leave a file's length without its content
        raise ValueError("it is empty")
    data = json.loads(text)  # bytes that are not UTF-8 are a ValueError as well
    if not isinstance(data, dict):
        raise ValueError(f"it holds a {type(data).__name__} and not an object")
    return data
