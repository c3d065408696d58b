"""A value reaches the prompt as its file has it, or the file is refused with the place in it."""

import bz2
import datetime
import gzip
import json
import lzma
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest

from heft_pipeline.data.encode import render
from heft_pipeline.data.rows import read_eval
from heft_pipeline.data.settings import DataSettings
from heft_pipeline.errors import UserError


def settings(folder: Path, **other: Any) -> DataSettings:
    return DataSettings(
        path=str(folder), location=str(folder), revision=None, name="mine", eval_split="test",
        prompt="{a}", choices={"x": " x", "y": " y"}, **other,
    )  # fmt: skip


def read(folder: Path, **other: Any) -> list[dict[str, Any]]:
    return [row for _, row in read_eval(settings(folder, **other))]


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    """Writes a test split, and gives its folder."""

    def write(content: str | bytes, name: str = "test.jsonl") -> Path:
        raw = content.encode() if isinstance(content, str) else content
        (tmp_path / name).write_bytes(raw)
        return tmp_path

    return write


MIXED = [
    {"a": "2024-01-02", "b": 1, "c": True, "d": {"text": "x"}},
    {"a": "2024-01-03T10:00:00Z", "b": 2.5, "c": "true", "d": {"other": 1}},
    {"a": "007", "b": None, "c": 1, "d": [{"x": 1}, {"y": "q"}]},
    {"a": 2**70, "b": "NA", "e": "1e5"},
    {"a": "", "b": "null", "c": "True", "d": "None"},
]


@pytest.mark.parametrize("name", ["test.jsonl", "test.json"])
def test_json_values_are_what_is_written_whatever_other_rows_have(
    written: Callable[..., Path], name: str
) -> None:
    lines = "".join(json.dumps(row) + "\r\n\n" for row in MIXED)
    for text in (lines, "\ufeff" + lines, json.dumps(MIXED), json.dumps(MIXED, indent=2)):
        rows = read(written(text, name))
        assert json.dumps(rows) == json.dumps(MIXED)  # 1 is not 1.0, and no key was added


@pytest.mark.parametrize(
    "number",
    ["1.0", "1e5", "1.10", "0.10000000000000000555", "-0.0", "12345678901234567890", "NaN"],
)
def test_a_json_number_is_shown_as_it_is_written(written: Callable[..., Path], number: str) -> None:
    folder = written(f'{{"a": {number}}}\n{{"a": 1}}\n')
    assert [render(settings(folder), "test/0", row).text for row in read(folder)] == [number, "1"]


def test_a_json_number_is_still_a_number_for_a_template(written: Callable[..., Path]) -> None:
    folder = written('{"a": 1.10, "b": {"c": "x"}}\n')
    made = DataSettings(prompt="{a:.3f} {b[c]}", choices={"x": " x", "y": " y"}, name="mine")
    assert render(made, "test/0", read(folder)[0]).text == "1.100 x"


CSV = """\
id,a,b
007,NA,null
1.0,None,nan
1e5,true,True
2024-01-02," a ""b"", c","x
y"
8, s ,
\n9,x\u2028y,z\u0085
"""


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("name", ["test.csv", "test.tsv"])
def test_csv_cells_are_text_and_empty_ones_are_null(
    written: Callable[..., Path], name: str, end: str
) -> None:
    text = CSV.replace('"x\ny"', '"x y"') if name == "test.tsv" else CSV
    text = text.replace("\n", end)
    if name == "test.tsv":
        text = text.replace(",", "\t")
    cell = "x y" if name == "test.tsv" else f"x{end}y"
    comma = "\t" if name == "test.tsv" else ","
    assert read(written("\ufeff" + text, name)) == [
        {"id": "007", "a": "NA", "b": "null"},
        {"id": "1.0", "a": "None", "b": "nan"},
        {"id": "1e5", "a": "true", "b": "True"},
        {"id": "2024-01-02", "a": f' a "b"{comma} c', "b": cell},
        {"id": "8", "a": " s ", "b": None},
        {"id": "9", "a": "x\u2028y", "b": "z\u0085"},
    ]


def test_a_cell_may_be_longer_than_the_csv_modules_limit(written: Callable[..., Path]) -> None:
    assert len(read(written(f"a,b\n{'x' * 200_000},y\n", "test.csv"))[0]["a"]) == 200_000


@pytest.mark.parametrize(
    ("ending", "compress"),
    [
        ("gz", gzip.compress),
        ("bz2", bz2.compress),
        ("xz", lzma.compress),
        ("zst", lambda raw: bytes(pyarrow.compress(raw, "zstd", asbytes=True))),
    ],
)
def test_compressed_text_is_read_and_a_truncated_file_refused(
    written: Callable[..., Path], ending: str, compress: Callable[[bytes], bytes]
) -> None:
    raw = "".join(json.dumps({"a": os.urandom(20).hex()}) + "\n" for _ in range(5000))
    packed = compress(raw.encode())
    rows = read(written(packed, f"test.jsonl.{ending}"))
    assert rows == [json.loads(line) for line in raw.splitlines()]
    for cut in (len(packed) // 2, len(packed) - 3):
        with pytest.raises(UserError, match=rf"test\.jsonl\.{ending} is cut off or damaged"):
            read(written(packed[:cut], f"test.jsonl.{ending}"))


VALUES = {
    "a": ["2024-01-02", "007", None],
    "date": [datetime.date(2024, 1, 2), None, None],
    "time": [datetime.datetime(2024, 1, 2, 3, 4, 5), None, None],
    "i": [1, None, 2**62],
    "f": [0.1, None, 1e300],
    "c": [True, False, None],
    "s": [{"text": "x", "n": [1, 2]}, {"text": "y", "n": []}, None],
    "l": [[{"k": "v"}], [], None],
    "b": [b"\x00\xff", b"", None],
}


def test_columns_keep_their_values(tmp_path: Path) -> None:
    table = pyarrow.table(VALUES)
    expected = json.dumps(table.to_pylist(), default=repr)
    pyarrow.parquet.write_table(table, tmp_path / "parquet.parquet", row_group_size=1)
    pyarrow.feather.write_feather(table, str(tmp_path / "feather.arrow"), "uncompressed")
    with pyarrow.ipc.new_stream(str(tmp_path / "stream.arrow"), table.schema) as stream:
        stream.write_table(table)
    for file in list(tmp_path.iterdir()):
        folder = tmp_path / f"[*?] {file.stem}"  # these are no patterns
        folder.mkdir()
        file.rename(folder / f"test{file.suffix}")
        assert json.dumps(read(folder), default=repr) == expected, file.name


def test_shards_of_other_columns_and_types_keep_their_values(tmp_path: Path) -> None:
    """``datasets`` would cast the second shard to the first one's columns: "007" to 7."""
    for number, rows in enumerate([[{"a": 1}], [{"a": "007"}], [], [{"b": 2.0}]]):
        pyarrow.parquet.write_table(
            pyarrow.Table.from_pylist(rows), tmp_path / f"test-{number}-of-4.parquet"
        )
    assert json.dumps(read(tmp_path)) == '[{"a": 1}, {"a": "007"}, {"b": 2.0}]'


def test_a_saved_data_set_is_read_without_its_format(tmp_path: Path) -> None:
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

    features = Features({"a": Value("string"), "b": ClassLabel(names=["no", "yes"])})
    rows = [{"a": f"2024-01-0{n}", "b": n % 2} for n in range(5)]
    saved = Dataset.from_list(rows, features=features).with_format("numpy", columns=["b"])
    DatasetDict(test=saved).save_to_disk(tmp_path / "whole", num_shards={"test": 2})
    assert json.dumps(read(tmp_path / "whole")) == json.dumps(rows)
    picked = Dataset.from_list(rows).select([3, 1])
    DatasetDict(test=picked).save_to_disk(tmp_path / "picked")
    assert read(tmp_path / "picked") == [rows[3], rows[1]]
    arrow = tmp_path / "whole" / "test" / "data-00001-of-00002.arrow"
    arrow.write_bytes(arrow.read_bytes()[:100])
    with pytest.raises(UserError, match=r"whole/test is not a data set that save_to_disk wrote"):
        read(tmp_path / "whole")


def test_reading_leaves_nothing_behind_and_takes_nothing_from_a_cache(tmp_path: Path) -> None:
    """Nothing is written outside of the temporary folder, which is empty again afterwards."""
    home, temporary, data = tmp_path / "home", tmp_path / "tmp", tmp_path / "data"
    for folder in (home, temporary, data):
        folder.mkdir()
    code = (
        "from tests.data.test_exact_values import *\n"
        f"data = Path({str(data)!r})\n"
        "for value in (1, 2):\n"
        "    pyarrow.parquet.write_table(pyarrow.table({'a': [value]}), data / 'test.parquet')\n"
        "    os.utime(data / 'test.parquet', (0, 0))\n"
        "    print(read(data))\n"
    )
    environment = os.environ | {"HOME": str(home), "TMPDIR": str(temporary), "HF_HUB_OFFLINE": "1"}
    environment.pop("HF_HOME", None)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.split("\n")[:2] == ["[{'a': 1}]", "[{'a': 2}]"]
    assert done.stderr == ""
    assert not list(temporary.iterdir())
    assert not [path for path in home.rglob("*") if path.is_file()]


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
GOOD = '{"a": 1}\n'


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("jsonl", GOOD + '{"a": 1\n', r"jsonl, line 2, column 8: not JSON \(Expecting ',' del"),
        ("jsonl", GOOD + "\n[1]\n", r"jsonl, line 3: not a JSON object; write one per line"),
        ("jsonl", GOOD * 2 + '{"a": 1, "b": {"c": 1, "c": 2}}', r"line 3: the key 'c' is there tw"),
        ("jsonl", GOOD + '{"a": "\\ud83d"}', r"line 2: \\ud83d is half of a surrogate pair"),
        ("jsonl", f'{{"a": {"9" * 5000}}}', r"line 1: Exceeds the limit"),
        ("jsonl", GOOD.encode() + b'{"a": "caf\xe9"}', r"not UTF-8 .*line 2\); .* windows-1252 -t"),
        ("jsonl", GOOD.encode("utf-16"), r"not UTF-8 .*iconv -f utf-16"),
        ("csv", "a,b\n1,2\n".encode("utf-16-le"), r"not UTF-8 .*iconv -f utf-16"),
        ("json", '[{"a": 1},\n 2]', r"json, row 2: not a JSON object"),
        ("json", '[{"a": 1},\n {"a": }]', r"json, line 2, column 8: not JSON"),
        ("json", '{"version": 1, "data": [{"a": 1}]}', r"a list in 'data'; .*jq -c '\.\[\"data\""),
        ("json", '{"version": 1,\n"data": [{"a": 1}]}', r"a list in 'data'; .*jq -c '\.\[\"data\""),
        ("json", '{\n"a": 1,\n"b": 2}', r"single JSON object over several lines"),
        ("jsonl", "", "data.eval_split=test of mine has no rows"),
        ("csv", "", "data.eval_split=test of mine has no rows"),
        ("csv", "a,b\n", "data.eval_split=test of mine has no rows"),
        ("csv", "a,b\n1,2\n1,2,3\n", r"csv, line 3: 3 cells for 2 columns \(a, b\); quote a cell"),
        ("csv", 'a,b\n"x\ny",2\n1\n', r"csv, line 4: 1 cells for 2 columns"),
        ("csv", "a,b,a\n1,2,3\n", r"csv: the column 'a' is there twice"),
        ("csv", "a;b\n1;2\n", r"csv: its first line has ';' between the columns"),
        ("csv", 'a,b\n\n1,2\n"x,2\n3,4\n', r"csv, line 4: unexpected end of data; a cell with"),
        ("csv", 'a,b\n1,2\n"x"y,2\n', r"csv, line 3: ',' expected after '\"'"),
        ("csv", "a,b\nx\ry,2\n", r"csv, line 2: 1 cells for 2 columns"),
        ("tsv", 'a\tb\n"x\ny"\t2\n', r"tsv, line 2, column a: .* save the table as \.csv"),
        ("jsonl", LFS, r"jsonl is a Git LFS pointer.*git lfs pull"),
        ("csv.gz", LFS, r"csv\.gz is a Git LFS pointer.*git lfs pull"),
        ("parquet", LFS, r"parquet is a Git LFS pointer.*git lfs pull"),
        ("arrow", LFS, r"arrow is a Git LFS pointer.*git lfs pull"),
        ("jsonl", b"PAR1\0\0", r"jsonl is a Parquet file; rename it to end in \.parquet"),
        ("jsonl", gzip.compress(b"{}"), r"jsonl is compressed with gzip; let its name end in \.gz"),
        ("jsonl.gz", GOOD, r"jsonl\.gz is cut off or damaged, or is not compressed"),
        ("parquet", GOOD, r"test\.parquet is not a Parquet file"),
        ("parquet", b"PAR1 damaged PAR1", r"test\.parquet is not a Parquet file"),
        ("arrow", GOOD, r"test\.arrow is not a Arrow file"),
        ("arrow", b"ARROW1\0\0 damaged", r"test\.arrow is not a Arrow file"),
    ],
)  # fmt: skip
def test_what_is_no_table_of_rows_is_refused_with_its_place(
    written: Callable[..., Path], name: str, content: str | bytes, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        read(written(content, f"test.{name}"))


def test_a_damaged_row_group_is_refused(tmp_path: Path) -> None:
    rows = pyarrow.table({"a": [os.urandom(50).hex() for _ in range(1000)]})
    pyarrow.parquet.write_table(rows, tmp_path / "test.parquet")
    raw = bytearray((tmp_path / "test.parquet").read_bytes())
    raw[4:2000] = bytes(1996)
    (tmp_path / "test.parquet").write_bytes(raw)
    with pytest.raises(UserError, match=r"test\.parquet is not a Parquet file"):
        read(tmp_path)
