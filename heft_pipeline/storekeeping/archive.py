"""Stages as one file for another machine's store: a plain tar archive of their folders."""

import re
import secrets
import shutil
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from heft_pipeline.errors import UserError
from heft_pipeline.files.json_files import require_json
from heft_pipeline.files.replaced import flush, replaced
from heft_pipeline.files.sealed import COPIES
from heft_pipeline.files.untrusted import leads_inside
from heft_pipeline.plan.stage_spec import StageSpec, from_json
from heft_pipeline.store.integrity import MANIFEST, RESULT, STAGE, Depth, look
from heft_pipeline.store.stage_folders import FORGETTING, Store

_MEMBER = re.compile(r"stages/([0-9a-f]{16})/(.+)")
_BROKEN = (tarfile.TarError, EOFError, ValueError)


def write_archive(store: Store, stages: Iterable[StageSpec], to: Path) -> list[StageSpec]:
    """Write complete stages, and those that they stand on, to a file.

    Args:
        store: The store that holds them.
        stages: The stages.
        to: The file; it must not exist.

    Returns:
        All stages that were written, parents first.

    Raises:
        UserError: A stage is not complete, or not what it was, or the file exists.
    """
    if to.exists():
        raise UserError(f"--to {to} exists already; give a new file")
    chain = {part.fingerprint: part for stage in stages for part in stage.chain}
    ordered = sorted(chain.values(), key=lambda stage: len(stage.chain))
    for stage in ordered:
        store.require_whole(stage)
    to.parent.mkdir(parents=True, exist_ok=True)
    with replaced(to) as partial, tarfile.open(partial, "w") as archive:
        for stage in ordered:
            folder = store.folder(stage.fingerprint)
            for path in _files(folder):
                name = f"stages/{folder.name}/{path.relative_to(folder).as_posix()}"
                archive.add(path, name, recursive=False, filter=_nobodys)
    return ordered


def _files(folder: Path) -> list[Path]:
    """The files of a complete stage that another store needs."""
    result = require_json(folder / RESULT, "run the sweep's command again")
    names = [*result.get(MANIFEST, {}), RESULT, FORGETTING]
    if MANIFEST not in result:  # a stage of a version without manifests
        names += [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
        names = [name for name in dict.fromkeys(names) if not name.startswith((".", "damaged/"))]
    copies = [f"{COPIES}/{path.name}" for path in sorted((folder / COPIES).glob("*.json*"))]
    found = [folder / name for name in (*names, *copies)]
    return [path for path in found if path.is_file() and not path.is_symlink()]


def _nobodys(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Without the names of who wrote a file here."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


@dataclass(frozen=True)
class Imported:
    """What came of an archive.

    Attributes:
        new: The stages that the store has now and did not have.
        known: Those that it had already, which stay as they were.
    """

    new: tuple[StageSpec, ...]
    known: tuple[StageSpec, ...]


def read_archive(archive: Path, store: Store) -> Imported:
    """Add the stages of a file that :func:`write_archive` wrote to a store.

    Nothing is added unless every stage's files fit its manifest, and its settings its fingerprint.

    Args:
        archive: The file.
        store: The store, which is created if it is missing.

    Raises:
        UserError: The file is no such archive, or a stage in it is not what it was.
    """
    if not archive.is_file():
        raise UserError(f"{archive} is not a file; give an archive that export wrote")
    store.require_writable()
    waiting = store.output_dir / "stages" / f".import-{secrets.token_hex(4)}"
    try:
        keys = _unpack(archive, waiting)
        stages = [_checked(waiting / key, key, archive) for key in keys]
        lacking = {
            part.label: part.fingerprint
            for stage in stages
            for part in stage.chain[:-1]
            if part.fingerprint not in keys and not store.is_complete(part.fingerprint)
        }
        for label, key in lacking.items():
            raise UserError(f"{archive} lacks the stage {key} ({label}) that others stand on")
        new = [stage for stage in stages if _place(waiting / stage.fingerprint, stage, store)]
    finally:
        shutil.rmtree(waiting, ignore_errors=True)
    return Imported(tuple(new), tuple(stage for stage in stages if stage not in new))


def _unpack(archive: Path, to: Path) -> list[str]:
    """Write an archive's files below a new folder; returns the stages' fingerprints."""
    keys = dict[str, None]()
    try:
        with tarfile.open(archive, "r:") as opened:  # nothing that unpacks to more than it is
            for member in opened:
                match = _MEMBER.fullmatch(member.name)
                plain = member.isreg() and not member.issparse()
                if match is None or not plain or not leads_inside(member.name):
                    raise ValueError(f"it holds {member.name!r}, which is no file of a stage")
                keys[match.group(1)] = None
                path = to / match.group(1) / match.group(2)
                path.parent.mkdir(parents=True, exist_ok=True)
                source = opened.extractfile(member)
                if source is None:
                    raise ValueError(f"it holds {member.name!r}, which cannot be read")
                with path.open("xb") as target:  # as the umask says, whatever the archive says
                    shutil.copyfileobj(source, target, 1 << 20)
    except _BROKEN as error:
        raise UserError(f"{archive} is no archive of stages, or it is damaged: {error}") from error
    if not keys:
        raise UserError(f"{archive} holds no stages")
    return list(keys)


def _checked(folder: Path, key: str, archive: Path) -> StageSpec:
    """A stage that was unpacked, if it is what it says."""
    found = look(folder, Depth.ALL)
    for name, why in found.damage.items():
        raise UserError(f"{archive}: {name} of the stage {key} {why}; nothing was added")
    if found.result is None:
        raise UserError(f"{archive}: the stage {key} has no {RESULT}; nothing was added")
    stage = from_json(require_json(folder / STAGE, "nothing was added"))
    if stage.fingerprint != key:
        raise UserError(
            f"{archive}: the settings of the stage {key} have the fingerprint {stage.fingerprint}, "
            "so they were changed or another version wrote them; nothing was added"
        )
    return stage


def _place(folder: Path, stage: StageSpec, store: Store) -> bool:
    """Give a stage its place in the store; false if the store has it, or is training it."""
    place = store.folder(stage.fingerprint)
    place.mkdir(exist_ok=True)
    with store.free(stage.fingerprint) as free:
        if not free or store.is_complete(stage.fingerprint):
            return False
        for path in sorted(folder.rglob("*"), key=lambda path: path == folder / RESULT):
            if path.is_file():  # the result last, as when a stage ends
                target = place / path.relative_to(folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                flush(path)
                path.replace(target)
        flush(place)
        shutil.rmtree(place / "checkpoint", ignore_errors=True)
        store.forget_failure(stage.fingerprint)
        return True
