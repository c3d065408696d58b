"""What the commands that use an adapter have in common: which one, and where it runs."""

import argparse
from pathlib import Path
from typing import Any

from heft_pipeline.errors import UserError
from heft_pipeline.use.loaded import HeftModel, put_on_base
from heft_pipeline.use.saved import SavedAdapter, find_adapter


def parser(name: str, description: str) -> argparse.ArgumentParser:
    """The parser of a command that takes an adapter.

    Args:
        name: The command's name.
        description: What it does.
    """
    made = argparse.ArgumentParser(prog=f"heft {name}", description=description)
    made.add_argument(
        "adapter",
        metavar="ADAPTER",
        help="a stage's folder, or one that `heft export` wrote; the first digits of a "
        "fingerprint, or SWEEP/RUN; or a hub repository",
    )
    made.add_argument("--output-dir", type=Path, default=Path("outputs"), metavar="DIR",
                      help="where fingerprints and sweeps are looked for")  # fmt: skip
    made.add_argument("--model", metavar="MODEL", help="the base model, if it has moved")
    made.add_argument("--revision", metavar="REV", help="a branch, tag or commit of the hub")
    made.add_argument("--trust-remote-code", action="store_true",
                      help="let the base model's own code run")  # fmt: skip
    return made


def add_place(made: argparse.ArgumentParser) -> None:
    """Let a command say where and how the model runs."""
    made.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    made.add_argument("--dtype", choices=("auto", "float32", "bfloat16"),
                      help="of the base's weights; by default as it was trained")  # fmt: skip


def positive(text: str) -> int:
    """A number that is at least 1, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not 1 or more")
    return value


def require_new(to: Path) -> None:
    """Refuse a folder that is to be written and has something in it.

    Raises:
        UserError: It is not empty.
    """
    if to.is_dir() and any(to.iterdir()):
        raise UserError(f"--to {to} is not empty; give a new folder")


def found(given: argparse.Namespace) -> SavedAdapter:
    """The adapter that a command was given."""
    return find_adapter(
        given.adapter,
        output_dir=given.output_dir,
        revision=given.revision,
        model=given.model,
        trust_remote_code=given.trust_remote_code,
    )


def place(given: argparse.Namespace) -> dict[str, Any]:
    """Where and how a command was told to run the model, as arguments of ``put_on_base``."""
    return {"device": given.device, "dtype": given.dtype}


def loaded(given: argparse.Namespace) -> HeftModel:
    """The model that a command was given, with its adapters on it."""
    return put_on_base(found(given), **place(given))
