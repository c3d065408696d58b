"""Removing what is no longer needed from a store."""

import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from heft_pipeline.errors import UserError
from heft_pipeline.files.byte_sizes import disk_use
from heft_pipeline.files.replaced import leftovers
from heft_pipeline.store.integrity import DAMAGED
from heft_pipeline.store.stage_folders import Store
from heft_pipeline.storekeeping.inventory import Entry, inventory

#: What is younger than this, in seconds, may belong to a process that has only just begun.
_YOUNG_SECONDS = 3600.0


@dataclass(frozen=True)
class Removable:
    """A file or folder that can go.

    Attributes:
        path: Where it is.
        what: What it is, for people.
        bytes: What it takes on disk.
        stage: The fingerprint of the stage that it is the whole of; empty for anything else.
    """

    path: Path
    what: str
    bytes: int
    stage: str = ""


def unneeded(store: Store) -> list[Removable]:
    """What no sweep needs: stages, files that were set aside, parts of files, the caches.

    Args:
        store: The store.

    Returns:
        What can go; nothing of a stage that a process holds, or that has only just been begun.

    Raises:
        UserError: There is no store, or a sweep's plan is broken.
    """
    found = []
    for entry in inventory(store):
        folder = store.folder(entry.fingerprint)
        if entry.state == "running":
            continue
        if not entry.sweeps:
            if time.time() - entry.changed > _YOUNG_SECONDS:
                what = f"stage {entry.label} ({entry.state}), which no sweep needs"
                found.append(Removable(folder, what, entry.bytes, entry.fingerprint))
            continue
        if (folder / DAMAGED).is_dir():
            size, _ = disk_use(folder / DAMAGED)
            what = f"damaged files of {entry.label}, which were set aside"
            found.append(Removable(folder / DAMAGED, what, size))
        found += _parts([folder, folder / "adapter", folder / "checkpoint"])
    cache = store.output_dir / ".cache"
    found += [
        Removable(path, "a tokenised task, which is made again when it is needed", size)
        for path in cache.glob("tokenized/*")
        if (size := disk_use(path)[0]) is not None
    ]
    return found + _parts([cache, cache / "tokenized", *store.output_dir.glob("sweeps/*")])


def _parts(folders: Iterable[Path]) -> list[Removable]:
    return [
        Removable(path, "part of a file that a killed process left", disk_use(path)[0])
        for folder in folders
        for path in leftovers(folder)
        if time.time() - path.lstat().st_mtime > _YOUNG_SECONDS
    ]


def named(store: Store, keys: Iterable[str]) -> list[Removable]:
    """Stages that somebody wants to have removed.

    Args:
        store: The store.
        keys: Their fingerprints.

    Raises:
        UserError: A process holds one, or another stage was trained on one and is not among them.
    """
    entries = {entry.fingerprint: entry for entry in inventory(store)}
    asked = [entries[key] for key in dict.fromkeys(keys)]
    for entry in asked:
        if entry.state == "running":
            raise UserError(f"{entry.label} ({entry.fingerprint}) is running; cancel it first")
    for child in entries.values():
        if child.stage is None or child in asked:
            continue
        for parent in child.stage.chain[:-1]:
            if any(parent.fingerprint == entry.fingerprint for entry in asked):
                raise UserError(
                    f"{child.label} ({child.fingerprint}) was trained on {parent.label} "
                    f"({parent.fingerprint}) and cannot be used without it; name both, or neither"
                )
    return [_whole_stage(store, entry) for entry in asked]


def _whole_stage(store: Store, entry: Entry) -> Removable:
    needed = ", ".join(entry.sweeps)
    what = f"stage {entry.label} ({entry.state})" + (f", which {needed} needs" if needed else "")
    return Removable(store.folder(entry.fingerprint), what, entry.bytes, entry.fingerprint)


def remove(store: Store, found: Iterable[Removable]) -> list[str]:
    """Remove things, except a stage that a process has taken meanwhile.

    Args:
        store: The store.
        found: What to remove.

    Returns:
        What was left, and why.
    """
    kept = []
    for one in found:
        if one.stage:
            # Under another name first, so that nobody sees half of a stage.
            gone = one.path.with_name(f".removed-{one.path.name}")
            with store.free(one.stage) as free:
                if not free:
                    kept.append(f"{one.path}: a process holds it now")
                    continue
                shutil.rmtree(gone, ignore_errors=True)
                one.path.rename(gone)
            shutil.rmtree(gone)
        elif one.path.is_dir() and not one.path.is_symlink():
            shutil.rmtree(one.path)
        else:
            one.path.unlink(missing_ok=True)
    return kept
