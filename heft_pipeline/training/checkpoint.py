"""Checkpoints that resume training exactly: one safetensors file each, replaced atomically.

A file holds the trained parameters and those of the best epoch so far, the optimiser's state, what
was drawn at initialisation and never changes, and the random generators of every process. Its
metadata holds the counters, the schedule and a checksum of all of it. The checkpoint before the
last is kept, for the case that the last is not what was written.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from heft_pipeline.devices.processes import Ranks
from heft_pipeline.devices.random_state import load_random, random_tensors
from heft_pipeline.errors import UserError
from heft_pipeline.files.replaced import flush
from heft_pipeline.files.tensor_files import read_tensors, write_tensors
from heft_pipeline.training.beside import Beside
from heft_pipeline.training.state import Counters, TrainingState

log = logging.getLogger(__name__)

LAST, BEFORE, BROKEN = "last.safetensors", "before.safetensors", "broken.safetensors"
_META, _CHECKSUM = "heft", "sha256"
#: What comes before the names of tensors that are not the trained parameters'.
_OPTIMIZER, _BEST, _CONSTANT = "optimizer/", "best/", "constant/"


class Checkpoints:
    """The checkpoints of one stage.

    Args:
        folder: The folder that holds them.
        state: The state to save and restore.
        constants: Tensors that were drawn at initialisation and are never trained.
        ranks: The processes that train the stage together; the first one writes.
        device: Where this process computes.
    """

    def __init__(
        self,
        folder: Path,
        state: TrainingState,
        constants: Mapping[str, torch.Tensor],
        ranks: Ranks,
        device: torch.device,
    ) -> None:
        self._folder, self._state, self._constants = folder, state, constants
        self._ranks, self._device = ranks, device
        self._best: dict[str, torch.Tensor] = {}
        self._beside = Beside()

    @property
    def last(self) -> Path | None:
        """The file that training would resume from; None if there is none."""
        self.wait()
        paths = (self._folder / name for name in (LAST, BEFORE))
        return next((path for path in paths if path.is_file()), None)

    def save(self) -> None:
        """Write everything that is needed to continue from here, bit for bit.

        Where that takes long, it goes on while training does; see :meth:`wait`.

        Raises:
            OSError: This checkpoint, or the one before, could not be written.
        """
        state = self._state
        own = (random_tensors(self._device), state.counters.train_flop)
        of_ranks = self._ranks.gather(own)
        if not self._ranks.first:
            return
        state.counters.epoch_loss = state.epoch_loss.item()
        tensors = {
            **state.parameters,
            **_optimizer_tensors(state.optimizer, state.names),
            **{_BEST + name: tensor for name, tensor in self._best.items()},
            **{_CONSTANT + name: tensor for name, tensor in self._constants.items()},
            **{
                f"{rank}/{name}": generator
                for rank, (generators, _) in enumerate(of_ranks)
                for name, generator in generators.items()
            },
        }
        meta = {
            "counters": asdict(state.counters),
            "flop_of_ranks": [flop for _, flop in of_ranks],
            "scheduler": state.scheduler.state_dict(),
        }
        self._beside.run(lambda kept: self._write(kept, meta), tensors)

    def _write(self, tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any]) -> None:
        last = self._folder / LAST
        new = self._folder / f"new-{LAST}"
        write(new, tensors, meta)
        if last.is_file():
            last.replace(self._folder / BEFORE)
        new.replace(last)
        flush(self._folder)

    def wait(self) -> None:
        """Wait until the last checkpoint is on disk.

        Raises:
            OSError: It could not be written.
        """
        self._beside.wait()

    def resume(self) -> None:
        """Restore the last checkpoint that is whole; if there is none, training starts anew."""
        name = self._ranks.from_first(self._whole() if self._ranks.first else None)
        if name is None:
            return
        state = self._state
        tensors, meta = read(self._folder / name)
        for name, tensor in self._constants.items():
            tensor.copy_(tensors[_CONSTANT + name])
        self._best = {
            key.removeprefix(_BEST): value
            for key, value in tensors.items()
            if key.startswith(_BEST)
        }
        state.load_parameters(tensors)
        _load_optimizer(state.optimizer, state.names, tensors)
        load_random(tensors, self._device, f"{self._ranks.rank}/")
        state.scheduler.load_state_dict(meta["scheduler"])
        rates = meta["scheduler"]["_last_lr"]
        for group, rate in zip(state.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        state.counters = Counters(**meta["counters"])
        state.counters.resumes += 1
        flops = meta["flop_of_ranks"]
        if len(flops) == self._ranks.world:
            state.counters.train_flop = flops[self._ranks.rank]
        else:  # the number of processes has changed
            state.counters.train_flop = sum(flops) if self._ranks.first else 0.0
        state.epoch_loss.fill_(state.counters.epoch_loss)

    def _whole(self) -> str | None:
        """The name of the newest checkpoint that is whole; broken ones are set aside."""
        for name in (LAST, BEFORE):
            path = self._folder / name
            if not path.is_file():
                continue
            try:
                read(path)
            except UserError as error:
                earlier = name == LAST and (self._folder / BEFORE).is_file()
                then = "the one before is used" if earlier else "training starts from the beginning"
                log.warning("%s; %s", error, then)
                path.replace(self._folder / BROKEN)
            else:
                return name
        return None

    def save_best(self) -> None:
        """Keep the current parameters as those of the best epoch; :meth:`save` writes them."""
        self._best = {
            name: parameter.detach().to("cpu", copy=True)
            for name, parameter in self._state.parameters.items()
        }

    def load_best(self) -> None:
        """Give the model the parameters of the best epoch."""
        self._state.load_parameters(self._best)


def write(path: Path, tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any]) -> None:
    """Write tensors and JSON data to one file; readers see either the old file or the new one.

    Args:
        path: The file; its folder is created if it is missing.
        tensors: Tensors by name.
        meta: JSON-ready data.
    """
    ready = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    text = json.dumps(meta)
    write_tensors(path, ready, {_META: text, _CHECKSUM: _checksum(ready, text)})


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read the tensors and the JSON data that :func:`write` wrote.

    Raises:
        UserError: The file is cut off or broken, or not what was written.
        FileNotFoundError: There is none.
    """
    tensors, metadata = read_tensors(path)
    text = metadata.get(_META, "")
    if metadata.get(_CHECKSUM) != _checksum(tensors, text):
        raise UserError(f"{path} does not fit its checksum")
    return tensors, json.loads(text)


def _checksum(tensors: Mapping[str, torch.Tensor], text: str) -> str:
    """A checksum of the names, types, shapes and bytes of tensors and of a text."""
    total = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        total.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        total.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def _optimizer_tensors(
    optimizer: torch.optim.Optimizer, names: Mapping[torch.Tensor, str]
) -> dict[str, torch.Tensor]:
    """An optimiser's state under ``optimizer/PARAMETER/KEY``; all of AdamW's state is tensors."""
    return {
        f"{_OPTIMIZER}{names[parameter]}/{key}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def _load_optimizer(
    optimizer: torch.optim.Optimizer,
    names: Mapping[torch.Tensor, str],
    tensors: Mapping[str, torch.Tensor],
) -> None:
    """Load the saved state of an optimiser of the same parameters into a new one."""
    by_name = {name: parameter for parameter, name in names.items()}
    for key, value in tensors.items():
        if key.startswith(_OPTIMIZER):
            name, field = key.removeprefix(_OPTIMIZER).rsplit("/", 1)
            parameter = by_name[name]
            # AdamW keeps its step counts on the CPU unless it is fused.
            on_device = field != "step" or parameter.device.type == "cuda"
            optimizer.state[parameter][field] = value.to(parameter.device if on_device else "cpu")
