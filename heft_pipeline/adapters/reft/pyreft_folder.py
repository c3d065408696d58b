"""Folders in pyreft's own format: what ``pyreft.ReftModel`` saves and loads.

pyreft's files are pickles. They are read with torch's restricted unpickler
(``weights_only=True``), and only here: nothing else in the project reads or writes one.
"""

import dataclasses
import io
import re
from collections.abc import Iterable
from contextlib import redirect_stdout
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrizations import orthogonal

from heft_pipeline.adapters.reft.interventions import Interventions
from heft_pipeline.adapters.reft.positions import units
from heft_pipeline.adapters.reft.pyreft_engine import pyreft_model
from heft_pipeline.adapters.reft.settings import ReftSettings
from heft_pipeline.errors import UserError
from heft_pipeline.files.untrusted import read_untrusted

#: These cannot be built without ``add_bias``, which pyreft's loader does not pass.
UNLOADABLE = ("noreft", "nodireft")


def write_pyreft(adapter: Interventions, model: Any, folder: Path) -> None:
    """Write an adapter as a folder that ``pyreft.ReftModel.load`` reads.

    pyreft's loader rebuilds the interventions from the model's class and the rank alone.

    Args:
        adapter: The adapter, with its projections R still parametrised.
        model: The transformers model that it edits; its weights are not needed.
        folder: The folder to write; created if it is missing.

    Raises:
        UserError: pyreft cannot load this type of intervention, or not for this model class.
    """
    from pyvene.models.intervenable_modelcard import type_to_dimension_mapping

    if adapter.settings.intervention in UNLOADABLE:
        raise UserError(
            f"reft.intervention={adapter.settings.intervention} cannot be read by pyreft's "
            "ReftModel.load, which builds it without its add_bias argument; the stage's own "
            "adapter folder has the weights as safetensors"
        )
    if type(model) not in type_to_dimension_mapping:
        raise UserError(
            f"pyreft's ReftModel.load does not know {type(model).__name__}; the stage's own "
            "adapter folder has the weights as safetensors"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with redirect_stdout(io.StringIO()):  # pyvene prints that it created the folder
        pyreft_model(adapter, model).save(str(folder))


def read_pyreft(adapter: Interventions, folder: Path) -> None:
    """Start an adapter from a folder that pyreft's ``ReftModel.save`` wrote.

    Args:
        adapter: The adapter, whose weights are replaced.
        folder: pyreft's folder: ``config.json`` and one ``intkey_*.bin`` per intervention.

    Raises:
        UserError: A file is missing, or the interventions' type, rank or number is different.
    """
    _load(adapter, folder, _interventions(adapter.settings, folder))


def _load(adapter: Interventions, folder: Path, files: list[Path]) -> None:
    state = {}
    try:
        for unit, file in zip(adapter.units, files, strict=True):
            saved = _tensors(file)
            for name, tensor in _effective(adapter.settings.intervention, saved).items():
                state[f"{unit.key}.{name}"] = tensor
        adapter.load_effective_state(state)
    except (KeyError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"reft.init_from={folder} does not hold {adapter.settings.intervention} interventions "
            f"of rank {adapter.settings.rank} for this model; set reft.intervention and reft.rank "
            "to the values that they were trained with"
        ) from error


def _tensors(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file; nothing that a pickle says is run."""
    try:
        saved = torch.load(file, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, ValueError, EOFError, KeyError, OverflowError) as error:
        raise UserError(
            f"{file} is no file of plain tensors, as pyreft's ReftModel.save writes them, and was "
            "not read: it is damaged, or would run code of its own; get it from a source that you "
            "trust"
        ) from error
    if not isinstance(saved, dict) or not all(isinstance(v, torch.Tensor) for v in saved.values()):
        raise UserError(f"{file} does not hold an intervention's tensors; save it with pyreft")
    return saved


def check_start(settings: ReftSettings, hidden_size: int, num_layers: int) -> None:
    """Refuse an ``init_from`` that does not fit, without building every intervention.

    Args:
        settings: The adapter's settings.
        hidden_size: The width of the model's hidden states.
        num_layers: How many decoder layers the model has.

    Raises:
        UserError: As for :func:`read_pyreft`.
    """
    if settings.init_from is None:
        return
    folder = Path(settings.init_from).expanduser()
    files = _interventions(settings, folder)
    wanted = units(settings, num_layers)
    if len(files) != len(wanted):
        raise UserError(
            f"reft.init_from={folder} holds {len(files)} interventions, but this adapter has "
            f"{len(wanted)}; set reft.layers and reft.share_weights to the values that it was "
            "trained with"
        )
    saved, own = _saved_layers(folder), [unit.layer for unit in wanted]
    if saved != own:
        raise UserError(
            f"reft.init_from={folder} edits the output of layers {_listed(saved)}, and "
            f"reft.layers={settings.layers} edits layers {_listed(own)}; set "
            f"reft.layers=[{_listed(dict.fromkeys(saved))}]"
        )
    one = Interventions(dataclasses.replace(settings, layers=(0,), positions="l1"), hidden_size, 1)
    for file in files:
        _load(one, folder, [file])


def _interventions(settings: ReftSettings, folder: Path) -> list[Path]:
    """The files of the interventions, in order; the first of all files is pyreft's config."""
    files = [folder / name for name in settings.start_files(folder)[1:]]
    if missing := [file.name for file in files if not file.is_file()]:
        raise UserError(f"reft.init_from={folder} lacks {missing[0]}")
    return files


def _saved_layers(folder: Path) -> list[int]:
    """The decoder layer of each saved intervention, in order."""
    layers = []
    name = f"reft.init_from={folder}"
    config = read_untrusted(folder / "config.json", name)
    places = config.get("representations")
    if not isinstance(places, list) or any(len(place) < 2 for place in map(_as_list, places)):
        raise UserError(f"{name}: config.json does not say what is edited; save it with pyreft")
    for place in places:
        layer, component = place[:2]
        # pyreft knows a layer's output by a name, or by its path in the model.
        path = re.fullmatch(r".*\[(\d+)\]\.output", str(component))
        if component != "block_output" and path is None:
            raise UserError(
                f"reft.init_from={folder} edits {component}, and this adapter edits the output "
                "of decoder layers; give a folder that edits block_output"
            )
        number = path.group(1) if path else str(layer)
        if not number.isdecimal():
            raise UserError(f"{name}: config.json has no layer {number[:40]}; save it with pyreft")
        layers.append(int(number[:9]))
    return layers


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _listed(numbers: Iterable[int]) -> str:
    return ",".join(map(str, numbers))


def _effective(kind: str, saved: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """One intervention's state dict, with R as a matrix [hidden, rank] under ``rotate_layer``."""
    state = {k: v.float() for k, v in saved.items() if k not in ("embed_dim", "interchange_dim")}
    if kind == "loreft":  # pyreft drops the prefix of LoReFT's linear layer
        return {k if k == "rotate_layer" else f"learned_source.{k}": v for k, v in state.items()}
    prefix = "rotate_layer.parametrizations.weight"
    if f"{prefix}.original" in state:
        original, base = state.pop(f"{prefix}.original"), state.pop(f"{prefix}.0.base")
        hidden, rank = original.shape
        layer: Any = orthogonal(nn.Linear(rank, hidden, bias=False))
        with torch.no_grad():
            layer.parametrizations.weight.original.copy_(original)
            layer.parametrizations.weight[0].base.copy_(base)
        state["rotate_layer"] = layer.weight.detach()
    return state
