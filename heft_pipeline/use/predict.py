"""Answer rows from a file or a pipe, one JSON line for each, in their order.

heft predict ADAPTER --data FILE|- [--to FILE]
"""

import argparse
import contextlib
import io
import json
import queue
import sys
import threading
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import IO, Any

from heft_pipeline.command_line.run import run_command
from heft_pipeline.command_line.streams import nobody_reads
from heft_pipeline.data.dev_split import Row
from heft_pipeline.data.encode import render
from heft_pipeline.data.text_rows import csv_rows, json_rows, read_json, read_text
from heft_pipeline.errors import UserError
from heft_pipeline.files.untrusted import refuse_special
from heft_pipeline.use import arguments
from heft_pipeline.use.loaded import put_on_base
from heft_pipeline.use.predictions import predict

_DELIMITERS = {"csv": ",", "tsv": "\t"}
_KINDS = ("jsonl", *_DELIMITERS)
_STANDARD = Path("standard input")
#: Rows that are tokenised and answered together; more would only come later.
_AT_ONCE = 1024
#: Rows that are read ahead of the model.
_AHEAD = 4096


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line, and return its exit status."""
    return run_command(_predict, words, elsewhere="choose another place with --to FILE")


def _predict(words: Sequence[str]) -> int:
    given = _parser().parse_args(words)
    if given.to is not None and given.to.exists():
        raise UserError(f"--to {given.to} is there already; remove it, or give another file")
    found = arguments.found(given)
    chunks = _in_chunks(_rows(given, _lines(given)))
    first = next(chunks, None)
    if first is None:
        raise UserError(f"{given.data} has no rows")
    render(found.stage.data, "0", first[0])  # a column that is missing is found before loading
    answered = 0
    with put_on_base(found, **arguments.place(given)) as model, _output(given.to) as to:
        for rows in chain([first], chunks):
            answers = predict(model.stage, model.adapted, rows, given.batch_size, answered)
            answered += len(rows)
            to.writelines(json.dumps(answer.to_json()) + "\n" for answer in answers)
            to.flush()
            if given.to is None and nobody_reads():
                return 0
    if given.to is not None:
        print(f"{answered:,} answers written to {given.to}", file=sys.stderr)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = arguments.parser("predict", "Answer rows of the task that an adapter was trained on.")
    arguments.add_place(parser)
    parser.add_argument("--data", required=True, metavar="FILE",
                        help="rows as .jsonl, .csv or .tsv; - for standard input")  # fmt: skip
    parser.add_argument("--format", choices=_KINDS, help="by default, what the file's name says")
    parser.add_argument("--to", type=Path, metavar="FILE", help="a new file; default: the terminal")
    parser.add_argument("--batch-size", type=arguments.positive, metavar="N",
                        help="rows per forward pass; by default the evaluation's")  # fmt: skip
    return parser


def _lines(given: argparse.Namespace) -> IO[str] | Iterator[str]:
    """The lines of the input as they come."""
    if given.data == "-":
        sys.stdin.reconfigure(encoding="utf-8-sig", newline="")  # type: ignore[union-attr]
        return sys.stdin
    file = Path(given.data).expanduser()
    if not file.is_file():
        refuse_special(file, "--data")
        raise UserError(f"--data {given.data} is not a file")
    if file.suffix in (".gz", ".bz2", ".xz", ".zst"):
        return io.StringIO(read_text(file), newline="")
    return file.open(encoding="utf-8-sig", newline="")


def _kind(given: argparse.Namespace) -> str:
    if given.format:
        return str(given.format)
    if given.data == "-":
        return "jsonl"
    names = Path(given.data).suffixes[-2:]
    kinds = {"json": "jsonl", "ndjson": "jsonl", **{kind: kind for kind in _KINDS}}
    for name in reversed(names):
        if name[1:] in kinds:
            return kinds[name[1:]]
    raise UserError(f"--data {given.data}: say what it holds with --format {'|'.join(_KINDS)}")


def _rows(given: argparse.Namespace, lines: IO[str] | Iterator[str]) -> Iterator[Row]:
    name = _STANDARD if given.data == "-" else Path(given.data)
    kind = _kind(given)
    if name.suffix == ".json":  # it may be one list
        yield from read_json(name)
        return
    try:
        if kind == "jsonl":
            yield from json_rows(lines, name)
        else:
            yield from csv_rows(lines, name, _DELIMITERS[kind])
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is not UTF-8 ({error.reason}); convert it") from error


def _in_chunks(rows: Iterator[Row]) -> Iterator[list[Row]]:
    """Rows in lists of those that are there by now, so that none waits for later ones.

    Whatever reading them raises comes after the rows before it.
    """
    read: queue.Queue[Any] = queue.Queue(_AHEAD)
    end = object()

    def reading() -> None:
        try:
            for row in rows:
                read.put(row)
            read.put(end)
        except BaseException as error:
            read.put(error)

    threading.Thread(target=reading, daemon=True).start()
    chunk: list[Row] = []
    while True:
        if not chunk or (len(chunk) < _AT_ONCE and not read.empty()):
            item = read.get()
            if item is not end and not isinstance(item, BaseException):
                chunk.append(item)
                continue
            if chunk:
                yield chunk
            if isinstance(item, BaseException):
                raise item
            return
        yield chunk
        chunk = []


@contextlib.contextmanager
def _output(to: Path | None) -> Iterator[IO[str]]:
    if to is None:
        yield sys.stdout
        return
    with to.open("x", encoding="utf-8") as file:
        yield file
