"""Checks that need the model's shape or the data, made before anything is trained."""

import re
from collections.abc import Iterable
from pathlib import Path

from heft_pipeline.config import parse_positions
from heft_pipeline.data.prompts import Task
from heft_pipeline.errors import UserError
from heft_pipeline.models.base import (
    base_dtype,
    check_quantization,
    decoder_layers,
    load_config,
    quieten,
    resolve_device,
    skeleton,
)
from heft_pipeline.models.lora import check_start as check_lora_start
from heft_pipeline.models.pyreft_folder import check_start as check_reft_start
from heft_pipeline.spec import DataSpec, LoraSpec, ModelSpec, ReftSpec, StageSpec
from heft_pipeline.stage import cached_task


def preflight(stages: Iterable[StageSpec], tokenized: Path | None = None) -> None:
    """Refuse stages whose model, data and adapters do not fit together.

    Reads the data and the model's configuration, and no weights.

    Args:
        stages: The stages that are to be trained.
        tokenized: The folder of tokenised tasks; None for none.

    Raises:
        UserError: The first misfit; its text names the config key.
    """
    quieten()
    checked: set[object] = set()
    for stage in stages:
        check_quantization(stage.model, resolve_device(stage.device))
        key = (stage.model, stage.data, stage.seed, stage.lora, stage.reft)
        if key in checked:
            continue
        checked.add(key)
        task = cached_task(stage.data, stage.model, stage.seed, tokenized)
        _check_length(stage.model, stage.data, task)
        if stage.lora:
            _check_lora(stage.model, stage.lora)
        if stage.reft:
            _check_reft(stage.model, stage.reft, task)


def _check_length(model: ModelSpec, data: DataSpec, task: Task) -> None:
    limit = getattr(load_config(model).get_text_config(), "max_position_embeddings", None)
    answer = max(map(len, task.choices))
    longest = max(len(e.prompt) for split in (task.train, task.dev, task.eval) for e in split)
    if limit and longest + answer > limit:
        raise UserError(
            f"data.max_prompt_tokens={data.max_prompt_tokens}: a prompt of {data.name} has "
            f"{longest} tokens and its answer {answer}, and {model.name} reads {limit}; use "
            f"data.max_prompt_tokens={limit - answer}"
        )


def _check_lora(model: ModelSpec, lora: LoraSpec) -> None:
    modules = lora.target_modules
    bare = skeleton(model)
    names = [name for name, module in bare.named_modules() if hasattr(module, "weight")]
    if isinstance(modules, str):
        wanted = [] if modules == "all-linear" else [modules]
        missing = [w for w in wanted if not any(re.fullmatch(w, name) for name in names)]
    else:
        missing = [w for w in modules if not any(n == w or n.endswith(f".{w}") for n in names)]
    if missing:
        path, _ = decoder_layers(bare)
        inside = {
            n.rsplit(".", 1)[-1] for n in names if n.startswith(f"{path}.") and "norm" not in n
        }
        raise UserError(
            f"lora.target_modules: {model.name} has no module {missing[0]}; its layers have "
            f"{', '.join(sorted(inside))} (or use lora.target_modules=all-linear)"
        )
    check_lora_start(lora, bare)


def _check_reft(model: ModelSpec, reft: ReftSpec, task: Task) -> None:
    config = load_config(model)
    text = config.get_text_config()
    layers, hidden = text.num_hidden_layers, text.hidden_size
    if not isinstance(reft.layers, str):
        outside = [n for n in reft.layers if not 0 <= n < layers]
        if outside:
            raise UserError(
                f"reft.layers: {model.name} has no layer {outside[0]}; it has layers 0 to "
                f"{layers - 1}"
            )
    if reft.rank > hidden:
        raise UserError(
            f"reft.rank={reft.rank} is more than the hidden size of {model.name} ({hidden}); use "
            f"reft.rank={hidden} or less"
        )
    first, last = parse_positions(reft.positions)
    if first + last > task.shortest_prompt:
        raise UserError(
            f"reft.positions={reft.positions} asks for {first + last} positions, and the shortest "
            f"prompt has {task.shortest_prompt} tokens; use fewer, e.g. "
            f"reft.positions=l{max(1, min(7, task.shortest_prompt // 2))}"
        )
    if reft.engine == "pyreft" and base_dtype(model, config).itemsize != 4:
        raise UserError(
            "reft.engine=pyreft computes its edits in the base model's dtype, and its float32 "
            "weights need model.dtype=float32; or use reft.engine=hooks"
        )
    check_reft_start(reft, hidden, layers)
