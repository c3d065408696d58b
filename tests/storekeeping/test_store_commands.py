"""The store's commands on a real store: what is in it, whole or not, needed or not, and why."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.same_results import differences
from heft_pipeline.command_line import warnings
from heft_pipeline.store.__main__ import main
from heft_pipeline.store.stage_folders import Store
from heft_pipeline.storekeeping.archive import read_archive
from tests.conftest import CliResult
from tests.launch.test_damaged_store import flip

Keep = Callable[..., tuple[int, str]]
ASKED = ["-m", "method=heft,lora", "epochs=1", "sweep=s"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, small: list[str]) -> Path:
    outputs = tmp_path_factory.mktemp("finished") / "outputs"
    command = [sys.executable, "-m", "heft_pipeline", ASKED[0], *small, *ASKED[1:]]
    subprocess.run([*command, f"output_dir={outputs}"], check=True, capture_output=True)
    return outputs


@pytest.fixture
def outputs(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(warnings, "_said", set())
    return shutil.copytree(finished, tmp_path / "outputs")


@pytest.fixture
def keep(capfd: pytest.CaptureFixture[str], outputs: Path) -> Iterator[Keep]:
    """Run a command of the store on ``outputs``; returns its exit status and what it said."""

    def called(name: str, *arguments: object, store: Path = outputs) -> tuple[int, str]:
        status = main([name, str(store), *map(str, arguments)])
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return status, out + err

    yield called


def stage(outputs: Path, kind: str) -> Path:
    for path in outputs.glob("stages/*/stage.json"):
        if json.loads(path.read_text())["kind"] == kind:
            return path.parent
    raise AssertionError(f"there is no {kind}")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def age(folder: Path) -> None:
    """Make everything in a folder a day old."""
    when = time.time() - 86400
    for path in [*folder.rglob("*"), folder]:
        os.utime(path, (when, when), follow_symlinks=False)


def test_ls_says_what_takes_space_and_writes_nothing(keep: Keep, outputs: Path) -> None:
    before = contents(outputs)
    status, said = keep("ls")
    assert status == 0
    assert "3 stages" in said and said.count("complete") == 3
    for by, group in (("model", "small-model"), ("sweep", "s"), ("age", "today")):
        status, said = keep("ls", "--by", by)
        assert status == 0 and group in said
    status, said = keep("ls", "--json")
    entries = json.loads(said)
    assert {entry["state"] for entry in entries} == {"complete"}
    assert all(entry["bytes"] > 0 and entry["sweeps"] == ["s"] for entry in entries)
    assert contents(outputs) == before


def test_verify_finds_every_changed_byte_and_writes_nothing(keep: Keep, outputs: Path) -> None:
    assert keep("verify")[0] == 0
    changed = []
    for folder in sorted(outputs.glob("stages/*")):
        for name in ("predictions.parquet", "stage.json", "adapter/reft.safetensors", "result.json",
                     "adapter/adapter_model.safetensors", "metrics.jsonl"):  # fmt: skip
            if (folder / name).is_file():
                flip(folder / name)
                changed.append(folder / name)
    before = contents(outputs)
    status, said = keep("verify")
    assert status == 1
    assert not [path for path in changed if f"{path} " not in said], said
    assert "0 stages are whole, 3 damaged" in said
    assert contents(outputs) == before


def test_what_verify_sets_aside_is_made_anew(
    keep: Keep, outputs: Path, finished: Path, cli: Callable[..., CliResult], small: list[str]
) -> None:
    fine = stage(outputs, "reft")
    flip(fine / "adapter" / "reft.safetensors")
    assert "after --set-aside" in keep("verify")[1]
    status, said = keep("verify", "--set-aside")
    assert status == 1
    assert f"{fine / 'damaged'}" in said
    assert keep("verify")[0] == 0
    assert cli(ASKED[0], *small, *ASKED[1:], output_dir=outputs)[0] == 0
    assert not list(differences(finished / "stages" / fine.name, fine))


def test_verify_can_score_stages_again(keep: Keep, outputs: Path) -> None:
    status, said = keep("verify", "--recompute", 3)
    assert status == 0, said
    assert said.count("scored again, equal to the bit") == 3


def test_a_stage_that_answers_otherwise_than_it_says_is_found(keep: Keep, outputs: Path) -> None:
    """Its files fit its manifest, as of one that somebody has made up."""
    import pandas as pd

    store, folder = Store(outputs), stage(outputs, "lora")
    table = pd.read_parquet(folder / "predictions.parquet")
    table["prediction"] = table["gold"]
    table.to_parquet(folder / "predictions.parquet", index=False)
    result = json.loads((folder / "result.json").read_text())
    store.complete(folder.name, {k: v for k, v in result.items() if k not in ("files", "sha256")})
    assert keep("verify")[0] == 0
    status, said = keep("verify", "--recompute", 3)
    assert status == 1
    assert "predictions differ" in said


def test_gc_removes_what_no_sweep_needs_and_nothing_else(
    keep: Keep, outputs: Path, cli: Callable[..., CliResult], small: list[str]
) -> None:
    assert cli(*small, "method=lora", "epochs=2", "sweep=gone", output_dir=outputs)[0] == 0
    shutil.rmtree(outputs / "sweeps" / "gone")
    before = contents(outputs / "sweeps")
    needed = {path.name for path in outputs.glob("stages/*")}
    (extra,) = [
        path for path in outputs.glob("stages/*") if "lora@2" in (path / "result.json").read_text()
    ]
    (stage(outputs, "lora") / "damaged" / "x").mkdir(parents=True)
    part = stage(outputs, "reft") / ".metrics.jsonl.123-0a1b2c3d"
    part.write_text("half")
    assert "which no sweep needs" not in keep("gc", "--dry-run")[1], "it is young"
    age(outputs)
    status, said = keep("gc", "--dry-run")
    assert status == 0 and f"{extra}: stage" in said and str(part) in said and "damaged" in said
    status, said = keep("gc")
    assert status == 1 and "nobody can be asked here" in said
    assert extra.is_dir()
    status, said = keep("gc", "--yes")
    assert status == 0
    assert not extra.exists() and not part.exists()
    assert {path.name for path in outputs.glob("stages/*")} == needed - {extra.name}
    assert contents(outputs / "sweeps") == before
    assert keep("verify")[0] == 0
    assert "nothing to remove" in keep("gc", "--yes")[1]


def test_gc_removes_nothing_that_a_sweep_with_a_broken_plan_may_need(
    keep: Keep, outputs: Path
) -> None:
    for path in outputs.glob("sweeps/s/**/plan.json"):
        path.write_text("{")
    age(outputs)
    before = contents(outputs)
    status, said = keep("gc", "--yes")
    assert status == 1 and "plan.json is cut off or broken" in said
    assert contents(outputs) == before


def test_a_running_stage_is_never_removed(keep: Keep, outputs: Path) -> None:
    folder = stage(outputs, "reft")
    shutil.rmtree(outputs / "sweeps")
    (folder / "result.json").unlink()
    with Store(outputs).lock(folder.name, lambda _: None):
        age(outputs)
        keep("gc", "--yes")
        assert folder.is_dir()
        status, said = keep("rm", "--yes", folder.name)
        assert status == 1 and "is running; cancel it first" in said
    assert folder.is_dir()


def test_rm_asks_and_refuses_a_stage_that_others_stand_on(keep: Keep, outputs: Path) -> None:
    coarse, fine = stage(outputs, "lora"), stage(outputs, "reft")
    status, said = keep("rm", coarse.name)
    assert status == 1 and "name both, or neither" in said
    status, said = keep("rm", fine.name[:10])
    assert status == 1 and "nobody can be asked" in said and fine.is_dir()
    status, said = keep("rm", "--yes", fine.name, coarse)
    assert status == 0 and "which s needs" in said
    assert not fine.exists() and not coarse.exists()
    assert list(outputs.glob("stages/.*")) == []


def test_a_stage_and_its_parents_go_to_another_store_and_are_used_there(
    keep: Keep, outputs: Path, tmp_path: Path, cli: Callable[..., CliResult], small: list[str]
) -> None:
    archive, other = tmp_path / "stages.tar", tmp_path / "other"
    status, said = keep("export", stage(outputs, "reft").name, "--to", archive)
    assert status == 0 and said.count("✓") == 2
    status, said = keep("import", archive, store=other)
    assert status == 0 and said.count("✓") == 2
    for kind in ("lora", "reft"):
        assert not list(differences(stage(outputs, kind), stage(other, kind)))
    assert keep("verify", store=other)[0] == 0
    status, said = keep("import", archive, store=other)
    assert status == 0 and said.count("is here already") == 2
    status, out, _ = cli(*small, "method=heft", "epochs=1", "sweep=s", output_dir=other)
    assert status == 0 and "2 complete" in out
    assert "exists already" in keep("export", stage(outputs, "reft").name, "--to", archive)[1]


def rewritten(archive: Path, change: Callable[[str, bytes], tuple[str, bytes]]) -> Path:
    """A copy of an archive with other names or contents."""
    import io

    to = archive.with_name("changed.tar")
    with tarfile.open(archive) as old, tarfile.open(to, "w") as new:
        for member in old:
            name, content = change(member.name, old.extractfile(member).read())  # type: ignore[union-attr]
            member.name, member.size = name, len(content)
            new.addfile(member, io.BytesIO(content))
    return to


CHANGES: dict[str, Callable[[str, bytes], tuple[str, bytes]]] = {
    "flipped": lambda n, c: (n, c[:-1] + b"x" if n.endswith("adapter_model.safetensors") else c),
    "renamed": lambda n, c: (n.replace("metrics.jsonl", "other.jsonl"), c),
    "outside": lambda n, c: (n.replace("stages/", "stages/../../"), c),
    "absolute": lambda n, c: (n.replace("stages/", "/tmp/"), c),
    "up": lambda n, c: (n.replace("metrics.jsonl", "../../../evil"), c),
    "other key": lambda n, c: ("stages/" + "0" * 16 + n[23:], c),
    "settings": lambda n, c: (n, c.replace(b'"seed": 0', b'"seed": 1')),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_archive_adds_nothing(
    change: str, keep: Keep, outputs: Path, tmp_path: Path
) -> None:
    archive, other = tmp_path / "stages.tar", tmp_path / "other"
    keep("export", stage(outputs, "lora").name, "--to", archive)
    before = contents(tmp_path)
    status, said = keep("import", rewritten(archive, CHANGES[change]), store=other)
    assert status == 1, said
    assert not list(other.glob("stages/*")) and not list(other.glob("stages/.import*"))
    assert contents(tmp_path).items() - {(str(tmp_path / "changed.tar"), b"")} >= before.items()
    assert not list(tmp_path.rglob("evil"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_an_archive_are_refused(
    kind: bytes, keep: Keep, outputs: Path, tmp_path: Path
) -> None:
    archive, other = tmp_path / "stages.tar", tmp_path / "other"
    with tarfile.open(archive, "w") as new:
        member = tarfile.TarInfo(f"stages/{'0' * 16}/stage.json")
        member.type, member.linkname = kind, "/etc/passwd"
        new.addfile(member)
    status, said = keep("import", archive, store=other)
    assert status == 1 and "is no file of a stage" in said
    for content in (b"", b"nonsense"):
        archive.write_bytes(content)
        assert keep("import", archive, store=other)[0] == 1
    assert not list(other.glob("stages/*"))


def test_an_archive_without_a_parent_is_refused(keep: Keep, outputs: Path, tmp_path: Path) -> None:
    archive, other, coarse = tmp_path / "a.tar", tmp_path / "other", stage(outputs, "lora").name
    keep("export", stage(outputs, "reft").name, "--to", archive)
    alone = tmp_path / "alone.tar"
    with tarfile.open(archive) as old, tarfile.open(alone, "w") as new:
        for member in old:
            if coarse not in member.name:
                new.addfile(member, old.extractfile(member))
    status, said = keep("import", alone, store=other)
    assert status == 1 and f"lacks the stage {coarse}" in said
    read_archive(archive, Store(other))
    shutil.rmtree(stage(other, "reft"))
    assert keep("import", alone, store=other)[0] == 0, "the store has the parent"


def test_a_damaged_stage_is_not_exported(keep: Keep, outputs: Path, tmp_path: Path) -> None:
    flip(stage(outputs, "lora") / "adapter/adapter_model.safetensors")
    status, said = keep("export", stage(outputs, "reft").name, "--to", tmp_path / "a.tar")
    assert status == 1 and "does not fit its checksum" in said
    assert not (tmp_path / "a.tar").exists()


def test_why_names_the_settings_and_contents_that_differ(
    keep: Keep, outputs: Path, cli: Callable[..., CliResult], small: list[str], tmp_path: Path
) -> None:
    data = next(item for item in small if item.startswith("data.path="))
    other = shutil.copytree(data.removeprefix("data.path="), tmp_path / "data")
    with (other / "train.jsonl").open("a") as file:
        file.write('{"passage": "a b", "question": "a", "answer": true}\n')
    asked = [*small, "method=heft", "epochs=1", "sweep=t", f"data.path={other}"]
    status, out, _ = cli(*asked, output_dir=outputs)
    assert status == 0
    first = [name for name in out.splitlines() if name.startswith("The finished stage")]
    assert len(first) == 1, "a near twin is said in a line"
    assert "they differ in data.content" in first[0] and "the files of the data differ" in first[0]
    status, said = keep("why", "s/heft-1-r8-s0", "t/heft-1-r8-s0")
    assert status == 0
    assert said.count("data.content: ") == 1 and "(the files of the data differ)" in said
    status, said = keep("why", stage(outputs, "base").name, stage(outputs, "lora").name)
    assert "- adapters: none and lora" in said or "- adapters: lora and none" in said
    key = stage(outputs, "lora").name
    assert f"Both are the stage {key}" in keep("why", key, key)[1]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["lora.rank=4"], "lora.rank: 4 and 8 and in lora.alpha: 8.0 and 16.0"),
        (["lora.learning_rate=1e-3"], "lora.learning_rate: 0.001 and 0.003"),
        (["training.max_grad_norm=2"], "training.max_grad_norm: 2.0 and 1.0"),
        (["seed=1,2"], ""),
        (["seed=1"], "seed: 1 and 0"),
    ],
)
def test_a_near_twin_is_said_unless_the_sweep_varies_that_itself(
    change: list[str], said: str, outputs: Path, cli: Callable[..., CliResult], small: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("launch.execute_plan.execute_here", lambda *_: {})
    _, out, _ = cli("-m", *small, "method=lora", "epochs=1", "sweep=t", *change,
                    output_dir=outputs)  # fmt: skip
    lines = [line for line in out.splitlines() if line.startswith("The finished stage")]
    assert len(lines) == bool(said)
    assert not said or lines[0].endswith(f"they differ in {said}")


def test_show_tells_what_made_a_stage_and_what_uses_it(keep: Keep, outputs: Path) -> None:
    status, said = keep("show", "s/heft-1-r8-s0")
    assert status == 0
    assert stage(outputs, "reft").name in said
    assert f"trained on   {stage(outputs, 'lora').name}" in said
    assert "used by      s/heft-1-r8-s0" in said
    assert "method=heft,lora" in said and "torch" in said
    status, said = keep("show", stage(outputs, "lora").name[:8])
    assert "s/heft-1-r8-s0" in said and "s/lora-1-r8-s0" in said
    assert keep("show", "s/nothing")[1].startswith("Error: the sweep s has no run nothing; it has")
    assert keep("show", "zz")[0] == 1
    assert keep("ls", store=outputs / "sweeps")[0] == 1
