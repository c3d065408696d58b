"""What works on this machine and what does not.

heft doctor [--output-dir DIR] [--json]
"""

import argparse
import dataclasses
import importlib.util
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from rich.table import Table
from rich.text import Text

import heft_pipeline
from heft_pipeline.command_line.console import TextConsole
from heft_pipeline.command_line.run import run_command
from heft_pipeline.errors import reason
from heft_pipeline.files.byte_sizes import in_bytes
from heft_pipeline.files.locks import file_lock
from launch.slurm.ask import NoAnswer, Patience
from launch.slurm.limits import partition_limits

GOOD, LACKING, WRONG = "works", "is not there", "does not work"
_MARKS = {GOOD: ("✓", "green"), LACKING: ("-", "dim"), WRONG: ("✗", "red")}
#: Models are loaded from this many times their size, at least.
_LITTLE_DISK = 5e9
_HUB_SECONDS = 5.0
_MATRIX, _SECONDS = 1024, 0.3
#: What each extra is for, by its module.
_EXTRAS = {
    "bitsandbytes": "model.quantization=nf4",
    "lm_eval": "heft lm-eval",
    "tensorboardX": "tracking=tensorboard",
    "trackio": "tracking=trackio",
    "mlflow": "tracking=mlflow",
    "wandb_workspaces": "heft dashboard",
}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: What it is.
        state: ``works``, ``is not there`` (and need not be) or ``does not work``.
        said: What was found, and the way out where something does not work.
    """

    what: str
    state: str
    said: str


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line, and return its exit status: 1 if something does not work."""
    return run_command(_doctor, words)


def _doctor(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="heft doctor", description="Say what works on this machine and what does not."
    )
    parser.add_argument("--output-dir", type=Path, default=Path("outputs"), metavar="DIR",
                        help="where sweeps will be written")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="for programs")
    given = parser.parse_args(words)
    findings, console = [], TextConsole()
    for finding in examine(given.output_dir):
        findings.append(finding)
        if not given.json:
            line = Table.grid(padding=(0, 1))  # what is wrapped goes on behind the mark
            line.add_row(Text(*_MARKS[finding.state]), f"{finding.what}: {finding.said}")
            console.print(line)
    if given.json:
        print(json.dumps([dataclasses.asdict(one) for one in findings], indent=2))
    return int(any(one.state == WRONG for one in findings))


def examine(output_dir: Path) -> Iterator[Finding]:
    """Look at everything, one after another.

    Args:
        output_dir: Where sweeps will be written.

    Yields:
        What was found.
    """
    looks: Sequence[tuple[str, Callable[[], Iterator[Finding]]]] = (
        ("versions", _versions),
        ("devices", _devices),
        ("disk", lambda: _disk(output_dir)),
        ("SLURM", _slurm),
        ("Weights & Biases", _wandb),
        ("the hub", _hub),
        ("extras", _extras),
    )
    for name, look in looks:
        try:
            yield from look()
        except Exception as error:  # one thing that is broken must not hide the others
            said = reason(error) or f"{type(error).__name__}: {error}"
            yield Finding(name, WRONG, said.splitlines()[0])


def _versions() -> Iterator[Finding]:
    own = (
        f"{heft_pipeline.__version__} on Python {platform.python_version()}, {platform.platform()}"
    )
    yield Finding("heft_pipeline", GOOD, own)
    from packaging.requirements import Requirement

    wrong, told = [], []
    for text in requires("heft-pipeline") or ():
        needed = Requirement(text)
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(needed.name)
        except PackageNotFoundError:
            wrong.append(f"{needed.name} is missing")
            continue
        if not needed.specifier.contains(found, prereleases=True):
            wrong.append(f"{needed.name} {found} is not {needed.specifier}")
        if needed.name in ("torch", "transformers", "peft", "pyreft", "hydra-core"):
            told.append(f"{needed.name} {found}")
    if wrong:
        yield Finding("packages", WRONG, f"{', '.join(wrong)}; pip install heft-pipeline again")
    else:
        yield Finding("packages", GOOD, ", ".join(told))


def _devices() -> Iterator[Finding]:
    import torch

    from heft_pipeline.devices.fast_dtype import cpu_features, cpu_model, fast_dtype

    devices = [torch.device("cpu")]
    features = ", ".join(cpu_features()) or "no AVX-512"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    told = f"{cpu_model() or platform.machine()}, {cores} cores ({features})"
    yield Finding("CPU", GOOD, told)
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            about = torch.cuda.get_device_properties(number)
            devices.append(torch.device("cuda", number))
            memory = in_bytes(about.total_memory)
            yield Finding(
                f"GPU {number}", GOOD, f"{about.name}, {memory}, CUDA {torch.version.cuda}"
            )
    else:
        why = "torch was built without CUDA" if torch.version.cuda is None else "none is visible"
        yield Finding("GPU", LACKING, f"{why}; stages run on the CPU")
    for device in devices:
        kind = str(fast_dtype(device)).removeprefix("torch.")
        speeds = {
            str(one).removeprefix("torch."): _speed(device, one)
            for one in (torch.float32, torch.bfloat16)
        }
        shown = ", ".join(f"{name} {speed:,.2g} TFLOP/s" for name, speed in speeds.items())
        yield Finding(f"dtype on {device}", GOOD, f"auto is {kind}; measured: {shown}")


def _speed(device: object, dtype: object) -> float:
    """Products of matrices, in TFLOP/s."""
    import torch

    one = torch.randn(_MATRIX, _MATRIX, device=device, dtype=dtype)  # type: ignore[call-overload]
    float((one @ one)[0, 0])
    began, count = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - began) < _SECONDS:
        float((one @ one)[0, 0])  # waits for a GPU
        count += 1
    return float(2 * _MATRIX**3 * count / elapsed / 1e12)


def _disk(output_dir: Path) -> Iterator[Finding]:
    from huggingface_hub import constants

    for what, folder in (("outputs", output_dir), ("hub cache", Path(constants.HF_HUB_CACHE))):
        there = folder.expanduser().absolute()
        there = next(one for one in (there, *there.parents) if one.is_dir())
        free = shutil.disk_usage(there).free
        said = f"{in_bytes(free)} free in {there}"
        if free < _LITTLE_DISK:
            yield Finding(f"disk for {what}", WRONG, f"{said}; free some, or choose another place")
        else:
            yield Finding(f"disk for {what}", GOOD, said)
        if what == "outputs":
            with (
                tempfile.TemporaryDirectory(dir=there, prefix=".heft-doctor-") as temporary,
                file_lock(Path(temporary) / "lock"),
            ):
                pass
            yield Finding("writing and locking", GOOD, f"in {there}")


def _slurm() -> Iterator[Finding]:
    if shutil.which("sinfo") is None:
        yield Finding("SLURM", LACKING, "no sinfo here; hydra/launcher=local works without it")
        return
    try:
        partitions = partition_limits(Patience())
    except NoAnswer as error:
        yield Finding("SLURM", WRONG, f"it does not answer ({error}); ask on a login node")
        return
    names = ", ".join(f"{name}*" if default else name for name, (_, default) in partitions.items())
    yield Finding("SLURM", GOOD, f"partitions {names}")


def _wandb() -> Iterator[Finding]:
    from heft_pipeline.tracking.wandb_account import logged_in, resolve_mode

    mode = resolve_mode("auto")
    said = {
        "online": "logged in; tracking=wandb sends runs",
        "offline": "no API key, so tracking=wandb keeps runs here; `wandb login` changes that"
        if not logged_in()
        else "set to offline; tracking=wandb keeps runs here",
        "disabled": "disabled by WANDB_MODE or `wandb disabled`",
    }[mode]
    yield Finding("Weights & Biases", GOOD if mode != "disabled" else LACKING, said)


def _hub() -> Iterator[Finding]:
    from huggingface_hub import constants, get_token

    if constants.is_offline_mode():
        yield Finding("the hub", LACKING, "HF_HUB_OFFLINE is set; only what is cached can be used")
        return
    import urllib.error
    import urllib.request

    who = "with a token" if get_token() else "without a token (`hf auth login` for gated models)"
    try:
        urllib.request.urlopen(f"{constants.ENDPOINT}/api/models?limit=1", timeout=_HUB_SECONDS)
    except (OSError, ValueError) as error:
        why = getattr(error, "reason", error)
        yield Finding("the hub", LACKING, f"it does not answer ({why}); local folders work")
        return
    yield Finding("the hub", GOOD, f"it answers, {who}")


def _extras() -> Iterator[Finding]:
    for module, use in _EXTRAS.items():
        there = importlib.util.find_spec(module) is not None
        yield Finding(use, GOOD if there else LACKING, module if there else f"needs {module}")
