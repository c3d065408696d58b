"""What a wheel has, built as an installation builds it: all that is needed, and no more."""

import subprocess
import sys
import zipfile
from collections.abc import Mapping
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("heft_pipeline", "launch", "hydra_plugins")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, bytes]:
    """The files of the wheel by their names in it."""
    pytest.importorskip("hatchling", reason="it builds the wheel, and no network is asked for it")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def in_git(*folders: str) -> set[str]:
    """The files of folders that are versioned."""
    command = ["git", "ls-files", "-z", "--", *folders]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("this is no checkout")
    return {name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()}


def test_it_has_every_file_of_the_packages_and_every_config(wheel: Mapping[str, bytes]) -> None:
    expected = in_git(*PACKAGES) | {f"heft_pipeline/{name}" for name in in_git("conf")}
    own = {name for name in wheel if ".dist-info/" not in name}
    assert own == expected
    for needed in ("py.typed", "conf/config.yaml", "conf/tracking/none.yaml"):
        assert f"heft_pipeline/{needed}" in own
    for room in ("data/demo", "report/templates"):
        assert any(name.startswith(f"heft_pipeline/{room}/") for name in own)


def test_it_says_what_the_project_is(wheel: Mapping[str, bytes]) -> None:
    (name,) = [name for name in wheel if name.endswith(".dist-info/METADATA")]
    said = Parser().parsestr(wheel[name].decode())
    assert said["Name"] == "heft-pipeline"
    assert said["Author"] == "The HEFT pipeline's authors"
    assert "Typing :: Typed" in said.get_all("Classifier", [])
    assert {"trackio", "mlflow", "tensorboard"} <= set(said.get_all("Provides-Extra", []))
    (scripts,) = [wheel[name] for name in wheel if name.endswith("/entry_points.txt")]
    assert b"heft = heft_pipeline.__main__:main" in scripts
    if (ROOT / "LICENSE").is_file():
        assert any(name.endswith(".dist-info/licenses/LICENSE") for name in wheel)
