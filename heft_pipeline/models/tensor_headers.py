"""What the header of a safetensors file says."""

import json
import struct
from pathlib import Path
from typing import Any

from heft_pipeline.errors import UserError

#: A header has its length in 8 bytes before it, and safetensors allows it 100 MB.
_LENGTH_BYTES, _MOST_BYTES = 8, 100_000_000
_METADATA = "__metadata__"


def tensor_shapes(file: Path, name: str) -> dict[str, tuple[int, ...]]:
    """The shapes of a file's tensors, by name.

    Args:
        file: A safetensors file.
        name: What to call its folder in messages.

    Raises:
        UserError: It is cut off, or no such file.
    """
    broken = f"{name}: {file.name} is cut off or no safetensors file"
    way_out = "download it again, or save it again with save_pretrained"
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(_LENGTH_BYTES)
        length = struct.unpack("<Q", start)[0] if len(start) == _LENGTH_BYTES else _MOST_BYTES + 1
        if length > min(_MOST_BYTES, size - _LENGTH_BYTES):
            raise UserError(f"{broken} (it has {size:,} bytes); {way_out}")
        raw = stream.read(length)
    try:
        header: dict[str, Any] = json.loads(raw)
        tensors = {key: one for key, one in header.items() if key != _METADATA}
        shapes = {key: tuple(map(int, one["shape"])) for key, one in tensors.items()}
        end = max((int(one["data_offsets"][1]) for one in tensors.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"{broken} (its header cannot be read); {way_out}") from error
    needed = _LENGTH_BYTES + length + end
    if size != needed:
        raise UserError(f"{broken} (it has {size:,} of {needed:,} bytes); {way_out}")
    return shapes
