"""Reading a task's rows: from a local folder of JSONL or Parquet files, or from the hub."""

import json
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
        train, dev = hold_out(train, data.dev_size, seed)
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
    folder = Path(str(data.location))
    files = sorted(
        f
        for f in folder.iterdir()
        if f.suffix in _SUFFIXES and (f.stem == split or f.name.startswith(f"{split}-"))
    )
    if not files:
        have = sorted(f.name for f in folder.iterdir() if f.suffix in _SUFFIXES)
        raise UserError(
            f"{where}: {folder} has no {split}.jsonl or {split}.parquet; "
            f"it has {', '.join(have) or 'no data files'}; set data.train_split, data.dev_split "
            "and data.eval_split to the files' names"
        )
    return [row for file in files for row in _read_file(file)]


def _read_file(file: Path) -> list[Row]:
    if file.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        try:
            return list(pyarrow.parquet.read_table(file).to_pylist())
        except pyarrow.ArrowInvalid as error:
            raise UserError(f"{file} is not a Parquet file: {error}") from error
    rows = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
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
