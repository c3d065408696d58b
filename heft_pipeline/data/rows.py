"""Reading a task's rows: from the files of a local folder, or from the hub."""

import hashlib
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from heft_pipeline.data.dev_split import Row, hold_out
from heft_pipeline.data.settings import DataSettings
from heft_pipeline.data.split_files import SAVED, SplitFiles, split_files
from heft_pipeline.data.text_rows import read_csv, read_json, refuse_disguised
from heft_pipeline.errors import UserError

_DELIMITERS = {"csv": ",", "tsv": "\t"}
_WHAT = {".parquet": "Parquet file", ".arrow": "Arrow file"}
#: How files of the formats that ``datasets`` reads begin.
_STARTS = {"parquet": b"PAR1", "arrow": b"ARROW1"}


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
    elif not data.has_dev:
        dev = []
    else:
        own = data.written or data.answer_as == "text"
        column = None if own else data.answer_column
        train, dev = hold_out(train, column, data.dev_size, seed)
    return {"train": train, "dev": dev, "eval": read_eval(data)}


def read_eval(data: DataSettings) -> list[tuple[str, Row]]:
    """Read the rows of the reported split, as pairs of id and row like in :func:`read_splits`.

    Raises:
        UserError: The split or a column is missing, or the split is empty.
    """
    return _limit(_read(data, "eval_split", data.eval_split), data.max_eval_rows)


@dataclass(frozen=True)
class RowClusters:
    """Which rows of a reported split belong together.

    Attributes:
        column: The column that they have in common.
        of: A digest of each row's value by the row's id. A row without a value, or with an empty
            one, is a cluster of its own.
        trained: How many of the rows have a value that a row of the training split has, too.
    """

    column: str
    of: Mapping[str, str]
    trained: int


def read_clusters(data: DataSettings, column: str) -> RowClusters:
    """Read which rows of the reported split belong together.

    Args:
        data: The task.
        column: The column that they have in common.

    Returns:
        The clusters.

    Raises:
        UserError: The column is missing.
    """
    rows = read_eval(data)
    known = {key for _, row in rows for key in row}
    if column not in known:
        raise UserError(
            f"data.cluster_column={column} is not a column of data.eval_split={data.eval_split} of "
            f"{data.name}; it has {', '.join(sorted(map(str, known)))}; null: rows are independent"
        )
    of = {id: _digest(row.get(column), id) for id, row in rows}
    trained = _limit(_read(data, "train_split", data.train_split), data.max_train_rows)
    known = {_digest(row.get(column), id) for id, row in trained}
    return RowClusters(column, of, sum(cluster in known for cluster in of.values()))


def _digest(value: object, id: str) -> str:
    # What is not a number differs from itself.
    own = value is None or value == "" or value != value
    text = repr(("row", id)) if own else repr((type(value).__name__, value))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _limit(rows: list[tuple[str, Row]], count: int | None) -> list[tuple[str, Row]]:
    return rows if count is None else rows[:count]


def _read(data: DataSettings, key: str, split: str) -> list[tuple[str, Row]]:
    where = f"data.{key}={split}"
    rows = _read_hub(data, where, split) if data.revision else _read_folder(data, where, split)
    if not rows:
        raise UserError(f"{where} of {data.name} has no rows")
    if data.id_column is None:
        return [(f"{split}/{number}", row) for number, row in enumerate(rows)]
    if lacking := next((row for row in rows if data.id_column not in row), None):
        raise UserError(
            f"data.id_column={data.id_column} is not a column of every row of {split} of "
            f"{data.name}; one has {', '.join(map(str, lacking))}"
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
    found = split_files(Path(str(data.location)), split, where, data.subset)
    try:
        if found.format in _DELIMITERS:
            delimiter = _DELIMITERS[found.format]
            return [row for file in found.files for row in read_csv(file, delimiter)]
        if found.format in ("json", "jsonl"):
            return [row for file in found.files for row in read_json(file)]
        return _read_tables(found)
    except PermissionError as error:
        raise UserError(f"{error.filename} cannot be read ({error.strerror})") from error


def _read_tables(found: SplitFiles) -> list[Row]:
    """Read files of columns with ``datasets``, which leaves their values as they are."""
    from datasets import load_dataset, load_from_disk

    if found.format == SAVED:
        with _quiet_datasets(found.files[0].parent):
            # Without the format that was saved with it: tensors, or only some of the columns.
            saved = load_from_disk(str(found.files[0].parent)).with_format(None)
            return list(saved.to_list())
    rows: list[Row] = []
    # What datasets writes goes with the folder, so that a later change of a file is never missed.
    with tempfile.TemporaryDirectory(prefix="heft-rows-") as cache:
        for number, file in enumerate(found.files):
            with file.open("rb") as stream:
                refuse_disguised(file, stream.read(32), _STARTS[found.format])
            # A name without the characters that datasets takes for a pattern.
            link = Path(cache, f"{number}.{found.format}")
            link.symlink_to(file.resolve())
            with _quiet_datasets(file):
                # One file at a time: datasets would cast all to the columns of the first.
                if _rows_of(link):
                    loaded = load_dataset(
                        found.format, data_files=[str(link)], split="train", cache_dir=cache
                    )
                    rows += loaded.to_list()
    return rows


def _rows_of(file: Path) -> int:
    """How many rows a file has; ``datasets`` takes none for an error."""
    import pyarrow.parquet

    if file.suffix == ".parquet":
        return int(pyarrow.parquet.read_metadata(file).num_rows)
    with pyarrow.memory_map(str(file)) as stream:
        try:
            return sum(batch.num_rows for batch in pyarrow.ipc.open_stream(stream))
        except pyarrow.ArrowInvalid:
            reader = pyarrow.ipc.open_file(stream)
            return sum(reader.get_batch(n).num_rows for n in range(reader.num_record_batches))


@contextmanager
def _quiet_datasets(file: Path) -> Iterator[None]:
    """Keep ``datasets`` from writing to the terminal, and say in one message what it refuses."""
    import datasets
    import pyarrow

    datasets.disable_progress_bars()
    level = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    except (
        datasets.exceptions.DatasetGenerationError, pyarrow.ArrowException, OSError, ValueError,
        KeyError, TypeError,
    ) as error:  # fmt: skip
        if isinstance(error, PermissionError):
            raise
        reason = str(error.__cause__ or error).split("\n")[0]
        what = _WHAT.get(file.suffix, "data set that save_to_disk wrote")
        raise UserError(
            f"{file} is not a {what} that can be read: {reason.rstrip('.')}; download or write it "
            "again"
        ) from error
    finally:
        datasets.logging.set_verbosity(level)


def _read_hub(data: DataSettings, where: str, split: str) -> list[Row]:
    import datasets

    datasets.disable_progress_bars()
    try:
        loaded = datasets.load_dataset(
            data.location, name=data.subset, split=split, revision=data.revision
        )
    except ValueError as error:  # raised for an unknown split or subset
        raise UserError(f"{where} of {data.location}: {error}") from error
    except RuntimeError as error:
        if "script" not in str(error):
            raise
        raise UserError(
            f"{where} of {data.location}: it is read by a script of its own, and no data set's "
            "code is run; use a copy of its files as data.path=DIR, or a repository with Parquet "
            "files"
        ) from error
    return [dict(row) for row in loaded]
