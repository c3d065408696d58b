"""What the headers of a checkpoint's files say, read before its weights are."""

from pathlib import Path
from typing import Any

from heft_pipeline.errors import UserError
from heft_pipeline.models.base_model import skeleton
from heft_pipeline.models.checkpoint_files import model_files
from heft_pipeline.models.quantization import stored_quantization
from heft_pipeline.models.settings import ModelSettings
from heft_pipeline.models.tensor_headers import tensor_shapes


def check_weights(settings: ModelSettings) -> None:
    """Refuse a local checkpoint that is cut off, or that belongs to another ``config.json``.

    Only the headers of its files are read. Names that transformers changes while it loads, and
    what is missing, are for :func:`~heft_pipeline.models.base_model.load_base` to compare.

    Args:
        settings: The model; one on the hub is not looked at, because its files may not be here.

    Raises:
        UserError: The message names the file, and the weight where one has another shape.
    """
    folder = Path(settings.id)
    if settings.revision is not None or not folder.is_dir():
        return
    name = f"model.id={folder}"
    files = [
        file
        for file in model_files(folder, settings.trust_remote_code, name)
        if file.suffix == ".safetensors"
    ]
    shapes = {key: shape for file in files for key, shape in tensor_shapes(file, name).items()}
    model = skeleton(settings)
    if stored_quantization(model.config) is not None or _changes_shapes(model):
        return
    for key, own in model.state_dict().items():
        saved = shapes.get(key)
        if saved is not None and saved != tuple(own.shape):
            raise UserError(
                f"{name}: its weights have other shapes than its config.json says ({key} is "
                f"{_shown(saved)}, and {_shown(own.shape)} by the config); use the config.json "
                "that belongs to the checkpoint"
            )


def _changes_shapes(model: Any) -> bool:
    """Whether transformers puts weights of this architecture together while it loads them."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter

    return any(isinstance(one, WeightConverter) for one in get_model_conversion_mapping(model))


def _shown(shape: Any) -> str:
    return " x ".join(map(str, shape)) or "a single number"
