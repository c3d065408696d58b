"""A store that is read for others to see: nothing outside it is read, whatever its files say.

A folder of a store may have come from a stranger. A link in it that leads out would show a file
that is nobody else's business, and a pipe would never end.
"""

import os
import stat
from pathlib import Path
from typing import Any

from heft_pipeline.errors import UserError
from heft_pipeline.files.sealed import COPIES, read_sealed
from heft_pipeline.plan.stage_spec import StageSpec
from heft_pipeline.store.stage_folders import Store
from heft_pipeline.store.sweep_folders import PLAN, Sweep
from heft_pipeline.storekeeping.inventory import read_stage

#: No file is below this path, on any system with such a device.
_NOTHING = Path(os.devnull) / "not read"


def why_foreign(folder: Path, root: Path) -> str:
    """Why a folder of a store is not read.

    Args:
        folder: The folder, which need not exist.
        root: The store's ``output_dir``.

    Returns:
        A sentence's end, such as ``holds the link X, which leads out of the store``; empty where
        the folder may be read.
    """
    real = os.path.realpath(root)
    if not _inside(folder, real):
        return "is a link that leads out of the store"
    return _in_files(folder, real)


def _in_files(folder: Path, real: str) -> str:
    try:
        entries = list(os.scandir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except PermissionError:
        return "may not be read by this user"
    for entry in entries:
        if entry.is_symlink() and not _inside(Path(entry.path), real):
            return f"holds the link {entry.name}, which leads out of the store"
        if not entry.is_symlink() and not (entry.is_file() or entry.is_dir()):
            return f"holds {entry.name}, which is a pipe, a socket or a device"
        if entry.name == COPIES and (said := _in_files(folder / COPIES, real)):
            return said
    return ""


def _inside(path: Path, real: str) -> bool:
    found = os.path.realpath(path)
    return found == real or found.startswith(real.rstrip(os.sep) + os.sep)


def read_inside(path: Path, root: Path, most_bytes: int) -> bytes:
    """Read a file of a store.

    Args:
        path: The file.
        root: The store's ``output_dir``.
        most_bytes: What a larger file is refused for.

    Raises:
        FileNotFoundError: There is no such file in the store.
        UserError: It is too large.
        OSError: It cannot be read.
    """
    real = os.path.realpath(root)
    found = Path(os.path.realpath(path))
    if not _inside(found, real) or not stat.S_ISREG(found.stat().st_mode):
        raise FileNotFoundError(path)
    opened = os.open(found, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(opened, "rb") as stream:
        if (size := os.fstat(opened).st_size) > most_bytes:
            raise UserError(
                f"{path.name} has {size / 2**20:,.0f} MB, and no more than "
                f"{most_bytes / 2**20:,.0f} MB are shown; open the file itself"
            )
        return stream.read(most_bytes)


class GuardedStore(Store):
    """A store in which a stage whose folder leads out of it is as if it were not there.

    Args:
        output_dir: The store's folder.
    """

    def __init__(self, output_dir: Path) -> None:
        super().__init__(output_dir)
        self._foreign: dict[str, str] = {}

    def foreign(self, fingerprint: str) -> str:
        """Why a stage is not read; empty where it is. Looked at once in this object's life."""
        if fingerprint not in self._foreign:
            folder = self.output_dir / "stages" / fingerprint
            wrong = "" if fingerprint.isalnum() else "has a name that no stage has"
            self._foreign[fingerprint] = wrong or why_foreign(folder, self.output_dir)
        return self._foreign[fingerprint]

    def folder(self, fingerprint: str) -> Path:
        """A stage's folder; of a foreign one, a folder that cannot be."""
        return _NOTHING if self.foreign(fingerprint) else super().folder(fingerprint)

    def stage(self, fingerprint: str) -> StageSpec | None:
        """A stage's settings; None where there are none that can be read."""
        return None if self.foreign(fingerprint) else read_stage(self, fingerprint)


class GuardedSweep(Sweep):
    """A sweep that is read for others to see.

    Args:
        folder: The sweep's folder.

    Raises:
        UserError: Something in the folder leads out of the store.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._store = GuardedStore(folder.parent.parent)
        if wrong := why_foreign(folder, self._store.output_dir):
            raise UserError(f"the sweep {folder.name} {wrong}, so it is not read")

    @property
    def store(self) -> GuardedStore:
        """The store that holds the sweep's stages."""
        return self._store

    @property
    def from_copy(self) -> bool:
        """Whether the plan is broken, and its copy is read in its place."""
        return read_sealed(self.folder / PLAN).from_copy

    def _whole(self) -> dict[str, Any] | None:
        """What ``plan.json`` or its copy holds; the page says which, and not the terminal."""
        return read_sealed(self.folder / PLAN).data


def guarded_sweeps(output_dir: Path) -> list[Path]:
    """The folders of a store that hold a sweep, the one that was asked for last first."""
    found = []
    for entry in os.scandir(output_dir / "sweeps") if (output_dir / "sweeps").is_dir() else ():
        try:
            changed = (Path(entry.path) / PLAN).lstat().st_mtime
        except (FileNotFoundError, NotADirectoryError):
            continue
        found.append((changed, Path(entry.path)))
    return [path for _, path in sorted(found, reverse=True)]
