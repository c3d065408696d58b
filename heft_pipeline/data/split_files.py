"""Which files of a local folder are a split: one rule for reading and for the fingerprint."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from heft_pipeline.data.settings import DataSettings
from heft_pipeline.errors import UserError
from heft_pipeline.files.untrusted import name_inside, read_untrusted, refuse_special

#: The format of a folder that ``datasets``' ``save_to_disk`` wrote.
SAVED = "save_to_disk"
_STATE, _INFO = "state.json", "dataset_info.json"
_FORMATS = "jsonl|json|csv|tsv|parquet|arrow"
#: A file's name: its stem and its format. Only text is compressed from outside.
_NAME = re.compile(r"(.+)\.(?:(jsonl|json|csv|tsv)(?:\.(?:gz|bz2|xz|zst))?|(parquet|arrow))")
#: A shard's number and how many there are. The hub appends a hash that differs from shard to shard.
_SHARD = r"-(\d+)-of-(\d+)(?:-\w+)?"
_SPLITS = ("train_split", "dev_split", "eval_split")


@dataclass(frozen=True)
class SplitFiles:
    """The files that are a split.

    Attributes:
        format: ``jsonl``, ``json``, ``csv``, ``tsv``, ``parquet``, ``arrow`` or :data:`SAVED`.
        files: Every file that is read, in the order of the rows.
    """

    format: str
    files: tuple[Path, ...]


@dataclass(frozen=True)
class _Candidate:
    """What could be the split: a file, the shards of one set, or a folder."""

    format: str
    paths: tuple[Path, ...]
    shards: int | None = None


def files_read(data: DataSettings, folder: Path) -> list[Path]:
    """Find every file that a task's splits are read from.

    Args:
        data: The task.
        folder: Its folder.

    Raises:
        UserError: As for :func:`split_files`.
    """
    found: list[Path] = []
    for key in _SPLITS:
        if (split := getattr(data, key)) is not None:
            where = f"data.{key}={split}"
            files = split_files(folder, split, where, data.subset).files
            for file in files:
                refuse_special(file, where)
            found += files
    return found


def split_files(folder: Path, split: str, where: str, subset: str | None = None) -> SplitFiles:
    """Find the files of a split.

    A split is one of: a file ``SPLIT.jsonl`` (or of another format); all shards
    ``SPLIT-00000-of-00002.jsonl``; a folder ``SPLIT/`` or ``SPLIT.parquet/`` with part files of one
    format, or as ``datasets``' ``save_to_disk`` writes it. If there is none in the folder, its
    ``data/`` is searched, where downloaded hub repositories have theirs.

    Args:
        folder: The task's folder.
        split: The split's name.
        where: The setting that names the split, for messages.
        subset: The folder in ``folder`` or in its ``data/`` to search instead, unless there is none
            and the files lie in ``folder`` itself.

    Raises:
        UserError: There is no such split or more than one, or a shard is missing.
    """
    places = [folder, folder / "data"]
    searched = places
    if subset is not None:
        searched = [one / subset for one in places if (one / subset).is_dir()]
        if not searched and not _subsets(places, split):  # it may be a copy of one subset alone
            searched = [one for one in places if one.is_dir() and any(_candidates(one, split))]
        if not searched:
            raise UserError(
                f"data.subset={subset}: {folder} has no folder {subset}; it has "
                f"{_content(folder)}; use data.subset=null for the files in {folder} itself"
            )
    for place in searched:
        if place.is_dir() and (found := list(_candidates(place, split))):
            return _only(found, place, split, where)
    if (folder / _STATE).is_file():
        raise UserError(
            f"{where}: {folder} is one data set that save_to_disk wrote; save a DatasetDict "
            "with a data set for each split"
        )
    raise UserError(
        f"{where}: {searched[0]} has no {split}.jsonl or {split}.parquet; it has "
        f"{_content(searched[0])}; set data.train_split, data.dev_split and data.eval_split to the "
        "files' names (formats: .jsonl, .json, .csv, .tsv, .parquet, .arrow)"
    )


def _subsets(places: Iterable[Path], split: str) -> list[Path]:
    """The folders that have a split of their own."""
    folders = [path for place in places if place.is_dir() for path in place.iterdir()]
    return [
        path
        for path in folders
        if path.is_dir() and path.name != "data" and any(_candidates(path, split))
    ]


def _candidates(place: Path, split: str) -> Iterator[_Candidate]:
    sets: dict[tuple[str, str], list[Path]] = {}
    for path in sorted(place.iterdir()):
        if path.is_dir():
            named = re.fullmatch(rf"{re.escape(split)}(?:\.({_FORMATS}))?", path.name)
            if named and _parts(path):
                yield _Candidate(named[1] or "", (path,))
        elif name := _NAME.fullmatch(path.name):
            if name[1] == split:
                yield _Candidate(_format(path), (path,))
            elif shard := re.fullmatch(re.escape(split) + _SHARD, name[1]):
                sets.setdefault((shard[2], path.name.removeprefix(name[1])), []).append(path)
    for (count, _), paths in sets.items():
        yield _Candidate(_format(paths[0]), tuple(paths), int(count))


def _only(found: list[_Candidate], place: Path, split: str, where: str) -> SplitFiles:
    """The files of the only candidate."""
    one, paths = found[0], [path for candidate in found for path in candidate.paths]
    numbers = _numbers(one.paths) if one.shards is not None else []
    if len(found) > 1 or len(set(numbers)) < len(numbers):
        raise UserError(
            f"{where}: {place} has more than one {split}: {', '.join(map(_shown, paths))}; "
            "keep one of them"
        )
    if one.shards is not None:
        return _all_shards(one.format, one.paths, one.shards, f"{where}: {place}", split)
    if one.paths[0].is_dir():
        return _in_folder(one.paths[0], one.format, where)
    return SplitFiles(one.format, one.paths)


def _all_shards(
    format: str, paths: tuple[Path, ...], count: int, place: str, what: str
) -> SplitFiles:
    missing = sorted(set(range(count)) - set(_numbers(paths)))
    if missing:
        raise UserError(
            f"{place} has {len(paths)} of {count} files of {what}; numbers "
            f"{', '.join(map(str, missing))} are missing"
        )
    return SplitFiles(format, tuple(sorted(paths, key=lambda path: _numbers((path,)))))


def _in_folder(folder: Path, format: str, where: str) -> SplitFiles:
    """The files of a split that is a folder, in the order of their names."""
    if (folder / _STATE).is_file():
        return _saved(folder, where)
    parts = _parts(folder)
    format = format or next(filter(None, map(_format, parts)), "")
    if wrong := [path for path in parts if _format(path) != format or not format]:
        raise UserError(
            f"{where}: {folder} has {_shown(wrong[0])}, but a folder that is a split may hold only "
            f"{format or _FORMATS.replace('|', ', ')} files, of one format; move the others out"
        )
    counts = {shard[2] if (shard := _shard(path)) else "" for path in parts}
    if len(counts) == 1 and (count := counts.pop()):
        return _all_shards(format, parts, int(count), f"{where}: {folder}", folder.name)
    return SplitFiles(format, parts)


def _saved(folder: Path, where: str) -> SplitFiles:
    """The files of a data set that ``save_to_disk`` wrote: it lists its own."""
    try:
        state = read_untrusted(folder / _STATE, where)
        named = [file["filename"] for file in state["_data_files"]]
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{where}: {folder / _STATE} does not list the files of a data set; save it again "
            "with save_to_disk"
        ) from error
    rows = [folder / name_inside(one, _STATE, f"{where}: {folder}") for one in named]
    files = (folder / _STATE, folder / _INFO, *rows)
    if missing := [file.name for file in files if not file.is_file()]:
        raise UserError(f"{where}: {folder} lacks {missing[0]}; save it again with save_to_disk")
    return SplitFiles(SAVED, files)


def _parts(folder: Path) -> tuple[Path, ...]:
    """What lies in a folder, without the notes of Spark, Dask and file systems."""
    return tuple(
        path
        for path in sorted(folder.iterdir())
        if not path.name.startswith((".", "_")) and path.suffix != ".crc"
    )


def _format(path: Path) -> str:
    """The format that a file's name says; empty for other files and for folders."""
    name = _NAME.fullmatch(path.name)
    return (name[2] or name[3]) if name and not path.is_dir() else ""


def _shard(path: Path) -> re.Match[str] | None:
    name = _NAME.fullmatch(path.name)
    return re.fullmatch(".*" + _SHARD, name[1]) if name else None


def _numbers(shards: tuple[Path, ...]) -> list[int]:
    return [int(shard[1]) for path in shards if (shard := _shard(path))]


def _shown(path: Path) -> str:
    return f"{path.name}/" if path.is_dir() else path.name


def _content(folder: Path) -> str:
    """The names in a folder that could be data, for messages."""
    names = [_shown(path) for path in _parts(folder) if path.is_dir() or _format(path)]
    return ", ".join(names[:20]) + (", ..." if names[20:] else "") or "no data files"
