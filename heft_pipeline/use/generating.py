"""Running a loaded model: whole sequences, and what it writes after prompts."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch

from heft_pipeline.adapters.adapted import AdaptedModel
from heft_pipeline.data.batches import AnsweredPrompt, Batch, collate, length_batches
from heft_pipeline.data.encode import Encoder
from heft_pipeline.devices.memory import in_parts
from heft_pipeline.errors import UserError
from heft_pipeline.models.base_model import Base
from heft_pipeline.scoring.continuations import continuations, end_tokens

#: Ways of decoding that do not read a prompt in one pass of all its sequences, or read it again
#: later; edits of prompts would be lost or made twice.
_UNKNOWN_PASSES = (
    "generation_config", "assistant_model", "assistant_early_exit", "prompt_lookup_num_tokens",
    "prefill_chunk_size", "penalty_alpha", "dola_layers", "custom_generate", "guidance_scale",
    "cache_implementation",
    "past_key_values", "inputs", "inputs_embeds", "input_ids", "attention_mask", "position_ids",
    "max_length", "min_length", "token_healing", "return_dict_in_generate", "output_scores",
)  # fmt: skip
_NEED_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p")


def forward(
    model: AdaptedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    prompt_tokens: torch.Tensor | Sequence[int] | None,
    arguments: Mapping[str, Any],
) -> Any:
    """See :meth:`~heft_pipeline.use.loaded.HeftModel.forward`."""
    base = model.base
    ids = input_ids.to(base.device)
    mask = torch.ones_like(ids) if attention_mask is None else attention_mask.to(ids).long()
    _refuse_shapes(ids, mask)
    if base.no_padding and not bool(mask.all()):
        raise UserError(f"{base.no_padding}; run sequences of one length together")
    lengths = mask.sum(dim=1)
    prompts = lengths
    if prompt_tokens is not None:
        prompts = torch.as_tensor(prompt_tokens, device=ids.device)
        if prompts.shape != lengths.shape or bool(((prompts < 1) | (prompts > lengths)).any()):
            raise UserError(
                f"prompt_tokens={prompts.tolist()} must be between 1 and each sequence's length "
                f"({lengths.tolist()})"
            )
    batch = Batch(
        input_ids=ids,
        attention_mask=mask,
        position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0),
        labels=ids[:, -1:],
        prompt_start=mask.argmax(dim=1),
        prompt_length=prompts,
        whole_length=prompts,
        sequences=tuple(AnsweredPrompt((0,) * length, (0,)) for length in prompts.tolist()),
    )
    inputs: dict[str, Any] = {"input_ids": ids}
    if not base.no_padding:
        inputs |= {"attention_mask": mask, "position_ids": batch.position_ids}
    with model.editing(batch):
        return base.model(**inputs, **{"use_cache": False, **arguments})


def _refuse_shapes(ids: torch.Tensor, mask: torch.Tensor) -> None:
    if ids.dim() != 2 or ids.shape != mask.shape:
        raise UserError(
            f"input_ids {list(ids.shape)} and attention_mask {list(mask.shape)} must both be [B, T]"
        )
    changes = (mask[:, 1:] != mask[:, :-1]).sum(dim=1)
    if bool((mask.sum(dim=1) == 0).any() | (changes > 1).any()):
        raise UserError("attention_mask must have padding at one end of each sequence only")


@torch.no_grad()
def generate(
    model: AdaptedModel,
    prompts: Sequence[str],
    batch_size: int,
    max_new_tokens: int,
    sampling: Mapping[str, Any],
    special_tokens: str = "once",
) -> list[str]:
    """See :meth:`~heft_pipeline.use.loaded.HeftModel.generate`.

    Args:
        model: The model.
        prompts: The prompts, as they are.
        batch_size: The most that are run together.
        max_new_tokens: The most tokens that are written after each.
        sampling: transformers' arguments.
        special_tokens: The value of ``data.special_tokens``.
    """
    _refuse_sampling(sampling, max_new_tokens, batch_size)
    encoder = Encoder(model.base.tokenizer, special_tokens)
    ids = encoder.encode([[(prompt, False)] for prompt in prompts])
    if empty := [prompt for prompt, own in zip(prompts, ids, strict=True) if not own]:
        raise UserError(f"the prompt {empty[0]!r} has no tokens")
    if not sampling:
        found = continuations(
            model,
            ids,
            tokens=max_new_tokens,
            batch_size=batch_size,
            process=lambda _, logits: logits,
        )
    elif model.base.no_cache:
        raise UserError(
            f"{', '.join(sampling)}: {model.base.no_cache}, so that only the likeliest tokens can "
            "be written; leave these arguments out"
        )
    else:
        found = _by_transformers(model, ids, batch_size, max_new_tokens, sampling)
    decode = model.base.tokenizer.decode
    return [decode(own, skip_special_tokens=True) for own in found]


def _refuse_sampling(sampling: Mapping[str, Any], max_new_tokens: int, batch_size: int) -> None:
    if max_new_tokens < 1 or batch_size < 1:
        raise UserError(
            f"max_new_tokens={max_new_tokens} and batch_size={batch_size} must be 1 or more"
        )
    for name in _UNKNOWN_PASSES:
        if name in sampling:
            raise UserError(
                f"{name} cannot be used here: edits are made while a prompt is read, once and "
                "as a whole"
            )
    if sampling.get("use_cache", True) is not True:
        raise UserError("use_cache=False reads a prompt again for each token; leave it out")
    if not sampling.get("do_sample") and (given := [n for n in _NEED_SAMPLING if n in sampling]):
        raise UserError(f"{given[0]} has no effect without do_sample=True")


def _by_transformers(
    model: AdaptedModel,
    prompts: Sequence[tuple[int, ...]],
    batch_size: int,
    max_new_tokens: int,
    sampling: Mapping[str, Any],
) -> list[list[int]]:
    """Continue prompts with transformers' ``generate``."""
    each = int(sampling.get("num_return_sequences") or 1)
    found: list[list[list[int]]] = [[]] * len(prompts)
    run = lambda some: _one_batch(model, [prompts[i] for i in some], max_new_tokens, sampling)  # noqa: E731
    groups = length_batches([len(prompt) for prompt in prompts], batch_size)
    if model.base.no_padding:
        groups = [one for group in groups for one in _equal(group, prompts)]
    for group in groups:
        texts = list(chain.from_iterable(in_parts(run, group, model.base.device)))
        for number, i in enumerate(group):
            found[i] = texts[number * each : (number + 1) * each]
    return list(chain.from_iterable(found))


def _equal(group: Sequence[int], prompts: Sequence[tuple[int, ...]]) -> Iterator[list[int]]:
    """The parts of a group whose prompts are equally long."""
    for length in sorted({len(prompts[i]) for i in group}):
        yield [i for i in group if len(prompts[i]) == length]


def _one_batch(
    model: AdaptedModel,
    prompts: Sequence[tuple[int, ...]],
    max_new_tokens: int,
    sampling: Mapping[str, Any],
) -> list[list[int]]:
    base, ends = model.base, end_tokens(model.base)
    batch = _prompts_only(prompts, base)
    width = batch.input_ids.shape[1]
    # transformers runs a row for each beam and each text that is to be returned.
    rows = max(int(sampling.get("num_beams") or 1), int(sampling.get("num_return_sequences") or 1))
    several = _prompts_only([prompt for prompt in prompts for _ in range(rows)], base)
    settings = {"do_sample": False, "eos_token_id": sorted(ends) or None, **sampling}
    if settings.get("stop_strings"):
        settings["tokenizer"] = base.tokenizer
    with model.editing(several), _own_defaults(base.model, base.pad_token_id):
        try:
            output = base.model.generate(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                max_new_tokens=max_new_tokens,
                pad_token_id=base.pad_token_id,
                **settings,
            )
        except (TypeError, ValueError) as error:
            raise UserError(f"transformers refuses these arguments: {error}") from error
    named = settings["eos_token_id"]
    stop = frozenset([named] if isinstance(named, int) else named or [])
    return [_before_end(row, stop) for row in output[:, width:].tolist()]


def _prompts_only(prompts: Sequence[tuple[int, ...]], base: Base) -> Batch:
    """Prompts as a batch.

    Every later step of generation has one column, and edits are made where there are as many
    columns as in the batch. A prompt of one token is none of them: it has no half to be edited.
    """
    pairs = [AnsweredPrompt(prompt, (0,)) for prompt in prompts]
    return collate(pairs, base.pad_token_id).to(base.device)


@contextmanager
def _own_defaults(model: Any, pad_token_id: int) -> Iterator[None]:
    """Let transformers know no defaults of the checkpoint's ``generation_config.json``."""
    from transformers import GenerationConfig

    before, model.generation_config = (
        model.generation_config,
        GenerationConfig(pad_token_id=pad_token_id),
    )
    try:
        yield
    finally:
        model.generation_config = before


def _before_end(row: Sequence[int], ends: frozenset[int]) -> list[int]:
    """What stands before the first token that ends a text, and that token."""
    kept = []
    for token in row:
        kept.append(token)
        if token in ends:
            break
    return kept
