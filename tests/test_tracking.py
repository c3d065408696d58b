"""What W&B really wrote: its offline files, decoded with its own protobuf."""

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.conftest import CliResult

Cli = Callable[..., CliResult]
_BLOCK, _HEADER = 32768, 7


def records(path: Path) -> Iterator[Any]:
    """The records of a ``.wandb`` file, which is a log in LevelDB's format."""
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


def test_each_run_becomes_a_wandb_run_with_the_curves_of_all_its_stages(
    cli: Cli, small: list[str], tmp_path: Path
) -> None:
    asked = [*small, "-m", "method=lora,heft", "epochs=2", "tracking=wandb", "sweep=s"]
    status, out, err = cli(*asked, "training.log_every_steps=1")
    assert status == 0, err
    assert "W&B" not in out
    files = sorted((tmp_path / "outputs/sweeps/s/runs").glob("*/wandb/offline-run-*/*.wandb"))
    assert len(files) == 2
    of_lora, of_heft = (list(records(file)) for file in files)
    start = next(r.run for r in of_heft if r.HasField("run"))
    assert (start.run_group, start.job_type, start.project) == ("s", "heft", "heft")
    assert start.display_name.startswith("1-heft")

    def curve(log: list[Any], name: str) -> list[float]:
        found = []
        for record in log:
            for item in record.history.item if record.HasField("history") else ():
                if (item.key or "/".join(item.nested_key)) == name:
                    found.append(json.loads(item.value_json))
        return found

    coarse = curve(of_lora, "lora/loss")
    assert len(coarse) > 5
    assert curve(of_heft, "lora/loss") == coarse, "a reused stage's curve is whole in each run"
    assert len(curve(of_heft, "reft/loss")) > 3
    assert len(curve(of_heft, "reft/dev_accuracy")) == 2
    assert not curve(of_lora, "reft/loss")


def test_wandb_failing_fails_no_run(
    cli: Cli, small: list[str], tmp_path: Path, monkeypatch: Any
) -> None:
    import wandb

    def refuse(**_: Any) -> None:
        raise wandb.Error("no such key")

    monkeypatch.setattr(wandb, "init", refuse)
    status, out, _ = cli(*small, "method=lora", "epochs=1", "tracking=wandb", "sweep=s")
    assert status == 0
    assert "W&B did not take" in out
    assert "no such key" in out
    assert "complete" in (tmp_path / "outputs/sweeps/s/results.csv").read_text()
