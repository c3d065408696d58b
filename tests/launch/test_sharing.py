"""Several processes, and several people, use one store at once."""

import json
import os
import stat
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from shutil import rmtree

import pytest

from benchmarks.chaos.commands import obey_permissions
from benchmarks.same_results import differences
from heft_pipeline.store.stage_folders import Store

ROOT = Path(__file__).parents[2]
#: A command line in a process whose flock says yes to everybody, as on some network file systems.
NO_FLOCK = """
import fcntl, sys
fcntl.flock = lambda *_: None
from heft_pipeline.__main__ import main
main()
"""
OVERLAPPING = [
    ("a", "method=lora,heft"),
    ("a", "method=reft"),
    ("b", "method=heft,reft"),
    ("b", "method=lora"),
    ("c", "method=heft"),
    ("c", "method=heft"),
    ("d", "method=lora"),
    ("e", "method=lora,reft,heft"),
]


def test_eight_processes_train_each_stage_once_where_flock_does_nothing(
    small: list[str], tmp_path: Path
) -> None:
    shared, alone = tmp_path / "shared", tmp_path / "alone"
    asked = [*small, "epochs=1"]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", NO_FLOCK, "-m", *asked, method, f"sweep={sweep}",
             f"output_dir={shared}"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for sweep, method in OVERLAPPING
    ]  # fmt: skip
    broken = read_all_the_time(shared, processes)
    said = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), said
    assert not broken, "nothing half-written is ever seen"
    trained = [line for out, _ in said for line in out.splitlines() if line.startswith("✓")]
    assert len(trained) == len(list(shared.glob("stages/*"))) == 4, said
    runs = {
        path.parent.name: len(json.loads(path.read_text())["runs"])
        for path in shared.glob("sweeps/*/plan.json")
    }
    assert runs == {"a": 3, "b": 3, "c": 1, "d": 1, "e": 3}
    command = [sys.executable, "-m", "heft_pipeline", "-m", *asked, "method=lora,reft,heft"]
    subprocess.run([*command, f"output_dir={alone}"], check=True, capture_output=True)
    for folder in alone.glob("stages/*"):
        assert not list(differences(folder, shared / "stages" / folder.name))
    assert not list(shared.rglob("*.held"))


def read_all_the_time(outputs: Path, writing: Sequence["subprocess.Popen[str]"]) -> list[str]:
    """Read every JSON file again and again while processes write; what is broken."""
    found, store = [], Store(outputs)
    deadline = time.monotonic() + 300
    while any(process.poll() is None for process in writing) and time.monotonic() < deadline:
        for path in [*outputs.glob("stages/*/*.json"), *outputs.glob("sweeps/*/plan.json")]:
            try:
                json.loads(path.read_text())
            except FileNotFoundError:
                pass
            except ValueError as error:
                found.append(f"{path}: {error}")
        found += [f"{p.name}: {d}" for p in outputs.glob("stages/*") if (d := store.damage(p.name))]
        time.sleep(0.05)
    return found


GROUP, COLLEAGUE = 40010, 40001


def run(*arguments: str) -> str:
    """Run the command line as a member of the group, whose umask lets the group write."""
    done = subprocess.run(
        [sys.executable, "-m", "heft_pipeline", *arguments], cwd=ROOT, extra_groups=[GROUP],
        preexec_fn=obey_permissions, umask=0o002, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def give_to_colleague(outputs: Path) -> None:
    for path in [outputs, *outputs.rglob("*")]:
        os.chown(path, COLLEAGUE, GROUP)
        if path.is_dir():
            path.chmod(0o2775)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to others")
def test_two_people_share_a_store_that_their_group_can_write(
    small: list[str], tmp_path: Path
) -> None:
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    asked = [*small, "epochs=1", "sweep=s", f"output_dir={outputs}"]
    run(*asked, "method=lora")
    give_to_colleague(outputs)
    assert "2 complete" in run(*asked, "method=heft"), "the coarse stage and the untouched model"
    coarse = next(outputs.glob("stages/*/adapter/adapter_model.safetensors"))
    assert coarse.stat().st_uid == COLLEAGUE
    content = coarse.read_bytes()
    coarse.write_bytes(content[:-1])
    rmtree(next(outputs.glob("stages/*/adapter/reft.safetensors")).parents[1])
    give_to_colleague(outputs)
    assert "the stage is trained again" in run(*asked, "method=heft"), "also what others made"
    assert coarse.read_bytes() == content
    assert coarse.stat().st_uid != COLLEAGUE
    closed = [
        path
        for path in outputs.rglob("*")
        if not path.stat().st_mode & stat.S_IWGRP or path.stat().st_gid != GROUP
    ]
    assert not closed, "the colleague can go on"
