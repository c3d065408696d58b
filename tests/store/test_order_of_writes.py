"""A stage's files and their folders are on disk before ``result.json`` says that it is finished."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from heft_pipeline.files.json_files import write_json
from heft_pipeline.plan.graph import Run
from heft_pipeline.plan.stage_spec import to_json

_COMPLETES = """
import sys
from pathlib import Path
from heft_pipeline.store.stage_folders import Store
Store(Path(sys.argv[1])).complete(sys.argv[2], {"accuracy": 0.5})
"""


def calls(trace: str) -> list[tuple[str, str]]:
    """The flushes and renames of a trace, in order, each with the path that it is about."""
    found = []
    for line in trace.splitlines():
        if flushed := re.search(r"f(?:data)?sync\(\d+<([^>]+)>\) += 0", line):
            found.append(("flush", flushed.group(1)))
        elif renamed := re.search(r'rename\w*\(.*, "([^"]+)"(?:, \w+)?\) += 0', line):
            found.append(("rename", renamed.group(1)))
    return found


def test_the_result_is_renamed_into_place_after_all_else_is_on_disk(
    tmp_path: Path, compose_run: Callable[..., Run]
) -> None:
    if shutil.which("strace") is None:
        pytest.skip("there is no strace here")
    stage = compose_run("method=lora").last
    folder = tmp_path / "stages" / stage.fingerprint
    (folder / "adapter" / "part").mkdir(parents=True)
    write_json(folder / "stage.json", to_json(stage), durable=False)
    names = ["stage.json", "adapter/a.safetensors", "adapter/part/b.json", "metrics.jsonl",
             "predictions.parquet", "reft_edits.csv"]  # fmt: skip
    for name in names[1:]:
        (folder / name).write_text("something")
    trace = tmp_path / "trace"
    command = ["strace", "-f", "-y", "-e", "trace=fsync,fdatasync,rename,renameat,renameat2"]
    command += ["-o", str(trace), sys.executable, "-c", _COMPLETES, str(tmp_path)]
    done = subprocess.run(
        [*command, stage.fingerprint], capture_output=True, text=True, check=False
    )
    if "ptrace" in done.stderr.lower() or "not permitted" in done.stderr.lower():
        pytest.skip(f"strace cannot trace here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    found = calls(trace.read_text())
    result = ("rename", str(folder / "result.json"))
    before = found[: found.index(result)]
    for name in names:
        assert ("flush", str(folder / name)) in before, name
    for one in (folder, folder / "adapter", folder / "adapter" / "part", folder / ".copies"):
        assert ("flush", str(one)) in before, one
    last = {path: number for number, (_, path) in enumerate(before)}
    for name in names:  # a file's content is safe before its name is
        assert last[str((folder / name).parent)] > before.index(("flush", str(folder / name)))
    (partial,) = [path for what, path in before if what == "flush" and "/.result.json." in path
                  and ".copies" not in path]  # fmt: skip
    assert found[found.index(result) + 1] == ("flush", str(folder)), "its own name is safe at last"
    assert partial
