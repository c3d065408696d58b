"""Files of tensors: written as a whole and as the umask says, and read with a message if broken."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from heft_pipeline.errors import UserError
from heft_pipeline.files.replaced import replaced


def write_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors so that readers see either the old file or the whole new one.

    Args:
        path: The file; its folder is created if it is missing.
        tensors: Tensors by name, on any device.
        metadata: Text that is kept beside them.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    ready = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    with replaced(path) as partial:
        partial.touch()
        mode = partial.stat().st_mode & 0o777
        save_file(ready, partial, metadata=dict(metadata) if metadata is not None else None)
        partial.chmod(mode)  # safetensors makes files that nobody else can read


def copy_files(source: Path, to: Path) -> None:
    """Copy a saved adapter; the copies are open as the umask says, however the originals are.

    A link is followed only within the folder: what lies elsewhere is not the adapter's, and a copy
    is made to be given away.

    Args:
        source: A folder that an adapter was saved to.
        to: The folder to write; created if it is missing.

    Raises:
        UserError: A file of the folder is a link that leads out of it.
    """
    files = own_files(source)
    to.mkdir(parents=True, exist_ok=True)
    for file in files:
        (to / file.name).unlink(missing_ok=True)  # nothing is written through a link
        shutil.copyfile(file, to / file.name)


def own_files(folder: Path) -> list[Path]:
    """The files directly in a folder.

    Args:
        folder: The folder.

    Returns:
        The files, by name.

    Raises:
        UserError: One is a link that leads out of the folder.
    """
    inside = folder.resolve()
    files = sorted(file for file in folder.iterdir() if file.is_file())
    for file in files:
        if not file.resolve().is_relative_to(inside):
            raise UserError(
                f"{file} is a link to {file.resolve()}, outside its folder, and is not copied; "
                "put the file itself there"
            )
    return files


def read_tensors(
    path: Path, started_by: str = ""
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read what :func:`write_tensors` wrote, or another program as safetensors.

    Args:
        path: The file.
        started_by: The setting that names the file's folder, if it is an adapter to start from,
            e.g. ``lora.init_from``; otherwise it is a stage's.

    Returns:
        (tensors by name, on the CPU; the text beside them).

    Raises:
        UserError: The file is cut off or broken.
        FileNotFoundError: There is none.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, dict(file.metadata() or {})
    except SafetensorError as error:
        way_out = (
            f"save the adapter again, or give another folder with {started_by}=DIR"
            if started_by
            else "restore it from a copy, or remove its stage's folder and run the same command "
            "again, which trains that stage anew"
        )
        raise UserError(f"{path} is cut off or broken ({error}); {way_out}") from error
