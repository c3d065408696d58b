"""Reading what W&B really wrote offline, with its own protobuf."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_BLOCK, _HEADER = 32768, 7


def records(path: Path) -> list[Any]:
    """The records of a ``.wandb`` file, which is a log in LevelDB's format."""
    return list(_records(path))


def _records(path: Path) -> Iterator[Any]:
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, parts = path.read_bytes(), 7, b""
    while at + _HEADER <= len(data):
        if _BLOCK - at % _BLOCK < _HEADER:
            at += _BLOCK - at % _BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + _HEADER])
        parts += data[at + _HEADER : at + _HEADER + length]
        at += _HEADER + length
        if kind in (1, 4):  # a full record, or the last part of one
            record = Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


def begun(log: list[Any]) -> Any:
    """The run as it was begun: its name, group, tags and so on."""
    return next(record.run for record in log if record.HasField("run"))


def config(log: list[Any]) -> dict[str, Any]:
    """The config that the run was begun with."""
    items = begun(log).config.update
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def curve(log: list[Any], name: str) -> list[Any]:
    """A metric's values in the order in which they were logged."""
    return [
        json.loads(item.value_json)
        for record in log
        if record.HasField("history")
        for item in record.history.item
        if (item.key or "/".join(item.nested_key)) == name
    ]


def summary(log: list[Any]) -> dict[str, Any]:
    """The summary values that were set."""
    return {
        item.key or "/".join(item.nested_key): json.loads(item.value_json)
        for record in log
        if record.HasField("summary")
        for item in record.summary.update
    }
