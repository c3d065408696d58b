"""Rows of JSON, CSV and TSV files, with every value exactly as the file has it.

``datasets`` reads these formats with type inference, which changes values: a date in a JSON string
becomes a timestamp, 1 beside 1.5 becomes 1.0, "true" beside true becomes true, and "007" in a later
block becomes 7. In CSV, NA and None become null, 007 becomes 7, and a row with too many cells is
shifted. None of this can be switched off, so the standard library reads them here.
"""

import bz2
import contextlib
import csv
import gzip
import io
import json
import lzma
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from heft_pipeline.data.dev_split import Row
from heft_pipeline.errors import UserError

#: How files begin that are not text.
_OTHER = {
    b"version https://git-lfs": "a Git LFS pointer, not the data; run `git lfs pull`",
    b"PAR1": "a Parquet file; rename it to end in .parquet",
    b"ARROW1": "an Arrow file; rename it to end in .arrow",
    b"\x1f\x8b": "compressed with gzip; let its name end in .gz",
    b"BZh": "compressed with bzip2; let its name end in .bz2",
    b"\xfd7zXZ": "compressed with xz; let its name end in .xz",
    b"\x28\xb5\x2f\xfd": "compressed with zstd; let its name end in .zst",
    b"PK\x03\x04": "a ZIP archive; unpack it",
}


class Number(float):
    """A JSON number with a fraction or exponent, shown as it is written: 1.10 and not 1.1."""

    written: str

    def __new__(cls, written: str) -> "Number":
        """Keep what was written beside its value."""
        number = super().__new__(cls, written)
        number.written = written
        return number

    def __str__(self) -> str:
        return self.written

    __repr__ = __str__


def read_json(file: Path) -> list[Row]:
    """Read JSON objects, one per line or in one list.

    Raises:
        UserError: The file is something else; the message says where.
    """
    text = read_text(file)
    if text.lstrip().startswith("["):
        rows = _decoded(text, file, 1)
        for number, row in enumerate(rows, start=1):
            _refuse_other(row, f"{file}, row {number}")
        return list(rows)
    rows = []
    # Not splitlines(): JSON strings may hold U+2028 and U+0085, which it takes for line ends.
    for number, line in enumerate(text.split("\n"), start=1):
        if line and not line.isspace():
            row = _decoded(line, file, number) if rows else _first(line, text, file, number)
            _refuse_other(row, f"{file}, line {number}")
            rows.append(row)
    if len(rows) == 1:
        _refuse_table(rows[0], file)
    return rows


def read_csv(file: Path, delimiter: str) -> list[Row]:
    """Read a table whose first line names the columns; an empty cell is None, any other is text.

    Raises:
        UserError: The file is not such a table; the message says where.
    """
    # newline="": a line break within quotes stays what it is.
    return list(csv_rows(io.StringIO(read_text(file), newline=""), file, delimiter))


def csv_rows(text: Iterable[str], file: Path, delimiter: str) -> Iterator[Row]:
    """The rows of a table as its lines come, as :func:`read_csv` reads them.

    Args:
        text: The lines with their ends.
        file: What to call the table in messages.
        delimiter: What is between two cells.

    Raises:
        UserError: A line is not one of such a table.
    """
    csv.field_size_limit(sys.maxsize)  # a passage may be longer than the usual 128 KiB
    lines = csv.reader(text, delimiter=delimiter, strict=True)
    columns: list[str] | None = None
    begins = 1
    try:
        for cells in lines:
            if columns is None:
                columns = _header(cells, file, delimiter) if cells else None
            elif cells:
                _refuse_cells(cells, columns, f"{file}, line {begins}", delimiter)
                yield {c: cell or None for c, cell in zip(columns, cells, strict=True)}
            begins = lines.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"{file}, line {begins}: {error}; a cell with quotes must be quoted, with each quote "
            'in it written twice ("")'
        ) from error


def json_rows(lines: Iterable[str], file: Path) -> Iterator[Row]:
    """The rows of JSON lines as they come, each as :func:`read_json` reads it.

    Args:
        lines: The lines.
        file: What to call them in messages.

    Raises:
        UserError: A line is not a JSON object.
    """
    for number, line in enumerate(lines, start=1):
        if line and not line.isspace():
            row = _decoded(line, file, number)
            _refuse_other(row, f"{file}, line {number}")
            yield row


def _header(columns: list[str], file: Path, delimiter: str) -> list[str]:
    if twice := [name for name in columns if columns.count(name) > 1]:
        raise UserError(f"{file}: the column {twice[0]!r} is there twice; give each its own name")
    other = next((mark for mark in ";\t|," if mark in columns[0]), None)
    if len(columns) == 1 and other and other != delimiter:
        raise UserError(
            f"{file}: its first line has {other!r} between the columns; .csv files have ',' and "
            ".tsv files a tab"
        )
    return columns


def _refuse_cells(cells: list[str], columns: list[str], where: str, delimiter: str) -> None:
    if len(cells) != len(columns):
        raise UserError(
            f"{where}: {len(cells)} cells for {len(columns)} columns ({', '.join(columns)}); quote "
            f"a cell that has {delimiter!r} or a line break in it"
        )
    if delimiter == "\t" and (
        split := [c for c, x in zip(columns, cells, strict=True) if "\n" in x]
    ):
        raise UserError(
            f"{where}, column {split[0]}: a cell that begins with a quote goes on over several "
            "lines, which many .tsv files do not mean; save the table as .csv or .jsonl"
        )


def _decoded(text: str, file: Path, line: int) -> Any:
    """One JSON document; ``line`` is where it begins in the file."""
    try:
        value = _DECODER.decode(text)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except json.JSONDecodeError as error:
        where = f"{file}, line {line + error.lineno - 1}, column {error.colno}"
        raise UserError(f"{where}: not JSON ({error.msg})") from error
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):x}"
        raise UserError(
            f"{file}, line {line}: {half} is half of a surrogate pair and no character; write the "
            "row again"
        ) from error
    except RecursionError as error:
        raise UserError(f"{file}, line {line}: a value is nested too deep; flatten it") from error
    except ValueError as error:  # a key twice, or a whole number with thousands of digits
        raise UserError(f"{file}, line {line}: {error}") from error


def _first(line: str, text: str, file: Path, number: int) -> Any:
    """The first row; if its line is no JSON, the file may be one object over many lines."""
    try:
        return _decoded(line, file, number)
    except UserError:
        whole = None
        with contextlib.suppress(ValueError, RecursionError):
            whole = _DECODER.decode(text)
        if not isinstance(whole, dict):
            raise
        _refuse_table(whole, file)
        raise UserError(
            f"{file} holds a single JSON object over several lines; write one object per line, or "
            "one list of objects"
        ) from None


def _refuse_table(row: Row, file: Path) -> None:
    """Refuse an only object that is not a row but holds the rows."""
    inside = [k for k, v in row.items() if isinstance(v, list) and v and isinstance(v[0], dict)]
    if inside:
        raise UserError(
            f"{file} holds a single JSON object with a list in {inside[0]!r}; keep only the list, "
            f"e.g. with jq -c '.[\"{inside[0]}\"][]' {file.name} > rows.jsonl"
        )


def _refuse_other(row: Any, where: str) -> None:
    if not isinstance(row, dict):
        raise UserError(f"{where}: not a JSON object; write one per line, or one list of them")


def _once(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(k for k in keys if keys.count(k) > 1)!r} is there twice")
    return row


# NaN and Infinity are not JSON, but Python and pandas write them; they stay the text they are.
_DECODER = json.JSONDecoder(parse_float=Number, parse_constant=str, object_pairs_hook=_once)
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def read_text(file: Path) -> str:
    """The text of a file, decompressed as its name says, with or without a byte order mark.

    Raises:
        UserError: It is not UTF-8 text, or its compressed data is damaged.
    """
    raw = _decompressed(file)
    try:
        if b"\0" in raw[:8]:  # UTF-16; without this, its ASCII would pass for UTF-8
            raise UnicodeDecodeError("utf-8", raw, raw.index(b"\0"), 1, "a zero byte")
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        wide = raw[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in raw[:8]
        line = raw.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{file} is not UTF-8 ({error.reason} at byte {error.start}, line {line}); convert it, "
            f"e.g. with iconv -f {'utf-16' if wide else 'windows-1252'} -t utf-8 {file.name}"
        ) from error
    if "\0" in text:  # no character of a text, but what a crash leaves where a file had grown
        line = text.count("\n", 0, text.index("\0")) + 1
        raise UserError(f"{file}, line {line}: a zero byte, so the file is damaged; write it again")
    return text


def refuse_disguised(file: Path, start: bytes, expected: bytes = b"") -> None:
    """Refuse content that a file's name does not say.

    Args:
        file: The file, for the message.
        start: How its content begins.
        expected: How it may begin.

    Raises:
        UserError: It is a Git LFS pointer, or of another known format.
    """
    for other, what in _OTHER.items():
        if start.startswith(other) and other != expected:
            raise UserError(f"{file} is {what}")


def _decompressed(file: Path) -> bytes:
    raw = file.read_bytes()
    mark, decompress = _COMPRESSED.get(file.suffix, (b"", bytes))
    refuse_disguised(file, raw[:32], mark)
    try:
        whole = decompress(raw)
        if whole is None:
            raise UserError(
                f"{file} becomes more than {_MOST_UNPACKED // 2**20:,} MB of text when it is "
                f"decompressed, {_MOST_TIMES} times its size or more, so it is no data; decompress "
                "it yourself if you trust it"
            )
        return whole
    except (EOFError, OSError, ValueError, zlib.error, lzma.LZMAError) as error:
        raise UserError(
            f"{file} is cut off or damaged, or is not compressed as its name says ({error}); "
            "download or compress it again"
        ) from error


def _unzstd(raw: bytes) -> bytes | None:
    import pyarrow

    with pyarrow.input_stream(pyarrow.py_buffer(raw), compression="zstd") as stream:
        return _unpacked(stream, len(raw))


def _by(opened: Callable[[io.BytesIO], Any]) -> Callable[[bytes], bytes | None]:
    def decompress(raw: bytes) -> bytes | None:
        with opened(io.BytesIO(raw)) as stream:
            return _unpacked(stream, len(raw))

    return decompress


def _unpacked(stream: Any, packed: int) -> bytes | None:
    """What a stream holds; None where it is far more than data could have been packed from."""
    parts, total = [], 0
    while part := bytes(stream.read(_PART)):
        parts.append(part)
        total += len(part)
        if total > max(_MOST_UNPACKED, _MOST_TIMES * packed):
            return None
    return b"".join(parts)


_PART = 2**24
#: Text is packed to a tenth of its size, and even endless repetition seldom to a hundredth.
_MOST_UNPACKED, _MOST_TIMES = 2**29, 100
#: For each compressed file's ending: how its content begins, and what decompresses it.
_COMPRESSED: dict[str, tuple[bytes, Callable[[bytes], bytes | None]]] = {
    ".gz": (b"\x1f\x8b", _by(lambda file: gzip.GzipFile(fileobj=file))),
    ".bz2": (b"BZh", _by(bz2.BZ2File)),
    ".xz": (b"\xfd7zXZ", _by(lzma.LZMAFile)),
    ".zst": (b"\x28\xb5\x2f\xfd", _unzstd),
}
