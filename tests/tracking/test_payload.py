"""What there is to send of a run, read from a sweep's files."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from heft_pipeline.data.other_text import chosen_text, text_note
from heft_pipeline.plan.graph import Plan, Run, untouched_model
from heft_pipeline.plan.stage_spec import from_json
from heft_pipeline.settings.schema import config_dir
from heft_pipeline.settings.tracking import TrackingSettings
from heft_pipeline.store.sweep_folders import Sweep
from heft_pipeline.tracking.payload import PlannedRun, planned_runs, stage_prefixes
from tests.conftest import composed_run
from tests.tracking.conftest import HEFT, LORA, Track, stage_folders


def planned(sweep: Path, name: str) -> PlannedRun:
    (found,) = [run for run in planned_runs(Sweep(sweep)) if run.name == name]
    return found


def test_curves_of_the_second_stage_of_a_kind_are_numbered(
    compose_run: Callable[..., Run], small: list[str]
) -> None:
    run = compose_run(*small, "method.stages=[lora,reft,lora]")
    assert stage_prefixes(run.stages) == ["lora", "reft", "lora2"]


def test_folders_of_this_machine_are_shown_by_name_and_digest(
    small: list[str], small_model: Path, small_data: Path, tmp_path: Path
) -> None:
    starts = {kind: tmp_path / f"{kind}-start" for kind in ("lora", "reft")}
    for folder in starts.values():
        folder.mkdir()
        for name in ("adapter_config.json", "adapter_model.safetensors", "intkey_a.bin"):
            (folder / name).write_text(folder.name)
        (folder / "config.json").write_text('{"sorted_keys": ["a"]}')
    asked = [*small, *(f"{kind}.init_from={folder}" for kind, folder in starts.items())]
    asked += [f"report.forgetting={tmp_path / 'text.txt'}"]
    run = composed_run(*asked, "method=joint")
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = compose("config", ["sweep=test", *run.overrides])
    sweep = Sweep(tmp_path / "sweeps" / "test")
    sweep.record(Plan((run,)))
    config = sweep.folder / "runs" / run.name / ".hydra" / "config.yaml"
    config.parent.mkdir(parents=True)
    OmegaConf.save(cfg, config)
    shown = planned(sweep.folder, run.name).tracked(TrackingSettings()).config
    assert str(tmp_path) not in json.dumps(shown)
    assert str(small_data) not in json.dumps(shown)
    assert (shown["model"]["id"], shown["data"]["path"]) == (small_model.name, small_data.name)
    assert shown["report"]["forgetting"] == "text.txt"
    assert shown["data"]["choices"] == {"true": " yes", "false": " no"}
    for kind, folder in starts.items():
        assert shown[kind]["init_from"] == folder.name
        assert shown[kind]["init_content"].startswith("sha256:")
    assert shown["method"] == {"stages": ["lora+reft"], "name": "joint"}
    assert shown["stages"] == {"joint": run.last.fingerprint}


def test_a_lines_number_never_comes_to_mean_another_line(sweep: Path) -> None:
    whole = planned(sweep, HEFT).tracked(TrackingSettings()).lines
    lora, reft = stage_folders(sweep, HEFT)
    result, metrics = lora / "result.json", reft / "metrics.jsonl"
    written = metrics.read_text()
    for size in (0, len(written) // 2, len(written)):  # the second stage while it is written
        metrics.write_text(written[:size])
        part = planned(sweep, HEFT).tracked(TrackingSettings()).lines
        assert part == whole[: len(part)]
    result.unlink()  # the first stage is trained again: the second's lines have no numbers yet
    part = planned(sweep, HEFT).tracked(TrackingSettings()).lines
    assert part == whole[: len(part)]
    assert {name.split("/")[0] for line in part for name in line} == {"lora"}


def test_what_is_known_beside_accuracy_is_in_the_summary(sweep: Path) -> None:
    run = planned(sweep, HEFT)
    before = run.tracked(TrackingSettings()).summary
    assert 0 <= before["ece"] <= 1
    assert 0 <= before["brier"] <= 2
    assert "forgetting" not in before, "this model cannot read the text that ships"
    stages = [from_json(run.stages[key]) for key in run.keys]
    text = chosen_text(text_note("builtin"), stages[0].model.id)
    assert text is not None
    for stage, loss in ((untouched_model(stages[0]), 2.0), (stages[0], 2.1), (stages[1], 2.25)):
        entry = {"text": text.name, "windows": 2, "tokens": 128, "losses": [loss, loss + 1]}
        run.sweep.store.note_text_losses(stage.fingerprint, text.digest, entry)
    after = run.tracked(TrackingSettings())
    assert after.summary["forgetting"] == pytest.approx(0.25)
    assert {**after.summary, "forgetting": None} == {**before, "forgetting": None}


def test_the_id_is_the_runs_own_and_that_of_its_stages(sweep: Path) -> None:
    runs = {name: planned(sweep, name).tracked(TrackingSettings()) for name in (LORA, HEFT)}
    assert runs[LORA].id != runs[HEFT].id
    again = planned(sweep, LORA).tracked(TrackingSettings(tags=["x"]))
    assert again.id == runs[LORA].id
    assert replace(again, fingerprints=("other",)).id != again.id
    assert again.digest() != runs[LORA].digest()


def test_the_time_in_a_sweeps_name_is_the_time_it_was_started(sweep: Path) -> None:
    config = sweep / "runs" / LORA / ".hydra" / "config.yaml"
    config.write_text(config.read_text().replace("sweep: s", "sweep: ${now:%Y-%m-%d}"))
    assert planned(sweep, LORA).config.sweep == "s"


def test_reading_a_sweep_imports_neither_wandb_nor_torch(sweep: Path) -> None:
    code = (
        "import sys, heft_pipeline.tracking, heft_pipeline.tracking.send\n"
        "from pathlib import Path\n"
        "from heft_pipeline.settings.tracking import TrackingSettings\n"
        "from heft_pipeline.store.sweep_folders import Sweep\n"
        "from heft_pipeline.tracking.payload import planned_runs\n"
        "from heft_pipeline.tracking.send import require_tracker\n"
        "require_tracker(TrackingSettings(name='wandb'))\n"
        "[run.tracked(run.config.tracking) for run in planned_runs(Sweep(Path(sys.argv[1])))]\n"
        "print([m for m in ('wandb', 'torch', 'transformers') if m in sys.modules])"
    )
    command = [sys.executable, "-c", code, str(sweep)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr


def test_a_folder_that_is_no_sweep_is_one_message(tmp_path: Path, track: Track) -> None:
    done = track(tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: ")
    assert "is not a sweep" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (("--run", "nosuch"), "--run nosuch is not a run"),
        (("--project", "a/b"), "tracking.project="),
        (("--mode", "online"), "wandb login"),
    ],
)
def test_bad_options_are_one_message(
    sweep: Path, track: Track, option: tuple[str, str], words: str
) -> None:
    done = track(sweep, *option)
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_without_a_trained_step_is_skipped_and_the_others_are_sent(
    sweep: Path, track: Track
) -> None:
    plan = json.loads((sweep / "plan.json").read_text())
    for key in plan["runs"][0]["stages"]:
        folder = sweep.parent.parent / "stages" / key
        (folder / "result.json").unlink()
        (folder / "metrics.jsonl").unlink()
    done = track(sweep, "--to", "tensorboard")
    assert done.returncode == 0
    assert "skipped: incomplete, and nothing is trained yet" in done.stdout
    assert max(map(len, done.stdout.splitlines()[:2])) <= 80
