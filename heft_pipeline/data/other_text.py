"""Text that a task does not touch, on which it is measured what training has forgotten."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heft_pipeline.data import demo
from heft_pipeline.errors import UserError
from heft_pipeline.files.untrusted import refuse_special

BUILTIN, OFF = "builtin", "off"
KEY = "report.forgetting"
#: The tokens of a window, special ones included. The first half is the prompt, which adapters
#: may edit; the loss is measured on the second half.
WINDOW_TOKENS = 128
#: The most windows that are read of a long text; they are spread evenly over it.
MOST_WINDOWS = 256
_ENGLISH = Path(__file__).parent / "everyday_english.txt"
_DEMO_MODELS = ("builtin:tiny", str(demo.MODEL.resolve()))


@dataclass(frozen=True)
class OtherText:
    """A text file and what identifies its content.

    Attributes:
        name: For people: the file's name.
        path: The file.
        digest: 16 hex digits of a SHA-256 of its content and of how it is cut into windows.
    """

    name: str
    path: str
    digest: str

    def read(self) -> str:
        """The text.

        Raises:
            UserError: It cannot be read, or is not what it was when the sweep was planned.
        """
        text = _read(Path(self.path))
        if _digest(text) != self.digest:
            raise UserError(f"{KEY}={self.path} has changed since the sweep was planned")
        return text


def text_note(asked: str) -> dict[str, str] | None:
    """What ``plan.json`` says about ``report.forgetting``.

    Args:
        asked: The setting: ``builtin``, ``off`` or a file.

    Returns:
        Data for :func:`chosen_text`; None for ``off``.

    Raises:
        UserError: The file does not exist, is empty, or is not UTF-8.
    """
    if asked == OFF:
        return None
    if asked == BUILTIN:
        return {"name": BUILTIN}
    path = Path(asked).expanduser().resolve()
    return {"name": path.name, "path": str(path), "digest": _digest(_read(path))}


def chosen_text(note: Mapping[str, str] | None, model: str) -> OtherText | None:
    """The text that a model is measured on.

    Args:
        note: What :func:`text_note` returned.
        model: The model's id or located folder. The shipped model knows only the demo's own
            language; any other gets English if the builtin text is asked for.

    Returns:
        The text; None if nothing is to be measured.
    """
    if note is None:
        return None
    if "path" in note:
        return OtherText(note["name"], note["path"], note["digest"])
    path = demo.HELD_OUT_TEXT if model in _DEMO_MODELS else _ENGLISH
    return OtherText(path.name, str(path), _digest(_read(path)))


def is_builtin(note: Mapping[str, Any]) -> bool:
    """Whether the text is one of those that ship, which nobody has chosen for the model."""
    return "path" not in note


def _read(path: Path) -> str:
    refuse_special(path, KEY)
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise UserError(
            f"{KEY}={path} cannot be read ({error.strerror}); give a text file, or use "
            f"{KEY}={BUILTIN} or {KEY}={OFF}"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{KEY}={path} is not UTF-8 text (byte {error.start}); convert it, or give another file"
        ) from error
    if not text.strip():
        raise UserError(f"{KEY}={path} is empty; give a text file, or use {KEY}={BUILTIN}")
    return text


def _digest(text: str) -> str:
    content = f"{WINDOW_TOKENS} {MOST_WINDOWS}\n{text}"
    return hashlib.sha256(content.encode()).hexdigest()[:16]
