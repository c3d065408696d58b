"""Which files of a folder are a split."""

from pathlib import Path

import pytest

from heft_pipeline.data.split_files import SAVED, split_files
from heft_pipeline.errors import UserError


def files(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}" if not name.endswith("/") else "")
    return folder


def found(folder: Path, split: str = "train", subset: str | None = None) -> list[str]:
    """The split's files as paths within the folder."""
    where = f"data.train_split={split}"
    return [
        f.relative_to(folder).as_posix() for f in split_files(folder, split, where, subset).files
    ]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["train.jsonl", "validation.jsonl"], ["train.jsonl"]),
        (["train.parquet", "train-old.jsonl", "training.jsonl"], ["train.parquet"]),
        (["train.jsonl", "train-2023-backup.jsonl"], ["train.jsonl"]),
        (["train.jsonl", "train.txt", "train.jsonl.bak", "train.parquet.gz"], ["train.jsonl"]),
        (["train.csv.gz", "train.md"], ["train.csv.gz"]),
        (["train.tsv.zst"], ["train.tsv.zst"]),
        (["train.arrow"], ["train.arrow"]),
        (
            ["train-00001-of-00002.parquet", "train-00000-of-00002.parquet"],
            ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"],
        ),
        (["train-00000-of-00001-a1b2c3.parquet"], ["train-00000-of-00001-a1b2c3.parquet"]),
        # The hub gives each shard a hash of its own.
        (["train-0-of-2-cd.json", "train-1-of-2-ab.json"],) * 2,
        (
            [f"train-{n}-of-11.csv" for n in range(11)],
            [f"train-{n}-of-11.csv" for n in range(11)],
        ),
        # Spark and Dask.
        (
            ["train/part-1.snappy.parquet", "train/part-0.snappy.parquet", "train/_SUCCESS",
             "train/.part-0.crc", "train/part-0.crc", "train/_metadata", "train/.hidden/x"],
            ["train/part-0.snappy.parquet", "train/part-1.snappy.parquet"],
        ),
        (["train.csv/0.part.csv", "train.csv/1.part.csv"],) * 2,
        (["train.jsonl/a.jsonl.gz", "train.jsonl/b.jsonl.gz"],) * 2,
        (["train/data-1-of-2.arrow", "train/data-0-of-2.arrow"],
         ["train/data-0-of-2.arrow", "train/data-1-of-2.arrow"]),
        # A downloaded hub repository.
        (["README.md", "data/train-0-of-1.parquet", "data/test-0-of-1.parquet"],
         ["data/train-0-of-1.parquet"]),
        (["train.jsonl", "data/train.jsonl"], ["train.jsonl"]),
        (["data/train/x.parquet"], ["data/train/x.parquet"]),
        (["train.jsonl", "train/_SUCCESS"], ["train.jsonl"]),
    ],
)  # fmt: skip
def test_a_split_is_one_file_or_all_shards_or_a_folder_of_parts(
    tmp_path: Path, names: list[str], expected: list[str]
) -> None:
    assert found(files(tmp_path, *names)) == expected


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["train.jsonl", "train.parquet"], r"more than one train: train\.jsonl, train\.parquet"),
        (["train.jsonl", "train.jsonl.gz"], r"more than one train: train\.jsonl, train\.jsonl\.gz"),
        (["train.jsonl", "train-00000-of-00001.jsonl"], "more than one train"),
        (["train-00000-of-00001.jsonl", "train-00000-of-00001.parquet"], "more than one train"),
        (["train-00000-of-00002.parquet", "train-00001-of-00003.parquet"], "more than one train"),
        (["train-0-of-2-ab.parquet", "train-0-of-2-cd.parquet"], "more than one train"),
        (["train.jsonl", "train/a.jsonl"], r"more than one train: .*train/.*; keep one of them"),
        (["train.csv/a.csv", "train/a.csv"], r"more than one train: train/, train\.csv/"),
        (["train-00001-of-00003.parquet"], "1 of 3 files of train; numbers 0, 2 are missing"),
        (["train/x-0-of-2.parquet"], "1 of 2 files of train; numbers 1 are missing"),
        (["validation-2023-backup.jsonl"], r"no train\.jsonl .*it has validation-2023"),
        (["a.txt", "validation/x.csv"], r"no train\.jsonl .*it has validation/; set data\.train"),
        (["train/a.csv", "train/b.parquet"], r"train has b\.parquet, but .* only csv files"),
        (["train/a.csv", "train/notes.md"], r"train has notes\.md, but"),
        (["train/a.csv", "train/more/b.csv"], r"train has more/, but"),
        (["train.parquet/a.csv"], r"train\.parquet has a\.csv, but .* only parquet files"),
        (["train/cat.png"], r"train has cat\.png, but .* jsonl, json, csv"),
        (["state.json", "data-0-of-1.arrow"], "save a DatasetDict"),
    ],
)
def test_what_is_not_exactly_one_split_is_refused(
    tmp_path: Path, names: list[str], said: str
) -> None:
    with pytest.raises(UserError, match=rf"data\.train_split=train: .*{said}"):
        found(files(tmp_path, *names))


@pytest.mark.parametrize("place", ["easy", "data/easy"])
def test_a_subset_is_a_folder_and_the_only_one_searched(tmp_path: Path, place: str) -> None:
    files(tmp_path, "train.jsonl", f"{place}/train.jsonl", "hard/test.csv")
    assert found(tmp_path, subset="easy") == [f"{place}/train.jsonl"]
    with pytest.raises(UserError, match=r"hard has no train\.jsonl .*it has test\.csv"):
        found(tmp_path, subset="hard")
    with pytest.raises(UserError, match=r"data\.subset=x: .* no folder x; .*data\.subset=null"):
        found(tmp_path, subset="x")


def test_a_saved_data_set_lists_its_files(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    rows = Dataset.from_list([{"a": n} for n in range(5)])
    DatasetDict(train=rows, test=rows).save_to_disk(tmp_path, num_shards={"train": 2, "test": 1})
    (tmp_path / "train" / "notes.md").touch()
    assert split_files(tmp_path, "train", "x").format == SAVED
    assert found(tmp_path) == [
        "train/state.json", "train/dataset_info.json",
        "train/data-00000-of-00002.arrow", "train/data-00001-of-00002.arrow",
    ]  # fmt: skip
    (tmp_path / "train" / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(UserError, match=r"lacks data-00001-of-00002\.arrow"):
        found(tmp_path)
    (tmp_path / "train" / "state.json").write_text("{}")
    with pytest.raises(UserError, match=r"state\.json does not list"):
        found(tmp_path)


def test_a_copy_of_one_subset_alone_needs_no_folder_of_its_name(tmp_path: Path) -> None:
    files(tmp_path, "train.jsonl", "notes/readme.csv")
    assert found(tmp_path, subset="easy") == ["train.jsonl"]
