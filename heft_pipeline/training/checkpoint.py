"""Checkpoints that resume training exactly: one safetensors file each, replaced atomically.

``last`` holds the trained parameters, the optimiser's state and the random generators of every
process; its metadata holds the counters and the schedule. ``best`` holds the parameters of the
best epoch so far. ``constants`` holds what was drawn at initialisation and never changes.
"""

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
from heft_pipeline.files.tensor_files import read_tensors, write_tensors
from heft_pipeline.training.state import Counters, TrainingState

log = logging.getLogger(__name__)

LAST, BEST, CONSTANTS = "last.safetensors", "best.safetensors", "constants.safetensors"
_META = "heft"


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

    @property
    def last(self) -> Path | None:
        """The file that training would resume from; None if there is none."""
        path = self._folder / LAST
        return path if path.is_file() else None

    def save(self) -> None:
        """Write everything that is needed to continue from here, bit for bit."""
        state = self._state
        own = (random_tensors(self._device), state.counters.train_flop)
        of_ranks = self._ranks.gather(own)
        if not self._ranks.first:
            return
        if not (self._folder / CONSTANTS).is_file():
            write(self._folder / CONSTANTS, self._constants, {})
        state.counters.epoch_loss = state.epoch_loss.item()
        tensors = {
            **state.parameters,
            **_optimizer_tensors(state.optimizer, state.names),
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
        write(self._folder / LAST, tensors, meta)

    def resume(self) -> None:
        """Restore the last checkpoint; if there is none that is whole, training starts anew."""
        saved = self._saved()
        if saved is None:
            return
        state = self._state
        constants, tensors, meta = saved
        for name, tensor in self._constants.items():
            tensor.copy_(constants[name])
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

    def _saved(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], Any] | None:
        """The constants, the tensors and the data of the last checkpoint; broken ones go."""
        if self.last is None:
            return None
        try:
            constants, _ = read(self._folder / CONSTANTS)
            tensors, meta = read(self._folder / LAST)
            if (self._folder / BEST).is_file():
                read(self._folder / BEST)
        except (UserError, FileNotFoundError) as error:
            log.warning("%s; training starts from the beginning", error)
            if self._ranks.first:
                for name in (LAST, BEST, CONSTANTS):
                    (self._folder / name).unlink(missing_ok=True)
            return None
        return constants, tensors, meta

    def save_best(self) -> None:
        """Write the current parameters as those of the best epoch."""
        if self._ranks.first:
            write(
                self._folder / BEST, self._state.parameters, {"epoch": self._state.counters.epoch}
            )

    def load_best(self) -> None:
        """Give the model the parameters of the best epoch."""
        self._ranks.gather(None)  # wait until process 0 has written it
        tensors, _ = read(self._folder / BEST)
        self._state.load_parameters(tensors)


def write(path: Path, tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any]) -> None:
    """Write tensors and JSON data to one file; readers see either the old file or the new one.

    Args:
        path: The file; its folder is created if it is missing.
        tensors: Tensors by name.
        meta: JSON-ready data.
    """
    write_tensors(path, tensors, {_META: json.dumps(meta)})


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read the tensors and the JSON data that :func:`write` wrote.

    Raises:
        UserError: The file is cut off or broken.
        FileNotFoundError: There is none.
    """
    tensors, metadata = read_tensors(path)
    try:
        return tensors, json.loads(metadata[_META])
    except (KeyError, ValueError) as error:
        raise UserError(f"{path} is not a checkpoint: {error}") from error


def _optimizer_tensors(
    optimizer: torch.optim.Optimizer, names: Mapping[torch.Tensor, str]
) -> dict[str, torch.Tensor]:
    """An optimiser's state under ``optimizer/PARAMETER/KEY``; all of AdamW's state is tensors."""
    return {
        f"optimizer/{names[parameter]}/{key}": value
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
        if key.startswith("optimizer/"):
            name, field = key.removeprefix("optimizer/").rsplit("/", 1)
            parameter = by_name[name]
            # AdamW keeps its step counts on the CPU unless it is fused.
            on_device = field != "step" or parameter.device.type == "cuda"
            optimizer.state[parameter][field] = value.to(parameter.device if on_device else "cpu")
