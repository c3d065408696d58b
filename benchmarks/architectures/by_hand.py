"""The same computations with transformers, PEFT and plain hooks: one prompt at a time, unpadded.

Nothing here is this project's, so that a mistake in this project is not repeated.
"""

import inspect
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

Tokens = Sequence[int]


@torch.no_grad()
def log_probabilities(
    model_folder: Path,
    prompts: Sequence[Tokens],
    choices: Sequence[Tokens],
    *,
    lora: Path | None = None,
    reft: Path | None = None,
) -> torch.Tensor:
    """The log-probability of each choice after each prompt.

    Args:
        model_folder: The base model.
        prompts: N prompts, as token ids.
        choices: C choices, as token ids.
        lora: The folder of a LoRA adapter, in PEFT's format.
        reft: The folder of ReFT's weights (``reft.safetensors``, ``reft_config.json``).

    Returns:
        [N, C], summed over a choice's tokens.
    """
    model = load(model_folder)
    layers = decoder_layers(model, prompts[0]) if reft else []
    if lora:
        from peft import PeftModel
        from peft.utils import get_peft_model_state_dict, load_peft_weights

        peft = PeftModel.from_pretrained(model, lora).eval()
        # By their names once more: PEFT's own loading loses weights of a few architectures.
        saved = load_peft_weights(str(lora), device="cpu")
        for name, tensor in get_peft_model_state_dict(peft).items():
            tensor.copy_(saved[name])
        model = peft.base_model.model
    table = torch.empty(len(prompts), len(choices))
    for row, prompt in enumerate(prompts):
        for column, choice in enumerate(choices):
            with _edited(layers, reft, len(prompt)) if reft else _unedited():
                logits = _logits(model, [*prompt, *choice[:-1]])
            log_probs = logits[len(prompt) - 1 :].float().log_softmax(dim=-1)
            table[row, column] = log_probs[range(len(choice)), list(choice)].sum()
    return table


@torch.no_grad()
def padding_error(model_folder: Path, prompts: Sequence[Tokens], pad: int) -> float:
    """How much padding on the left changes the log-probabilities after prompts.

    Args:
        model_folder: The base model.
        prompts: Prompts of different lengths.
        pad: The id that fills the padding, which is masked.

    Returns:
        The largest difference of a log-probability of the next token; NaN counts as infinite.
    """
    model = load(model_folder)
    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    inputs = {"input_ids": ids, "attention_mask": mask, **no_cache(model)}
    if "position_ids" in inspect.signature(type(model).forward).parameters:
        inputs["position_ids"] = (mask.cumsum(dim=1) - 1).clamp(min=0)
    padded = model(**inputs).logits[:, -1].log_softmax(dim=-1)
    plain = torch.stack([_logits(model, p)[-1].log_softmax(dim=-1) for p in prompts])
    error = (padded - plain).abs().amax()
    return float("inf") if error.isnan() else float(error)


def load(folder: Path) -> Any:
    """A causal language model in float32, in eval mode."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def decoder_layers(model: Any, prompt: Tokens) -> list[nn.Module]:
    """The layers of the list of modules that holds the most weights and runs on a prompt."""
    ran: set[nn.Module] = set()
    handles = [
        child.register_forward_hook(lambda module, *_: ran.add(module))
        for module in model.modules()
        if isinstance(module, nn.ModuleList)
        for child in module
    ]
    _logits(model, prompt)
    for handle in handles:
        handle.remove()
    lists = [list(m) for m in model.modules() if isinstance(m, nn.ModuleList) and len(m)]
    return max((one for one in lists if ran.issuperset(one)), key=_weights)


def _weights(modules: Sequence[nn.Module]) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def _logits(model: Any, ids: Tokens) -> torch.Tensor:
    """[T, V] for one sequence."""
    logits: torch.Tensor = model(input_ids=torch.tensor([list(ids)]), **no_cache(model)).logits
    return logits[0]


def no_cache(model: Any) -> dict[str, Any]:
    """The argument that keeps a model from caching keys and values, if it has one."""
    accepted = inspect.signature(type(model).forward).parameters
    return {"use_cache": False} if "use_cache" in accepted else {}


@contextmanager
def _unedited() -> Iterator[None]:
    yield


@contextmanager
def _edited(layers: Sequence[nn.Module], folder: Path, prompt: int) -> Iterator[None]:
    """Inside the block, edit what the layers give at a prompt's first and last positions."""
    weights = load_file(folder / "reft.safetensors")
    config = json.loads((folder / "reft_config.json").read_text())
    first, last = _ends(config["positions"])
    columns = [*range(first), *range(prompt - last, prompt)]
    handles = [
        layers[unit["layer"]].register_forward_hook(_edit(weights, unit["key"], columns))
        for unit in config["units"]
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _ends(positions: str) -> tuple[int, int]:
    """The numbers of positions of ``f7+l7``, or of ``l7``."""
    parts = {part[0]: int(part[1:]) for part in positions.split("+")}
    return parts.get("f", 0), parts.get("l", 0)


def _edit(weights: dict[str, torch.Tensor], key: str, columns: list[int]) -> Any:
    """A hook that adds ``(W h + b - R' h) R'`` (LoReFT, arXiv 2404.03592, equation 2)."""
    source, bias = weights[f"{key}.learned_source.weight"], weights[f"{key}.learned_source.bias"]
    rotation = weights[f"{key}.rotate_layer"]

    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        several = isinstance(output, tuple | list)
        hidden = output[0] if several else output
        edited = hidden.clone()
        # XLNet's layers give time first; all others give it before the width.
        time_first = hidden.shape[0] > max(columns) >= hidden.shape[-2]
        states = edited.transpose(0, -2) if time_first else edited
        before = states[..., columns, :]
        states[..., columns, :] = (
            before + (before @ source.T + bias - before @ rotation) @ rotation.T
        )
        return type(output)([edited, *output[1:]]) if several else edited

    return hook
