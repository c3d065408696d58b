"""Inputs that are broken in one way each, made from whole ones."""

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from tests.conftest import composed_run, make_rows, write_rows

Rows = list[dict[str, Any]]


class Inputs:
    """A folder of inputs for one command.

    Args:
        folder: The folder, which is empty.
        model: A whole model's folder, to be copied.
        starts: A folder with a saved adapter of each kind, to be copied.
    """

    def __init__(self, folder: Path, model: Path, starts: Path) -> None:
        self.folder = folder
        self._whole_model, self._starts = model, starts

    def data(self, change: Callable[[Path], object]) -> list[str]:
        """A task whose files ``change`` has broken."""
        task = self.folder / "task"
        write_rows(task / "train.jsonl", rows())
        write_rows(task / "validation.jsonl", make_rows(10, seed=2))
        change(task)
        return [f"data.path={task}"]

    def model(self, change: Callable[[Path], object]) -> list[str]:
        """A model whose files ``change`` has broken."""
        model = self.folder / "model"
        shutil.copytree(self._whole_model, model)
        change(model)
        return [f"model.id={model}"]

    def adapter(self, kind: str, change: Callable[[Path], object]) -> list[str]:
        """An adapter to start from whose files ``change`` has broken."""
        start = self.folder / kind
        shutil.copytree(self._starts / kind, start)
        change(start)
        return [f"method={kind}", f"{kind}.init_from={start}"]


def rows() -> Rows:
    """Whole training rows."""
    return make_rows(30, seed=1)


def train_is(content: str | bytes, name: str = "train.jsonl") -> Callable[[Path], object]:
    """Gives the training split this content."""

    def change(task: Path) -> None:
        (task / "train.jsonl").unlink()
        raw = content.encode() if isinstance(content, str) else content
        (task / name).write_bytes(raw)

    return change


def train_rows(made: Sequence[Any]) -> Callable[[Path], object]:
    """Gives the training split these rows."""
    return train_is("".join(json.dumps(row) + "\n" for row in made))


def each_row(**values: Any) -> Callable[[Path], object]:
    """Sets columns of one row in the middle of the training split."""
    changed = rows()
    changed[7] |= values
    return train_rows(changed)


def jsonl(made: Sequence[Any] | None = None) -> bytes:
    """Rows as the bytes of a file."""
    return "".join(json.dumps(row) + "\n" for row in made or rows()).encode()


def parquet(task: Path) -> bytes:
    """Whole training rows as the bytes of a Parquet file."""
    file = task.parent / "whole.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows()), file)
    raw = file.read_bytes()
    file.unlink()
    return raw


def cut_off_parquet(task: Path) -> None:
    """Cuts the training split's Parquet file in half."""
    raw = parquet(task)
    train_is(raw[: len(raw) // 2], "train.parquet")(task)


def config(**values: Any) -> Callable[[Path], object]:
    """Sets values of ``config.json``; None takes one out."""

    def change(folder: Path) -> None:
        file = folder / "config.json"
        found = json.loads(file.read_text()) | values
        file.write_text(json.dumps({k: v for k, v in found.items() if v is not None}))

    return change


def without(*names: str) -> Callable[[Path], object]:
    """Removes files."""

    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return change


def replaced(name: str, content: bytes) -> Callable[[Path], object]:
    """Gives a file this content."""

    def change(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return change


def cut(name: str, share: float = 0.5) -> Callable[[Path], object]:
    """Cuts a file off."""

    def change(folder: Path) -> None:
        raw = (folder / name).read_bytes()
        (folder / name).write_bytes(raw[: int(len(raw) * share)])

    return change


def weights_of(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    """Changes the tensors of ``model.safetensors``."""

    def changed(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return changed


def safetensors_header(length: int) -> bytes:
    """The first bytes of a safetensors file whose header would have a length."""
    return struct.pack("<Q", length)


def missing(folder: Path) -> None:
    """Removes the whole folder."""
    shutil.rmtree(folder)


def unchanged(_folder: Path) -> None:
    """Leaves everything as it is; a setting is what is wrong."""


def linked(name: str, to: str) -> Callable[[Path], object]:
    """Puts a link in the place of a file."""

    def change(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(to)

    return change


def pipe(name: str) -> Callable[[Path], object]:
    """Puts a pipe that nobody writes to in the place of a file."""

    def change(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return change


def folder_named(name: str, inside: str = "") -> Callable[[Path], object]:
    """Puts a folder in the place of a file."""

    def change(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()
        if inside:
            (folder / name / inside).write_text("text")

    return change


def as_pickle(folder: Path) -> None:
    """Keeps a model's weights as a pickle alone."""
    import torch
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def weights_listed_as(content: str) -> Callable[[Path], object]:
    """Puts an index of shards in the place of a model's weights."""

    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(content)

    return change


class Evil:
    """An object that runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        """What a pickle of it calls."""
        return Path.touch, (Path("EVIL"),)


def evil_pickle(name: str) -> Callable[[Path], object]:
    """Puts a pickle that runs a command in the place of a file."""
    return replaced(name, pickle.dumps({"rotate_layer": Evil()}))


def save_starts(folder: Path, model: Path, data: list[str]) -> None:
    """Write a saved adapter of each kind, in the folder of its kind's name.

    Args:
        folder: The folder of the folders.
        model: The model that they are for.
        data: The overrides that choose the model and the task.
    """
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    from heft_pipeline.adapters.reft.interventions import Interventions
    from heft_pipeline.adapters.reft.pyreft_folder import write_pyreft
    from heft_pipeline.files.tensor_files import write_tensors
    from heft_pipeline.models.base_model import skeleton

    chosen = composed_run(*data, "method.stages=[lora,reft]").stages
    base = AutoModelForCausalLM.from_pretrained(model)
    get_peft_model(base, chosen[0].adapters[0].peft_config()).save_pretrained(folder / "lora")  # type: ignore[attr-defined]
    reft = Interventions(chosen[1].adapters[0], 32, 3)  # type: ignore[arg-type]
    write_pyreft(reft, skeleton(chosen[1].model), folder / "reft")
    values = {
        f"model.layers.{n}.mlp.down_proj.{what}": torch.ones(32)
        for n in range(3)
        for what in ("scale", "bias")
    }
    write_tensors(folder / "red" / "red.safetensors", values)
