"""A shared adapter has a card and no path of this machine, and is loaded from where it is."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from huggingface_hub import ModelCard

import heft_pipeline
from heft_pipeline.plan.stage_spec import StageSpec
from heft_pipeline.store.stage_folders import Store
from heft_pipeline.use.push import main as push
from tests.use.hub_server import TOKEN, Hub, hub_server


def heft(hub: Hub, home: Path, *words: object, **more: str) -> subprocess.CompletedProcess[str]:
    """Run ``heft WORDS`` as a process that knows the stand-in as the hub."""
    return subprocess.run(
        [sys.executable, "-m", "heft_pipeline", *map(str, words)],
        capture_output=True,
        text=True,
        env=os.environ
        | {
            "HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1",
            "HF_TOKEN": TOKEN, "HF_HOME": str(home), "XDG_CACHE_HOME": str(home),
        }
        | more,
    )  # fmt: skip


def test_what_is_shared_is_loaded_by_its_name(
    heft_folder: Path, small_model: Path, small_data: Path, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    lines = (small_data / "validation.jsonl").read_text().splitlines()
    rows.write_text("\n".join(lines[:5]) + "\n")
    with hub_server() as hub:
        shared = heft(
            hub, tmp_path, "push", heft_folder, "me/mine", "--license", "mit", "--private"
        )
        assert shared.returncode == 0, shared.stderr
        assert f"{hub.address}/me/mine" in shared.stdout
        assert hub.private == {"me/mine"}
        files = hub.files["me/mine"]
        assert {"README.md", "stage.json", "reft.safetensors", "measured.json",
                "parents/0-lora/adapter_model.safetensors"} <= set(files)  # fmt: skip
        assert not [name for name in files if name.endswith((".bin", ".pkl", ".pt"))]
        own = (str(small_model), str(small_data), str(heft_folder), os.uname().nodename)
        for name, content in files.items():
            if not name.endswith(".safetensors"):
                assert not [text for text in own if text in content.decode()], name
        hub.private.clear()
        words = ["me/mine", "--license", "mit", "--private"]
        public = heft(hub, tmp_path, "push", heft_folder, *words)
        assert public.returncode == 1 and "everyone can see it" in public.stderr
        # Somebody else, who has the base model in another place.
        asked = ["predict", "me/mine", "--data", rows, "--model", small_model]
        found = heft(hub, tmp_path / "other", *asked)
        assert found.returncode == 0, found.stderr
        here = heft(hub, tmp_path, "predict", heft_folder, "--data", rows)
        assert [json.loads(line)["prediction"] for line in found.stdout.splitlines()] == [
            json.loads(line)["prediction"] for line in here.stdout.splitlines()
        ]
        # Without the base, it is said what is missing; with the cache, no hub is needed.
        lost = heft(hub, tmp_path / "other", "predict", "me/mine", "--data", rows)
        assert lost.returncode == 1 and "is not here" in lost.stderr
        nothing = heft(hub, tmp_path, "predict", "me/other", "--data", rows)
        assert nothing.returncode == 1 and "me/other is neither" in nothing.stderr
    again = heft(hub, tmp_path / "other", *asked, HF_HUB_OFFLINE="1")
    assert again.stdout == found.stdout, again.stderr


def test_who_may_not_write_is_told_what_to_do(heft_folder: Path, tmp_path: Path) -> None:
    with hub_server() as hub:
        asked = ["push", heft_folder, "me/mine", "--license", "mit"]
        wrong = heft(hub, tmp_path, *asked, HF_TOKEN="hf_wrong")
        assert wrong.returncode == 1 and "hf auth login" in wrong.stderr
        hub.readers = True
        reader = heft(hub, tmp_path, *asked)
        assert reader.returncode == 1 and "may not write to me/mine (403)" in reader.stderr
        offline = heft(hub, tmp_path, *asked, HF_HUB_OFFLINE="1")
        assert offline.returncode == 1 and "HF_HUB_OFFLINE is set" in offline.stderr
        for one in (wrong, reader, offline):
            assert one.stderr.count("\n") == 1 and "hf_wrong" not in one.stderr
    gone = heft(hub, tmp_path, *asked)
    assert gone.returncode == 1 and "the hub did not answer" in gone.stderr


def test_the_card_says_what_was_measured(
    heft: StageSpec, kept: Store, heft_folder: Path, tmp_path: Path
) -> None:
    to = tmp_path / "to"
    assert push([str(heft_folder), "me/mine", "--license", "mit", "--dry-run", str(to)]) == 0
    text = (to / "README.md").read_text()
    card = ModelCard(text)
    assert card.data.to_dict()["license"] == "mit"
    accuracy = pd.read_parquet(kept.folder(heft.fingerprint) / "predictions.parquet").credit.mean()
    (result,) = yaml.safe_load(text.split("---")[1])["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == pytest.approx(accuracy, abs=1e-4)
    assert f"| {accuracy:.2%}".replace("%", " %") in text and "95 % interval" in text
    assert 'heft_pipeline.load("me/mine", model="BASE")' in text
    # An exported folder remembers it.
    exported = tmp_path / "again"
    assert push([str(to), "me/mine", "--license", "mit", "--model", heft.model.id,
                 "--dry-run", str(exported)]) == 0  # fmt: skip
    assert (exported / "README.md").read_text() == text
    with heft_pipeline.load(exported, model=heft.model.id) as model:
        assert model.stage.label == heft.label


@pytest.mark.parametrize("repo", ["mine", "a/b/c", "me/mi ne", "../x/y"])
def test_a_name_that_is_none_is_refused(
    repo: str, heft_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert push([str(heft_folder), repo, "--license", "mit"]) == 1
    assert "is no repository of the hub; write OWNER/NAME" in capsys.readouterr().err
