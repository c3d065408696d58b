"""TensorBoard's event files, read back with the protobuf that they are made of."""

import struct
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from heft_pipeline.errors import UserError
from heft_pipeline.settings.tracking import TrackingSettings
from heft_pipeline.tracking.send import require_tracker
from heft_pipeline.training.metrics import read_metrics
from tests.conftest import CliResult
from tests.tracking.conftest import HEFT, LORA, Track, stage_folders

Cli = Callable[..., CliResult]


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The (step, value) pairs of each tag in a run's one event file."""
    from tensorboardX.proto.event_pb2 import Event

    (file,) = folder.glob("events.out.tfevents.*")
    found: dict[str, list[tuple[int, float]]] = defaultdict(list)
    data, at = file.read_bytes(), 0
    while at < len(data):  # length, its checksum, the event, its checksum
        (length,) = struct.unpack("<Q", data[at : at + 8])
        event: Any = Event()
        event.ParseFromString(data[at + 12 : at + 12 + length])
        for value in event.summary.value:
            if value.HasField("simple_value"):
                found[value.tag].append((event.step, value.simple_value))
            else:
                found[value.tag] = []
        at += 16 + length
    return found


def test_each_stages_curves_are_over_its_own_steps(sweep: Path, track: Track) -> None:
    done = track(sweep, "--to", "tensorboard")
    assert done.returncode == 0, done.stderr
    assert f"tensorboard --logdir {sweep / 'tensorboard'}" in done.stdout
    found = scalars(sweep / "tensorboard" / HEFT)
    for prefix, folder in zip(("lora", "reft"), stage_folders(sweep, HEFT), strict=True):
        lines = read_metrics(folder / "metrics.jsonl")
        for name in ("loss", "learning_rate", "grad_norm", "dev_accuracy"):
            expected = [(line["step"], line[name]) for line in lines if name in line]
            steps, values = zip(*found[f"{prefix}/{name}"], strict=True)
            assert list(steps) == [step for step, _ in expected]
            assert list(values) == pytest.approx([value for _, value in expected], rel=1e-6)
    assert found["accuracy"][0][0] == 4
    assert "_hparams_/session_start_info" in found
    assert set(scalars(sweep / "tensorboard" / LORA)) >= {"lora/loss", "accuracy"}


def test_a_run_is_written_again_whole_when_it_has_changed(sweep: Path, track: Track) -> None:
    result = stage_folders(sweep, HEFT)[1] / "result.json"
    result.rename(result.with_name("kept.json"))
    assert track(sweep, "--to", "tensorboard").returncode == 0
    assert "accuracy" not in scalars(sweep / "tensorboard" / HEFT)
    result.with_name("kept.json").rename(result)
    assert "1 unchanged" in track(sweep, "--to", "tensorboard").stdout
    found = scalars(sweep / "tensorboard" / HEFT)
    assert len(found["accuracy"]) == 1
    lines = read_metrics(stage_folders(sweep, HEFT)[0] / "metrics.jsonl")
    assert len(found["lora/loss"]) == sum("loss" in line for line in lines)


def test_a_tracked_sweep_is_there_when_it_has_ended(
    cli: Cli, small: list[str], tmp_path: Path
) -> None:
    asked = [*small, "method=lora", "lora.epochs=2", "tracking=tensorboard", "sweep=s"]
    status, out, err = cli(*asked)
    assert status == 0, out + err
    assert "TensorBoard: 1 run" in out
    folder = tmp_path / "outputs/sweeps/s/tensorboard/lora-3-r8-s0"
    assert len(scalars(folder)["lora/dev_loss"]) == 2


def test_without_its_package_it_is_refused_with_what_to_type(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    require_tracker(TrackingSettings(name="tensorboard"))
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(UserError, match=r"pip install 'heft-pipeline\[tensorboard\]'"):
        require_tracker(TrackingSettings(name="tensorboard"))
