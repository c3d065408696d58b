"""Tokenised tasks that are kept in files, each under a key of everything it was made from.

A file is a line with the SHA-256 of the rest in hex, and then Parquet.
"""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from heft_pipeline.command_line.warnings import warn
from heft_pipeline.data.answer_text import PLAIN, AnswerText
from heft_pipeline.data.prompts import Example, Task, load_task
from heft_pipeline.data.settings import DataSettings
from heft_pipeline.declare_settings import identity
from heft_pipeline.files.replaced import replaced

#: Increased whenever a change to the code alters what a task is tokenised to.
_FORMAT = 5
_META = b"heft"
_SPLITS = ("train", "dev", "eval")
_IDS = pyarrow.list_(pyarrow.int32())
#: What is kept of an example, in its fields' order.
_COLUMNS = {
    "id": pyarrow.string(),
    "prompt": _IDS,
    "gold": pyarrow.int64(),
    "answer": _IDS,
    "choices": pyarrow.list_(_IDS),
    "texts": pyarrow.list_(pyarrow.string()),
    "given": pyarrow.list_(pyarrow.int32()),
}


def tokenized_task(
    data: DataSettings,
    model: str,
    seed: int,
    tokenizer: Callable[[], Any],
    cache: Path | None,
    trained: AnswerText = PLAIN,
    scored: AnswerText = PLAIN,
) -> Task:
    """A tokenised task, read from a file if it was tokenised before.

    Args:
        data: The task; its rows are identified by their content.
        model: The content of the model whose tokenizer is used.
        seed: Decides the dev split.
        tokenizer: Loads the tokenizer; not called if there is a file.
        cache: The folder of the files; None to keep none.
        trained: How the answers are written that are trained on.
        scored: How the answers are written that are scored.

    Returns:
        See :func:`~heft_pipeline.data.prompts.load_task`.

    Raises:
        UserError: See there.
    """
    key = _key(data, model, seed, trained, scored)
    path = cache / f"{key}.task" if cache is not None else None
    if path is not None and (task := _read(path)) is not None:
        return task
    task = load_task(data, tokenizer(), seed, trained, scored)
    if path is not None:
        _write(path, task)
    return task


def _key(data: DataSettings, model: str, seed: int, trained: AnswerText, scored: AnswerText) -> str:
    answers = [dataclasses.asdict(answer) for answer in (trained, scored)]
    made_of = [_FORMAT, version("tokenizers"), identity(data), model, seed, answers]
    text = json.dumps(made_of, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _read(path: Path) -> Task | None:
    try:
        seal, _, content = path.read_bytes().partition(b"\n")
        if seal != _seal(content):
            raise ValueError("it does not fit its checksum")
        table = pyarrow.parquet.read_table(pyarrow.BufferReader(content))
        meta = json.loads(table.schema.metadata[_META])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, pyarrow.ArrowException) as error:
        warn(f"{path} is cut off or broken ({error}); the task is tokenised again")
        return None
    splits: dict[str, list[Example]] = {name: [] for name in _SPLITS}
    columns = (table[name].to_pylist() for name in ("split", *_COLUMNS))
    same: dict[Any, Any] = {}  # rows that share their answers share them in memory as well
    for split, id, prompt, gold, answer, choices, texts, given in zip(*columns, strict=True):
        own = tuple(answer), tuple(map(tuple, choices)), tuple(texts), tuple(given)
        example = Example(id, tuple(prompt), gold, *(same.setdefault(one, one) for one in own))
        splits[split].append(example)
    meta["labels"] = tuple(meta["labels"])
    meta["overlap"] = tuple((one, other) for one, other in meta["overlap"])
    train, dev, reported = (tuple(splits[name]) for name in _SPLITS)
    return Task(train, dev, reported, **meta)


def _write(path: Path, task: Task) -> None:
    rows = [(name, example) for name in _SPLITS for example in getattr(task, name)]
    table = pyarrow.table(
        {"split": [name for name, _ in rows]}
        | {
            name: pyarrow.array([getattr(example, name) for _, example in rows], kind)
            for name, kind in _COLUMNS.items()
        }
    )
    meta = {
        one.name: getattr(task, one.name)
        for one in dataclasses.fields(task)
        if one.name not in _SPLITS
    }
    table = table.replace_schema_metadata({_META: json.dumps(meta).encode()})
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(table, sink)
    content = sink.getvalue().to_pybytes()
    with contextlib.suppress(OSError):  # a full disk must not fail the stage
        path.parent.mkdir(parents=True, exist_ok=True)
        with replaced(path) as partial:
            partial.write_bytes(_seal(content) + b"\n" + content)


def _seal(content: bytes) -> bytes:
    """The first line of a file, which is the checksum of the rest."""
    return hashlib.sha256(content).hexdigest().encode()
