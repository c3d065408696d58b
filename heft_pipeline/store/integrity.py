"""Whether a finished stage's files are still what it wrote, and what is left where they are not.

``result.json`` holds a manifest of the stage's files and its own checksum, and has a copy, as
``metrics.jsonl`` has. A stage is complete only if its files fit the manifest. What does not fit is
moved to ``damaged/`` and made again from what does: the predictions from the adapter, the adapter
from the parent.
"""

import enum
import re
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heft_pipeline.files.json_files import write_json
from heft_pipeline.files.manifest import Manifest, make_manifest, misfits
from heft_pipeline.files.replaced import flush, replaced
from heft_pipeline.files.sealed import copy_of, read_sealed, seal, write_sealed
from heft_pipeline.files.untrusted import leads_inside

RESULT, STAGE, METRICS, PREDICTIONS = (
    "result.json", "stage.json", "metrics.jsonl", "predictions.parquet"
)  # fmt: skip
ADAPTER, DAMAGED, MANIFEST = "adapter", "damaged", "files"
#: The files that a stage's result stands on.
_FILES = (STAGE, METRICS, PREDICTIONS, "*_edits.csv", f"{ADAPTER}/**/*")
#: What has to be done about damaged files, as people are told.
TRAIN, SCORE, RESTORE = "trained again", "scored again", "restored"
_SCORED = re.compile(rf"{re.escape(PREDICTIONS)}|\w+_edits\.csv")


class Depth(enum.Enum):
    """How closely a stage's files are looked at.

    Attributes:
        SIZES: They are there and as large as they were.
        RECORDS: The contents of all files but the adapter's are compared, too.
        ALL: The contents of all files are compared.
    """

    SIZES = enum.auto()
    RECORDS = enum.auto()
    ALL = enum.auto()


@dataclass(frozen=True)
class Look:
    """What looking at a stage's folder shows.

    Attributes:
        result: The content of ``result.json``, or of its copy where that is broken; None for an
            unfinished stage, and where both are broken.
        damage: What is wrong with which file; empty for an unfinished stage, too.
    """

    result: dict[str, Any] | None
    damage: Mapping[str, str]


def look(folder: Path, depth: Depth = Depth.SIZES) -> Look:
    """Look whether a stage is finished and its files fit its manifest; nothing is written.

    Args:
        folder: The stage's folder.
        depth: How closely to look.
    """
    found = read_sealed(folder / RESULT)
    result, why = found.data, found.why
    if result is not None and (lacking := _lacking(result)):
        result, why = None, why or lacking
    damage = {RESULT: why} if why else {}
    if result is None:
        return Look(None, damage)
    return Look(result, damage | _misfits(folder, result, depth))


def _lacking(result: Mapping[str, Any]) -> str:
    """Why a decoded ``result.json`` is none; empty if it is one."""
    if "accuracy" not in result:
        return "holds no accuracy"
    files = result.get(MANIFEST, {})
    if not isinstance(files, dict):
        return "holds no manifest of the stage's files"
    for name, entry in files.items():
        if not leads_inside(name) or not isinstance(entry, dict):
            return f"names {name!r}, which is no file of the stage"
        if not {"bytes", "sha256"} <= set(entry):
            return f"lacks the size or the checksum of {name}"
    return ""


def _misfits(folder: Path, result: Mapping[str, Any], depth: Depth) -> dict[str, str]:
    if MANIFEST not in result:
        return _missing(folder, result)
    files: Manifest = result[MANIFEST]
    hashed: Iterable[str] = ()
    if depth is not Depth.SIZES:
        hashed = [name for name in files if depth is Depth.ALL or not _of_adapter(name)]
    return misfits(folder, files, hashed)


def _missing(folder: Path, result: Mapping[str, Any]) -> dict[str, str]:
    """What a stage without a manifest lacks; versions before there were manifests wrote such."""
    found = {}
    if not (folder / PREDICTIONS).is_file():
        found[PREDICTIONS] = "is missing"
    if result.get("trainable_params") and not any((folder / ADAPTER).glob("**/*.safetensors")):
        found[ADAPTER] = "is missing"
    return found


def _of_adapter(name: str) -> bool:
    return name.split("/")[0] == ADAPTER


def seal_result(folder: Path, result: Mapping[str, Any]) -> None:
    """Write ``result.json``, last of all of a stage's files and when they are on disk.

    Args:
        folder: The stage's folder.
        result: What it is to hold, as JSON-ready data, without the manifest.
    """
    metrics = folder / METRICS
    if metrics.is_file():
        _copy(metrics, copy_of(metrics))
    write_sealed(folder / RESULT, {**result, MANIFEST: make_manifest(folder, _FILES)})


def _copy(source: Path, to: Path) -> None:
    to.parent.mkdir(exist_ok=True)
    with replaced(to) as partial:
        shutil.copyfile(source, partial)


def remedy(folder: Path, damage: Mapping[str, str]) -> str:
    """What has to be done about damaged files.

    Args:
        folder: The stage's folder.
        damage: The files, as :func:`look` gives them.

    Returns:
        :data:`TRAIN`, :data:`SCORE` or :data:`RESTORE`.
    """
    result = _copied_result(folder)
    lost = RESULT in damage and result is None
    if METRICS in damage:
        lost = lost or result is None or not _metrics_have_copy(folder, result)
    if lost or any(_of_adapter(name) for name in damage):
        return TRAIN
    return SCORE if any(map(_SCORED.fullmatch, damage)) else RESTORE


def _metrics_have_copy(folder: Path, result: Mapping[str, Any]) -> bool:
    """Whether there is a copy of a stage's ``metrics.jsonl`` as it was when it finished."""
    entry = result.get(MANIFEST, {}).get(METRICS)
    copies = copy_of(folder / METRICS).parent
    return entry is not None and not misfits(copies, {METRICS: entry}, [METRICS])


def set_aside(folder: Path, damage: Mapping[str, str]) -> Path:
    """Move damaged files away, so that the stage is unfinished; its lock is held.

    Args:
        folder: The stage's folder.
        damage: The files, as :func:`look` gives them.

    Returns:
        The folder that they are in now.
    """
    result, copy = read_sealed(folder / RESULT).data, copy_of(folder / RESULT)
    if result is not None and _copied_result(folder) is None:
        copy.parent.mkdir(exist_ok=True)
        write_json(copy, seal(result))
    aside = _new_folder(folder / DAMAGED)
    names = {ADAPTER if _of_adapter(name) else name for name in damage}
    for name in sorted(names | {RESULT}, key=lambda name: name != RESULT):  # unfinished from now on
        if (folder / name).exists():
            (aside / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).rename(aside / name)
    flush(folder)
    return aside


def _new_folder(parent: Path) -> Path:
    parent.mkdir(exist_ok=True)
    number = 0
    while True:
        folder = parent / (time.strftime("%Y%m%d-%H%M%S") + (f"-{number}" if number else ""))
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
        else:
            return folder


def _copied_result(folder: Path) -> dict[str, Any] | None:
    """What the copy of a stage's ``result.json`` holds; None if there is none that is whole."""
    found = read_sealed(copy_of(folder / RESULT)).data
    return None if found is None or _lacking(found) else found


def salvage(folder: Path) -> Look | None:
    """What is left of a stage that was finished and whose ``result.json`` is gone.

    A ``metrics.jsonl`` that is damaged is replaced by its copy. The stage's lock is held.

    Args:
        folder: The stage's folder.

    Returns:
        The result, and the files that do not fit it; None if nothing is known of them, so that the
        stage has to be trained.
    """
    result = _copied_result(folder)
    if result is None:
        return None
    lost = _misfits(folder, result, Depth.ALL)
    if METRICS in lost and _metrics_have_copy(folder, result):
        _copy(copy_of(folder / METRICS), folder / METRICS)
        del lost[METRICS]
    return Look(result, lost)


def forget_result(folder: Path) -> None:
    """Remove what would let a stage count as finished, before it is trained again."""
    for path in (folder / RESULT, copy_of(folder / RESULT), copy_of(folder / METRICS)):
        path.unlink(missing_ok=True)
