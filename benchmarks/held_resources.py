"""What a process holds while it trains for long: memory, open files, threads and objects."""

import gc
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

_STEPS_PER_EPOCH, _DEV = 50, 8
_LINES = 10


@dataclass(frozen=True)
class Sample:
    """What a process holds after so many steps or stages; memory in MB.

    Attributes:
        done: Steps or stages.
        rss: Its memory, with the pages of files that it reads.
        anonymous: The same without those pages.
        files: Open files.
        threads: Threads.
        objects: Python objects that the garbage collector knows, after a collection.
        handlers: Handlers of the root logger.
    """

    done: int
    rss: float
    anonymous: float
    files: int
    threads: int
    objects: int
    handlers: int


def sampled(done: int) -> Sample:
    """Look at this process."""
    import logging

    gc.collect()
    lines = Path("/proc/self/status").read_text().splitlines()
    status = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
    return Sample(
        done,
        int(status["VmRSS"][0]) / 1024,
        int(status["RssAnon"][0]) / 1024,
        len(os.listdir("/proc/self/fd")),  # noqa: PTH208
        int(status["Threads"][0]),
        len(gc.get_objects()),
        len(logging.getLogger().handlers),
    )


def measure_steps(method: str, steps: int, folder: Path) -> str:
    """Train one stage for so many steps, and show what the process holds on the way.

    Args:
        method: The method's name; of one stage.
        steps: How many steps.
        folder: An empty folder.
    """
    rows = _data(folder, _STEPS_PER_EPOCH + _DEV)
    asked = [*rows, f"method={method}", f"epochs={max(1, steps // _STEPS_PER_EPOCH)}"]
    asked += [f"{method}.batch_size=1", f"data.dev_size={_DEV}"]
    every = max(1, steps // (10 * _LINES))
    found = _run("steps", every, asked, folder)
    return _table(f"{method}, steps", found)


def measure_stages(stages: int, folder: Path) -> str:
    """Train so many stages one after another, and show what the process holds on the way.

    Args:
        stages: How many stages: a third of them LoRA, LoReFT, and LoReFT on top of LoRA.
        folder: An empty folder.
    """
    seeds = ",".join(map(str, range(max(1, stages // 3))))
    asked = ["-m", *_data(folder, 32), "method=lora,reft,heft", f"seed={seeds}", "epochs=1"]
    asked += ["report.base_model=false"]
    return _table("stages", _run("stages", 1, asked, folder))


def _data(folder: Path, rows: int) -> list[str]:
    """A task with few rows in the form of the shipped one."""
    from heft_pipeline.data import demo

    task = folder / "task"
    task.mkdir(parents=True)
    for split, size in (("train", rows), ("test", 48)):
        lines = (demo.FILES / f"{split}.jsonl").read_text().splitlines()[:size]
        (task / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return [f"data.path={task}", "data.dev_split=null", "data.allow_overlap=true"]


def _run(what: str, every: int, asked: Sequence[str], folder: Path) -> list[Sample]:
    """Run the command line in a process of its own that looks at itself now and then."""
    to = folder / "samples.jsonl"
    code = f"from benchmarks.held_resources import watch; watch({what!r}, {every}, {str(to)!r})"
    command = [sys.executable, "-c", code, *asked, f"output_dir={folder / 'outputs'}", "sweep=s"]
    with (folder / "said.txt").open("w") as said:
        if subprocess.run(command, stdout=said, stderr=said, check=False).returncode:
            raise RuntimeError(f"training failed; see {folder / 'said.txt'}")
    return [Sample(**json.loads(line)) for line in to.read_text().splitlines()]


def watch(what: str, every: int, to: str) -> None:
    """Run this process's command line, and write what it holds after steps or stages."""
    from heft_pipeline import __main__
    from launch.local import execute

    attempt, stages = execute.attempt, 0
    path = Path(to)

    def note(done: int) -> None:
        with path.open("a") as file:
            file.write(json.dumps(asdict(sampled(done))) + "\n")

    def watched(*given: Any, progress: Any, **more: Any) -> Any:
        nonlocal stages

        def shown(phase: str, done: int, total: int, note_: str = "") -> None:
            progress(phase, done, total, note_)
            if what == "steps" and phase == "train" and done % every == 0:
                note(done)

        tried = attempt(*given, progress=shown, **more)
        stages += 1
        if what == "stages":
            note(stages)
        return tried

    execute.attempt = watched  # type: ignore[assignment]
    __main__.main()


def _table(title: str, found: Sequence[Sample]) -> str:
    """Some of the samples, and how much is held more after the first fifth."""
    last = found[-1].done
    warm = [sample for sample in found if sample.done > last / 5]
    shown = [found[round(n * (len(found) - 1) / _LINES)] for n in range(_LINES + 1)]
    lines = [f"| {title} | RSS MB | anonymous MB | files | threads | objects | log handlers |"]
    lines += ["|---:|---:|---:|---:|---:|---:|---:|"]
    lines += [
        f"| {s.done:,} | {s.rss:.1f} | {s.anonymous:.1f} | {s.files} | {s.threads} "
        f"| {s.objects:,} | {s.handlers} |"
        for s in shown
    ]
    slopes = []
    for name, unit in (("rss", "MB"), ("anonymous", "MB"), ("files", ""), ("objects", "")):
        values = [getattr(sample, name) for sample in warm]
        slope = np.polyfit([sample.done for sample in warm], values, 1)[0]
        slopes.append(f"{name} {1000 * slope:+.2f} {unit}".strip())
    lines += ["", f"A thousand more, fitted after the first fifth: {', '.join(slopes)}"]
    return "\n".join(lines)
