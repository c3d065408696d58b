"""Reading a task's rows: from a local folder of JSONL or Parquet files, or from the hub."""

import json
import re
from collections import Counter
from pathlib import Path

from heft_pipeline.data.dev_split import Row, hold_out
from heft_pipeline.data.settings import DataSettings
from heft_pipeline.errors import UserError

_SUFFIXES = (".jsonl", ".json", ".parquet")


def read_splits(data: DataSettings, seed: int) -> dict[str, list[tuple[str, Row]]]:
    """Read a task's three splits.

    If ``data.dev_split`` is null, ``seed`` decides which training rows are held out as dev rows.
    Rows keep the order of their files, and ``max_*_rows`` keep only the first rows.

    Args:
        data: The task.
        seed: Decides which training rows become dev rows.

    Returns:
        Pairs of id and row under ``train``, ``dev`` and ``eval``. An id is the value of
        ``data.id_column``, or the split and row number (``validation/17``).

    Raises:
        UserError: A split or column is missing, or a split is empty.
    """
    train = _limit(_read(data, "train_split", data.train_split), data.max_train_rows)
    if data.dev_split is not None:
        dev = _read(data, "dev_split", data.dev_split)
    else:
        train, dev = hold_out(train, data.answer_column, data.dev_size, seed)
    return {"train": train, "dev": dev, "eval": read_eval(data)}


def read_eval(data: DataSettings) -> list[tuple[str, Row]]:
    """Read the rows of the reported split, as pairs of id and row like in :func:`read_splits`.

    Raises:
        UserError: The split or a column is missing, or the split is empty.
    """
    return _limit(_read(data, "eval_split", data.eval_split), data.max_eval_rows)


def _limit(rows: list[tuple[str, Row]], count: int | None) -> list[tuple[str, Row]]:
    return rows if count is None else rows[:count]


def _read(data: DataSettings, key: str, split: str) -> list[tuple[str, Row]]:
    where = f"data.{key}={split}"
    rows = _read_hub(data, where, split) if data.revision else _read_folder(data, where, split)
    if not rows:
        raise UserError(f"{where} of {data.name} has no rows")
    if data.id_column is None:
        return [(f"{split}/{number}", row) for number, row in enumerate(rows)]
    if data.id_column not in rows[0]:
        raise UserError(
            f"data.id_column={data.id_column} is not a column of {data.name}; "
            f"it has {', '.join(map(str, rows[0]))}"
        )
    ids = [str(row[data.id_column]) for row in rows]
    if len(set(ids)) < len(ids):
        twice = next(id for id, count in Counter(ids).items() if count > 1)
        raise UserError(
            f"data.id_column={data.id_column}: {split} of {data.name} has {twice!r} more than "
            "once; name a column whose values differ, or data.id_column=null for row numbers"
        )
    return list(zip(ids, rows, strict=True))


def _read_folder(data: DataSettings, where: str, split: str) -> list[Row]:
    files = split_files(Path(str(data.location)), split, where)
    return [row for file in files for row in _read_file(file)]


def split_files(folder: Path, split: str, where: str) -> list[Path]:
    """Find the files of a split: SPLIT.jsonl, or its shards, SPLIT-00000-of-00002.parquet.

    Args:
        folder: The task's folder. Only files that lie directly in it count.
        split: The split's name.
        where: The setting that names the split, for messages.

    Returns:
        One file, or all shards in order.

    Raises:
        UserError: There is no such file, more than one, or a shard is missing.
    """
    files = sorted(f for f in folder.iterdir() if f.suffix in _SUFFIXES)
    shard = re.compile(re.escape(split) + r"-(\d+)-of-(\d+)(-\w+)?")
    whole = [f for f in files if f.stem == split]
    shards = [(f, match) for f in files if (match := shard.fullmatch(f.stem))]
    if not whole and not shards:
        raise UserError(
            f"{where}: {folder} has no {split}.jsonl or {split}.parquet; "
            f"it has {', '.join(f.name for f in files) or 'no data files'}; set data.train_split, "
            "data.dev_split and data.eval_split to the files' names"
        )
    found = [*whole, *(f for f, _ in shards)]
    if folders := [f.name for f in found if not f.is_file()]:
        raise UserError(
            f"{where}: {folder}/{folders[0]} is a folder; put its files beside the others, as "
            f"{split}-00000-of-00002{found[0].suffix} and so on"
        )
    count = int(shards[0][1][2]) if shards else 0
    numbers = [int(match[1]) for _, match in shards]
    one_kind = len({(match[2], f.suffix, match[3]) for f, match in shards}) <= 1
    if len(whole) > 1 or (whole and shards) or not one_kind or len(set(numbers)) < len(numbers):
        raise UserError(
            f"{where}: {folder} has more than one {split}: {', '.join(f.name for f in found)}; "
            "keep one of them"
        )
    if shards and numbers != list(range(count)):
        missing = sorted(set(range(count)) - set(numbers))
        raise UserError(
            f"{where}: {folder} has {len(shards)} of {count} files of {split}; numbers "
            f"{', '.join(map(str, missing))} are missing"
        )
    return found


def _read_file(file: Path) -> list[Row]:
    if file.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        try:
            return list(pyarrow.parquet.read_table(file).to_pylist())
        except pyarrow.ArrowInvalid as error:
            raise UserError(f"{file} is not a Parquet file: {error}") from error
    try:
        text = file.read_text(encoding="utf-8-sig")  # with or without a byte order mark
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file} is not UTF-8 ({error.reason} at byte {error.start}); convert it, e.g. with "
            f"iconv -f utf-16 -t utf-8 {file.name}"
        ) from error
    rows = []
    # Not splitlines(): JSON strings may hold U+2028 and U+0085, which it takes for line ends.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{file}, line {number}: not JSON ({error})") from error
        if not isinstance(row, dict):
            raise UserError(f"{file}, line {number}: not a JSON object; write one per line")
        rows.append(row)
    return rows


def _read_hub(data: DataSettings, where: str, split: str) -> list[Row]:
    import datasets

    datasets.disable_progress_bars()
    try:
        loaded = datasets.load_dataset(
            data.location, name=data.subset, split=split, revision=data.revision
        )
    except ValueError as error:  # raised for an unknown split or subset
        raise UserError(f"{where} of {data.location}: {error}") from error
    return [dict(row) for row in loaded]
