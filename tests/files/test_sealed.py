"""A sealed file shows every changed byte, and its copy stands in for it."""

import json
from pathlib import Path

import pytest

from heft_pipeline.files.manifest import make_manifest, misfits
from heft_pipeline.files.sealed import copy_of, read_sealed, write_sealed

DATA = {"accuracy": 0.5, "named": {"é": [1, None, True, 1e-9]}, "text": "a\u2028b"}


def test_what_is_sealed_is_read_without_its_checksum(tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    write_sealed(path, DATA)
    found = read_sealed(path)
    assert (found.data, found.why, found.from_copy) == (DATA, "", False)
    assert len(json.loads(path.read_text())["sha256"]) == 64


def test_no_changed_bit_is_missed(tmp_path: Path) -> None:
    """Of every byte of the file, the lowest bit; white space and the word for the key aside."""
    path = tmp_path / "one.json"
    write_sealed(path, DATA)
    whole = path.read_bytes()
    for at in range(len(whole)):
        changed = bytearray(whole)
        changed[at] ^= 1
        path.write_bytes(changed)
        found = read_sealed(path)
        assert found.data is not None
        if found.why:
            assert found.from_copy and found.data == DATA
        else:  # nothing that it says has changed, unless the key of the checksum has
            left = {k: v for k, v in found.data.items() if k in DATA}
            assert left == DATA, (at, found.data)


def test_a_missing_file_is_missing_and_an_older_one_is_read(tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    write_sealed(path, DATA)
    path.unlink()
    assert read_sealed(path).data is None and copy_of(path).is_file()
    path.write_text('{"accuracy": 1}')
    assert read_sealed(path).data == {"accuracy": 1}


@pytest.mark.parametrize("broken", ["", "{", "[]", "\0\0", '{"sha256": 3}', '{"sha256": "x"}'])
def test_a_broken_file_is_that_of_its_copy(broken: str, tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    write_sealed(path, DATA)
    path.write_text(broken)
    found = read_sealed(path)
    assert found.data == DATA and found.from_copy and found.why
    copy_of(path).write_text(broken)
    found = read_sealed(path)
    assert found.data is None and not found.from_copy and found.why


def test_a_manifest_says_what_has_changed_and_how(tmp_path: Path) -> None:
    names = ["a/b/one", "a/two", "three", "four"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "a" / ".two.12-0123abcd").write_text("half of a file that a killed process left")
    found = make_manifest(tmp_path, ["a/**/*", "three", "four"])
    assert list(found) == sorted(names)
    assert not misfits(tmp_path, found, names)
    (tmp_path / "three").write_text("tHree")
    (tmp_path / "four").write_text("five!")
    (tmp_path / "a/two").unlink()
    assert misfits(tmp_path, found) == {
        "a/two": "is missing", "four": "has 5 bytes instead of 4",
    }  # fmt: skip
    assert misfits(tmp_path, found, names)["three"] == "does not fit its checksum"
