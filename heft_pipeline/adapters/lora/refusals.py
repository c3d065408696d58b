"""What PEFT would refuse, said in the words of the settings before anything is computed."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftConfig
from peft.tuners.lora.layer import LoraLayer

from heft_pipeline.adapters.lora.settings import ALL_LINEAR, LoraSettings
from heft_pipeline.adapters.lora.targets import without_experts
from heft_pipeline.errors import UserError
from heft_pipeline.files.untrusted import read_untrusted

#: PEFT's options that do not change what saved weights mean. The names and shapes of the weights
#: themselves say which modules they are for.
_NOT_MEANING = frozenset(
    {
        "auto_mapping", "base_model_name_or_path", "exclude_modules", "fan_in_fan_out",
        "inference_mode",
        "init_lora_weights", "layers_pattern", "layers_to_transform", "lora_dropout",
        "peft_version", "revision", "runtime_config", "target_modules", "task_type",
        "megatron_core", "qalora_group_size",
    }
)  # fmt: skip
#: This project's names of PEFT's options.
_SETTING_NAMES = {
    "r": "rank",
    "lora_alpha": "alpha",
    "use_rslora": "use_rslora",
    "use_dora": "use_dora",
}


@contextmanager
def refused_by_peft(settings: LoraSettings, model: Any, name: str) -> Iterator[None]:
    """Turn what PEFT raises inside the block into a message that names the setting.

    Args:
        settings: The adapter's settings.
        model: The model's skeleton; changed in the block.
        name: The model's name for people.

    Raises:
        UserError: PEFT refused the adapter.
    """
    kept = without_experts(model)
    try:
        yield
    except (ValueError, TypeError, NotImplementedError, RuntimeError, AttributeError) as error:
        said = str(error).strip() or type(error).__name__
        modules = settings.target_modules
        shown = modules if isinstance(modules, str) else f"[{','.join(modules)}]"
        setting, way_out = f"lora.target_modules={shown}", f"use lora.target_modules={ALL_LINEAR}"
        if settings.use_dora and "dora" in said.lower():
            setting, way_out = "lora.use_dora=true", f"use false, or lora.target_modules={kept}"
        elif "lora_dropout" in said:
            setting = f"lora.dropout={settings.dropout:g}"
            way_out = f"use lora.dropout=0, or lora.target_modules={kept}"
        raise UserError(f"{setting}: PEFT refuses it for {name} ({said}); {way_out}") from error


def refuse_rank(settings: LoraSettings, model: Any, name: str) -> None:
    """Refuse a rank above that of every matrix that it is to update.

    Args:
        settings: The adapter's settings.
        model: The model's skeleton with the adapter on it.
        name: The model's name for people.

    Raises:
        UserError: The message has the largest rank that fits a matrix.
    """
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    largest = max(min(layer.in_features, layer.out_features) for layer in layers)
    if settings.rank > largest:
        raise UserError(
            f"lora.rank={settings.rank} is more than the rank of any matrix of {name} that gets an "
            f"update; use lora.rank={largest} or less"
        )


def refuse_other_config(settings: LoraSettings, config: LoraConfig, folder: Path) -> None:
    """Refuse weights that mean something else than they would with these settings.

    Args:
        settings: The adapter's settings.
        config: What PEFT made of them on the model.
        folder: A folder with a saved adapter.

    Raises:
        UserError: The message names the first difference.
    """
    read_untrusted(folder / "adapter_config.json", f"lora.init_from={folder}")
    try:
        saved = PeftConfig.from_pretrained(str(folder)).to_dict()
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"lora.init_from={folder} has no adapter_config.json that PEFT can read; give a "
            "folder that PEFT's save_pretrained wrote"
        ) from error
    own = config.to_dict()
    for key in dict.fromkeys([*_SETTING_NAMES, *sorted(own.keys() | saved.keys())]):
        before, now = _ordered(saved.get(key)), _ordered(own.get(key))
        # PEFT writes an unused option as None, False, or an empty mapping or list.
        if key in _NOT_MEANING or before == now or not (before or now):
            continue
        name = _SETTING_NAMES.get(key)
        ours = f"lora.{name}={getattr(settings, name)}" if name else f"{key}={now}"
        raise UserError(
            f"lora.init_from={folder} was trained with {key}={before}, and this stage has {ours}; "
            + (f"set lora.{name}={before}" if name else "which cannot be set; use another folder")
        )


def refuse_wild_patterns(config: LoraConfig, settings: LoraSettings, file: Path) -> None:
    """Refuse regular expressions in a saved adapter that could take forever to be matched.

    Args:
        config: The saved configuration.
        settings: The settings that the adapter was trained with, whose own patterns may stand.
        file: Where the configuration is, for the message.

    Raises:
        UserError: The message names the pattern.
    """
    for key in ("target_modules", "exclude_modules", "layers_pattern", "rank_pattern",
                "alpha_pattern"):  # fmt: skip
        found = getattr(config, key, None) or ()
        for pattern in [found] if isinstance(found, str) else found:
            if pattern != settings.target_modules and not _is_tame(str(pattern)):
                raise UserError(
                    f"{file} has {key}={str(pattern)[:80]!r}, which this stage did not write; "
                    "restore the file from a copy, or remove the stage's folder and run the same "
                    "command again"
                )


def _is_tame(pattern: str) -> bool:
    """Whether a pattern repeats nothing but single digits and whatever follows a dot."""
    rest = re.sub(r"\\d\+|\(\\\.\.\*\)\?", "", pattern)
    return rest.count(".*") <= 2 and not re.search(r"[+*?{(]", re.sub(r"\\.|\.\*", "", rest))


def _ordered(value: Any) -> Any:
    """A value with a list of names, which PEFT keeps as a set, in one order."""
    names = isinstance(value, list | set | tuple) and all(isinstance(one, str) for one in value)
    return sorted(value) if names else value
