"""A base model with weight-space adapters in its weights, for programs that know no adapters."""

import dataclasses
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heft_pipeline.adapters.kind import AdapterSettings
from heft_pipeline.errors import UserError
from heft_pipeline.plan.sources import Sources
from heft_pipeline.plan.stage_spec import StageSpec
from heft_pipeline.use.saved import SavedAdapter, with_model

_DTYPES = ("float32", "bfloat16", "float16")
#: What rounding may always change of a logit, and otherwise, as a share of what the adapters do.
_ROUNDING, _SHARE = 1e-3, 0.5
_PROBES = 4
#: A prompt with the logits of the untouched model and of the adapted one.
_Probe = tuple[list[int], Any, Any]


@dataclass(frozen=True)
class Merged:
    """What merging came to.

    Attributes:
        kinds: The kinds of the adapters that are in the weights.
        change: The largest change of a logit that rounding made, as a share of the largest logit.
        effect: The same of what the adapters in the weights make.
        dtype: The dtype of the written weights.
        beside: The stages that stay beside the weights, as a chain; None if there are none.
    """

    kinds: tuple[str, ...]
    change: float
    effect: float
    dtype: str
    beside: StageSpec | None


def write_merged(found: SavedAdapter, to: Path) -> Merged:
    """Write a base model with the adapters of weights added to it, as transformers writes one.

    Each sum is computed in float32 and rounded once to the dtype of the checkpoint. What was
    written is read again and compared with the adapted model.

    Args:
        found: The adapter.
        to: A new folder.

    Returns:
        What is in the weights, and what is not.

    Raises:
        UserError: There is nothing to merge, the base is in 4 bits, or what was written does not
            compute the same.
    """
    weights = [(one, folder) for one, folder in found.adapters if not one.edits]
    if not weights:
        raise UserError(
            f"{found.stage.label} has no adapter of weights to merge: edits of hidden states "
            "depend on the prompt's positions, and no weights can do that; leave --merge out"
        )
    model = found.stage.model
    if model.quantization != "none":
        raise UserError(
            f"{found.stage.label} was trained on weights in 4 bits, and merged into others it "
            "would be another model; leave --merge out"
        )
    _refuse_edited_modules(found)
    from heft_pipeline.models.base_model import load_config, quieten

    quieten()
    stored = str(getattr(load_config(model), "dtype", None)).removeprefix("torch.")
    stored = stored if stored in _DTYPES else "float32"
    loaded = "bfloat16" if stored == "bfloat16" else "float32"
    probes = _merge(dataclasses.replace(model, dtype=loaded), weights, stored, to)
    effect, change = _apart([(before, after) for _, before, after in probes]), _change(to, probes)
    allowed = _ROUNDING if stored == "float32" else max(_ROUNDING, _SHARE * effect)
    if not change < allowed:
        shutil.rmtree(to)  # nobody is to take it for the model
        raise UserError(
            f"{to}: merged into {stored} weights, logits change by {change:.2g} of the largest, "
            f"and the adapter itself changes them by {effect:.2g}; export it without --merge"
        )
    kinds = tuple(dict.fromkeys(one.kind for one, _ in weights))
    beside = edits_alone(found.stage)
    return Merged(kinds, change, effect, stored, beside and _on_merged(beside, to, stored))


def _refuse_edited_modules(found: SavedAdapter) -> None:
    """Refuse LoRA above edits of modules' outputs: what it adds to an output was not edited."""
    edited = False
    for one, _ in found.adapters:
        if edited and not one.edits:
            raise UserError(
                f"{found.stage.label} trains weights after edits of the outputs of modules, and "
                "what LoRA adds there was not edited; leave --merge out"
            )
        edited = edited or (one.edits and not one.at_positions)


def _on_merged(stage: StageSpec, folder: Path, dtype: str) -> StageSpec:
    """A stage on a merged model, which is in a folder."""
    there = folder.resolve()
    content = Sources(there / "nothing").model(str(there), "main").content
    model = dataclasses.replace(
        stage.model,
        id=str(there),
        revision=None,
        name=f"{stage.model.name}-merged",
        dtype="bfloat16" if dtype == "bfloat16" else "float32",
        content=content,
    )
    return with_model(stage, model)


def _merge(
    model: Any, weights: Sequence[tuple[AdapterSettings, Path]], stored: str, to: Path
) -> list[_Probe]:
    """Write the merged model, and return what it is tried on."""
    import torch

    from heft_pipeline.adapters.adapted import adapted
    from heft_pipeline.models.base_model import load_base

    base = load_base(model, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    size = base.model.config.get_text_config().vocab_size
    prompts = [torch.randint(size, (1, 8 + 8 * n), generator=generator) for n in range(_PROBES)]
    logits = lambda: [base.model(ids, use_cache=False).logits.float() for ids in prompts]  # noqa: E731
    with torch.no_grad():
        before = logits()
        with adapted(base, weights) as on_base:
            after = logits()
            on_base.write_into_weights()
    plain = base.model.to(getattr(torch, stored))
    plain.config.dtype = getattr(torch, stored)
    _untie(plain)
    plain.save_pretrained(to)
    base.tokenizer.save_pretrained(to)
    return list(zip([ids.tolist()[0] for ids in prompts], before, after, strict=True))


def _untie(model: Any) -> None:
    """Say that input and output embeddings differ where an adapter has changed one of them."""
    before, after = model.get_input_embeddings(), model.get_output_embeddings()
    config = model.config.get_text_config()
    if getattr(config, "tie_word_embeddings", False) and after is not None:
        same = before.weight is after.weight or before.weight.equal(after.weight)
        config.tie_word_embeddings = model.config.tie_word_embeddings = same


def _change(folder: Path, probes: Sequence[_Probe]) -> float:
    """How far the logits of what was written are from the adapted model's."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    with torch.no_grad():
        found = [model(torch.tensor([ids]), use_cache=False).logits for ids, _, _ in probes]
    return _apart([(now.float(), after) for now, (_, _, after) in zip(found, probes, strict=True)])


def _apart(pairs: Sequence[tuple[Any, Any]]) -> float:
    """The largest difference of two logits, as a share of the largest logit."""
    return max(float((one - other).abs().max() / other.abs().max()) for one, other in pairs)


def edits_alone(stage: StageSpec) -> StageSpec | None:
    """A stage's chain with its edits of hidden states only; None if it makes none."""
    parent = edits_alone(stage.parent) if stage.parent else None
    adapters = tuple(one for one in stage.adapters if one.edits)
    return dataclasses.replace(stage, adapters=adapters, parent=parent) if adapters else parent
