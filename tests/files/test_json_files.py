"""Broken JSON files are told from whole ones, and what is written is whole."""

import errno
import os
from pathlib import Path

import pytest

from heft_pipeline.errors import UserError
from heft_pipeline.files.json_files import read_json, require_json, write_json

BROKEN = {
    "empty": b"",
    "cut": b'{"accuracy": 0.',
    "zeros": b"\0" * 40,
    "no object": b"[1, 2]",
    "not UTF-8": b'{"a": "\xff\xfe"}',
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_file_is_nothing_or_one_message(how: str, tmp_path: Path) -> None:
    path = tmp_path / "note.json"
    path.write_bytes(BROKEN[how])
    assert read_json(path) is None
    with pytest.raises(UserError) as caught:
        require_json(path, "run the same command again")
    said = str(caught.value)
    assert said.startswith(f"{path} is cut off or broken (")
    assert said.endswith("; run the same command again")


def test_a_missing_file_is_nothing_or_one_message(tmp_path: Path) -> None:
    for path in (tmp_path / "note.json", Path(__file__) / "note.json"):
        assert read_json(path) is None
        with pytest.raises(UserError, match=r"note\.json is missing; run it again"):
            require_json(path, "run it again")


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_json(tmp_path / "note.json", {"é": [1, None]})
    assert read_json(tmp_path / "note.json") == {"é": [1, None]}
    assert [file.name for file in tmp_path.iterdir()] == ["note.json"]


def test_a_full_disk_leaves_the_old_file_and_no_part_of_a_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "note.json"
    write_json(path, {"old": True})

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_json(path, {"new": True})
    assert read_json(path) == {"old": True}
    assert [file.name for file in tmp_path.iterdir()] == ["note.json"]
