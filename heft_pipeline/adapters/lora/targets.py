"""Which parts of a model LoRA adapts: what was asked for, less what could not be trained."""

import copy
import functools
import inspect
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft.utils.transformers_weight_conversion import (
    convert_peft_config_for_transformers,
    get_model_conversion_mapping,
)
from torch import nn
from transformers.pytorch_utils import Conv1D

from heft_pipeline.adapters.lora.settings import ALL_LINEAR, DROPOUT, LoraSettings
from heft_pipeline.errors import UserError
from heft_pipeline.models.decoder import decoder_layers, unreached

_READ_ALONE = "has its weights read by the model's own code, past an adapter"
#: Stands for the number of a layer in a path.
_NUMBER = "#"
_NO_PRODUCT = "is no plain matrix product"


@dataclass(frozen=True)
class Choice:
    """What is adapted.

    Attributes:
        config: PEFT's configuration, which plain PEFT reads as well.
        notes: What was decided beyond the settings, one sentence each.
    """

    config: Any
    notes: tuple[str, ...]


def choose(settings: LoraSettings, model: nn.Module, name: str) -> Choice:
    """Decide what LoRA adapts in a model.

    ``all-linear`` is what PEFT makes of it, less the modules that PEFT refuses and those that no
    gradient would reach. PEFT takes fused experts for linear modules in many architectures; it has
    no dropout for them, so with the default ``lora.dropout`` there is none in such a model.

    Args:
        settings: The adapter's settings.
        model: A transformers model; adapters may be on it.
        name: The model's name for people.

    Returns:
        The choice, which is the same for a model and for its skeleton.

    Raises:
        UserError: A target that was named is not in the model or cannot be trained.
    """
    config, everything = settings.peft_config(), settings.target_modules == ALL_LINEAR
    left = _left_out(model)
    names = _linear_modules(model) if everything else _named(settings, config, model, left, name)
    left = {path: why for path, why in left.items() if any(_inside(n, path) for n in names)}
    notes = _notes_on_modules(settings, left, model)
    if left:
        config.exclude_modules = _pattern(left, model)
    if _experts(model):
        if not _with_parameters(config, model).target_parameters:
            if everything:
                notes.append(
                    f"lora.target_modules={ALL_LINEAR} leaves out the experts, which are no linear "
                    "modules to PEFT in this architecture"
                )
        elif everything and settings.dropout == DROPOUT:
            config.lora_dropout = 0.0
            notes.append(
                f"lora.dropout is 0 here: lora.target_modules={ALL_LINEAR} adapts the experts, and "
                "PEFT has no dropout for them"
            )
    return Choice(config, tuple(notes))


def without_experts(model: nn.Module) -> str:
    """The value of ``lora.target_modules`` that names all linear modules but PEFT's experts."""
    path, _ = decoder_layers(model)
    left = _left_out(model)
    found = {
        name.rsplit(".", 1)[-1]
        for name in _linear_modules(model)
        if name.startswith(f"{path}.") and not any(_inside(name, one) for one in left)
    }
    kept = [one for one in sorted(found) if not _becomes_parameters(one, model)]
    return f"[{','.join(kept)}]"


def _becomes_parameters(leaf: str, model: nn.Module) -> bool:
    from peft import LoraConfig

    try:
        return bool(_with_parameters(LoraConfig(target_modules=[leaf]), model).target_parameters)
    except ValueError:  # it is fused with another
        return True


def _with_parameters(config: Any, model: nn.Module) -> Any:
    """The configuration after PEFT's own translation of expert modules to fused parameters."""
    trial = copy.deepcopy(config)
    conversions = get_model_conversion_mapping(model)
    convert_peft_config_for_transformers(trial, model=model, conversions=conversions)
    return trial


def _experts(model: nn.Module) -> bool:
    """Whether the model keeps the weights of several experts in one tensor."""
    return any(
        parameter.ndim == 3 and "expert" in name for name, parameter in model.named_parameters()
    )


def _linear_modules(model: Any) -> list[str]:
    """The modules that PEFT means by ``all-linear``."""
    head = model.get_output_embeddings()
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    ]


def _named(
    settings: LoraSettings, config: Any, model: nn.Module, left: dict[str, str], name: str
) -> list[str]:
    """The modules that were asked for by name.

    Raises:
        UserError: One is not in the model, or cannot be trained wherever it is.
    """
    asked = settings.target_modules
    _refuse_pattern(asked)
    try:
        converted = _with_parameters(config, model)
    except ValueError as error:
        raise UserError(f"lora.target_modules={_shown(asked)}: {error}") from error
    modules = [path for path, module in model.named_modules() if hasattr(module, "weight")]
    targets = converted.target_modules or ()
    found: list[str] = []
    for target in [targets] if isinstance(targets, str) else sorted(targets):
        whole = isinstance(targets, str)
        matched = [
            path
            for path in modules
            if (re.fullmatch(target, path) if whole else f".{path}".endswith(f".{target}"))
        ]
        if not matched:
            raise _missing(target, model, modules, name)
        reasons = [why for path in matched for one, why in left.items() if _inside(path, one)]
        if len(reasons) >= len(matched):
            raise UserError(
                f"lora.target_modules={_shown(asked)}: {target} of {name} cannot be trained, "
                f"because it {reasons[0]}; leave it out, or use lora.target_modules={ALL_LINEAR}"
            )
        found += matched
    return found


def _refuse_pattern(asked: Any) -> None:
    try:
        re.compile(asked if isinstance(asked, str) else "")
    except re.error as error:
        raise UserError(
            f"lora.target_modules={asked} is not a regular expression ({error}); write module "
            "names in brackets, e.g. lora.target_modules=[q_proj,v_proj]"
        ) from error


def _missing(target: str, model: nn.Module, modules: Iterable[str], name: str) -> UserError:
    path, _ = decoder_layers(model)
    inside = {n.rsplit(".", 1)[-1] for n in modules if n.startswith(f"{path}.") and "norm" not in n}
    return UserError(
        f"lora.target_modules: {name} has no module {target}; its layers have "
        f"{', '.join(sorted(inside))} (or use lora.target_modules={ALL_LINEAR})"
    )


def _left_out(model: nn.Module) -> dict[str, str]:
    """The modules that cannot be trained, each with the reason as a phrase."""
    left = unreached(model)
    for path, module in model.named_modules():
        if any(_inside(path, one) for one in left):
            continue
        for name in _read_alone(module):
            left[f"{path}.{name}"] = _READ_ALONE
        if isinstance(module, nn.Linear) and not _is_product(module):
            left[path] = _NO_PRODUCT
    return left


def _read_alone(module: nn.Module) -> list[str]:
    """The linear modules of a state-space mixer or a router whose weights its code uses itself.

    A fused kernel gets such a matrix as an argument, so that an adapter on it has no effect, or
    has one only on a machine without the kernel (PEFT refuses ``out_proj`` of some such models).
    """
    state_space = hasattr(module, "A_log") and hasattr(module, "D")
    if not state_space and "Router" not in type(module).__name__:
        return []
    kind: Any = type(module)
    read = _weights_read(kind)
    linear = (name for name, child in module.named_children() if isinstance(child, nn.Linear))
    return [name for name in linear if name in read]


@functools.cache
def _weights_read(kind: Any) -> frozenset[str]:
    """The submodules whose weights the code of a module's class uses itself."""
    try:
        source = inspect.getsource(kind)
    except (OSError, TypeError):
        return frozenset()
    pattern = r"\bself\.(\w+)\.weight\b(?!\.(?:dtype|device|shape)\b)"
    return frozenset(re.findall(pattern, source))


def _is_product(module: nn.Linear) -> bool:
    """Whether a linear module gives one row for each row, as a router that also ranks does not."""
    own = type(module)
    if own.forward is nn.Linear.forward or own.__module__.split(".")[0] in (
        "torch",
        "bitsandbytes",
    ):
        return True
    rows = torch.zeros(1, module.in_features, device=module.weight.device)
    try:
        with torch.no_grad():
            given = module(rows.to(module.weight.dtype))
    except (RuntimeError, ValueError, IndexError):
        return False
    return isinstance(given, torch.Tensor) and given.shape == (1, module.out_features)


def _notes_on_modules(settings: LoraSettings, left: dict[str, str], model: nn.Module) -> list[str]:
    reasons: dict[str, dict[str, None]] = {}
    general = _general(left, model)
    for path, why in left.items():
        reasons.setdefault(why, {})[general[path].replace(_NUMBER, "*")] = None
    asked = _shown(settings.target_modules)
    return [
        f"lora.target_modules={asked} leaves out {', '.join(paths)}, which {why}"
        for why, paths in reasons.items()
    ]


def _pattern(left: Iterable[str], model: nn.Module) -> str:
    """A regular expression that matches the given modules, all that is in them, and no others."""
    paths = dict.fromkeys(_general(left, model).values())
    each = [re.escape(path).replace(re.escape(_NUMBER), r"\d+") + r"(\..*)?" for path in paths]
    return "|".join(each)


def _general(left: Iterable[str], model: nn.Module) -> dict[str, str]:
    """Each path with a mark in place of its numbers if all modules of that form are meant."""
    left, general = list(left), {}
    others = {
        _numberless(name)
        for name, _ in model.named_modules()
        if not any(_inside(name, one) for one in left)
    }
    for path in left:
        form = _numberless(path)
        general[path] = path if form in others else form
    return general


def _numberless(path: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.|$)", _NUMBER, path)


def _inside(name: str, path: str) -> bool:
    return name == path or name.startswith(f"{path}.")


def _shown(modules: str | Sequence[str]) -> str:
    return modules if isinstance(modules, str) else f"[{','.join(modules)}]"
