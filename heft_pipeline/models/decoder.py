"""Where the parts of a causal language model are: its decoder layers, and what no text reaches."""

from collections.abc import Iterator
from typing import Any

from torch import nn

from heft_pipeline.errors import UserError

#: Parts of a decoder that a forward pass over text skips, or through which no gradient flows.
_BESIDE_THE_TEXT = {
    "encoder_attn": "attends to an encoder, and there is none",
    "crossattention": "attends to an encoder, and there is none",
    "cross_attn": "attends to an image, and there is none",
    "indexer": "chooses which tokens are attended to, which has no gradient",
    "pooler": "is for classification",
}
#: The first words of the names of modules that read something else than text.
_OTHER_INPUT = ("vision", "visual", "image", "audio", "video", "speech", "multi_modal", "mm_")


def decoder_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Find a causal language model's decoder layers.

    Args:
        model: A transformers model.

    Returns:
        The layers' path in the model, and the layers.

    Raises:
        UserError: The text model has no list of its layers, or several lists could be it.
    """
    count = getattr(_text_config(model), "num_hidden_layers", None)
    lists = list(_outer_lists(model)) if count else []
    found = [one for one in lists if len(one[1]) == count]
    if not found:  # some models count sublayers, or the layers of an encoder
        longest = max((len(layers) for _, layers in lists), default=0)
        found = [one for one in lists if len(one[1]) == longest]
    parents = [path.rpartition(".")[0] for path, _ in found]
    # Lists side by side hold pieces of each layer, or take turns.
    if not found or parents.count(parents[0]) > 1 or (len(found) > 1 and len(found[0][1]) != count):
        raise UserError(
            f"model.id: the decoder layers of {type(model).__name__} were not found; an adapter "
            "needs one list of layers"
        )
    return found[0]


def unreached(model: nn.Module) -> dict[str, str]:
    """The parts of a model that training on text cannot change.

    Args:
        model: A transformers causal language model; adapters may be on it.

    Returns:
        The paths of the outermost such modules, each with the reason as a phrase.
    """
    path, layers = decoder_layers(model)
    found = dict(_towers(model, path))
    for number, layer in enumerate(layers):
        # A layer without attention to the text itself is skipped as a whole.
        if hasattr(layer, "cross_attn") and not hasattr(layer, "self_attn"):
            found[f"{path}.{number}"] = _BESIDE_THE_TEXT["cross_attn"]
    for name, _ in model.named_modules():
        last = name.rpartition(".")[2]
        if any(name.startswith(f"{outer}.") for outer in found):
            continue
        if last in _BESIDE_THE_TEXT:
            found[name] = _BESIDE_THE_TEXT[last]
        elif last.endswith("_adapter_list"):
            found[name] = "is an adapter already"
    return found


def feed_forward_outputs(model: nn.Module) -> list[str]:
    """Find each decoder layer's feed-forward output: its last matrix outside of attention.

    Args:
        model: A transformers model; adapters may be on it.

    Returns:
        A module path for each decoder layer, e.g. ``model.layers.0.mlp.down_proj``.

    Raises:
        UserError: A layer has no such matrix, or several, as a mixture of experts has.
    """
    path, layers = decoder_layers(model)
    width = _text_config(model).hidden_size
    found = []
    for number, layer in enumerate(layers):
        names = [name for name, _ in layer.named_modules()]
        matrices = [
            name.removesuffix(".base_layer")  # inside the wrapper of an adapter
            for name, module in layer.named_modules()
            if _output_width(module) == width
            and not any(word in name for word in ("attn", "attention", "lora_"))
        ]
        if not matrices or any("expert" in name or "router" in name for name in names):
            raise UserError(
                f"the decoder layers of {type(model).__name__} have no single feed-forward "
                "projection whose output could be edited; use another kind of adapter"
            )
        found.append(f"{path}.{number}.{matrices[-1]}")
    return found


def _outer_lists(model: nn.Module) -> Iterator[tuple[str, nn.ModuleList]]:
    """The module lists of the text model that are in no other list."""
    decoder = _text_decoder(model)
    inside = {id(module) for module in decoder.modules()}
    outer: list[str] = []
    for name, module in model.named_modules():
        if id(module) not in inside or any(name.startswith(f"{one}.") for one in outer):
            continue
        # A tower for images or sounds is left out with all that is in it.
        if isinstance(module, nn.ModuleList) or _is_other_model(module, model):
            outer.append(name)
            if isinstance(module, nn.ModuleList):
                yield name, module


def _text_decoder(model: Any) -> nn.Module:
    """The module of the text model, as transformers names it; the whole model if it does not."""
    named: Any = model.get_decoder() if hasattr(model, "get_decoder") else None
    holds_lists = isinstance(named, nn.Module) and any(
        isinstance(module, nn.ModuleList) for module in named.modules()
    )
    return named if holds_lists else model


def _towers(model: Any, layers_path: str) -> Iterator[tuple[str, str]]:
    """What lies beside the text model, and what in it holds a model for another kind of input."""
    reason = "sees no text"
    text = _text_config(model)
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    outside = type(text) is not type(model.config)
    prefix, module = "", model
    for part in layers_path.split(".")[:-1]:
        outside = outside and not _has_config(module, text)
        for name, child in module.named_children():
            if name != part and not any(child is end or _holds(child, end) for end in ends):
                foreign = name.startswith(_OTHER_INPUT) or any(
                    _is_other_model(inner, model) for inner in child.modules()
                )
                if foreign or outside:
                    yield f"{prefix}{name}", reason
        prefix, module = f"{prefix}{part}.", getattr(module, part)
    for name, child in module.named_children():
        if any(_is_other_model(inner, model) for inner in child.modules()):
            yield f"{prefix}{name}", reason


def _is_other_model(module: nn.Module, model: nn.Module) -> bool:
    """Whether a module is a transformers model of another kind than the text model around it."""
    config = getattr(module, "config", None)
    known = (type(model.config), type(_text_config(model)))
    return hasattr(module, "config_class") and config is not None and type(config) not in known


def _has_config(module: nn.Module, config: Any) -> bool:
    return hasattr(module, "config_class") and type(getattr(module, "config", None)) is type(config)


def _holds(module: nn.Module, wanted: nn.Module | None) -> bool:
    return wanted is not None and any(inner is wanted for inner in module.modules())


def _text_config(model: Any) -> Any:
    return model.config.get_text_config()


def _output_width(module: nn.Module) -> int:
    """How many numbers a matrix gives for each position; 0 for any other module."""
    weight: Any = getattr(module, "weight", None)
    if getattr(weight, "ndim", 0) != 2:
        return 0
    # transformers' Conv1D keeps its matrix transposed.
    columns: Any = getattr(module, "nf", weight.shape[0])
    return int(columns)
