"""What a model writes after each of many prompts, token by token."""

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import torch

from heft_pipeline.adapters.adapted import AdaptedModel
from heft_pipeline.data.batches import AnsweredPrompt, Batch, collate, length_batches
from heft_pipeline.devices.memory import free, in_parts, is_out_of_memory
from heft_pipeline.models.base_model import Base
from heft_pipeline.models.forward import cache_name
from heft_pipeline.scoring.growing_cache import GrowingCache

Prompt = Sequence[int]
#: Which prompt a row continues, and how many tokens it has written.
Place = tuple[int, int]
#: What is largest at each row's next token, [B, V], from its place and float32 logits [B, V]. Text
#: is begun again if memory runs out, and then a place is asked for again.
Process = Callable[[Sequence[Place], torch.Tensor], torch.Tensor]
#: New prompts are read once this share of the places is free: few together are slow to read.
_FREE = 1 / 8


@torch.no_grad()
def continuations(
    model: AdaptedModel,
    prompts: Sequence[Prompt],
    *,
    tokens: int,
    batch_size: int,
    process: Process,
) -> list[list[int]]:
    """Continue prompts up to the tokenizer's end token, with all adapters' edits.

    A sequence that has ended leaves its place to the next prompt. Models that keep more than keys
    and values are left to transformers' ``generate``, and those that keep none run whole prompts.

    Args:
        model: The model.
        prompts: N prompts, as token ids.
        tokens: The most new tokens of each.
        batch_size: The most sequences that are run together; it changes only the speed. If memory
            runs out, fewer are.
        process: Says which token comes next: the one for which it is largest.

    Returns:
        N lists of at most ``tokens`` token ids, without the end token.
    """
    whole = model.base.no_padding or model.base.no_cache
    if whole or any(adapter.forward() for adapter in model.adapters):
        return _in_batches(_by_whole_passes, model, prompts, tokens, batch_size, process)
    if model.whole.no_cache:
        return _in_batches(_by_transformers, model, prompts, tokens, batch_size, process)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    found: dict[int, list[int]] = {}
    while waiting := [i for i in order if i not in found]:
        try:
            _side_by_side(model, prompts, waiting, tokens, batch_size, process, found)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or batch_size == 1:
                raise
            batch_size //= 2
        else:
            break
        # Outside of the handler, because the exception keeps the failed pass's tensors alive.
        free(model.base.device)
    return [found[i] for i in range(len(prompts))]


def _side_by_side(
    model: AdaptedModel,
    prompts: Sequence[Prompt],
    waiting: Sequence[int],
    tokens: int,
    places: int,
    process: Process,
    found: dict[int, list[int]],
) -> None:
    """Continue the waiting prompts, up to ``places`` at a time; each is found once it has ended."""
    end, waiting = model.base.tokenizer.eos_token_id, list(waiting)
    cache = GrowingCache(min(places, len(waiting)))
    rows: list[int] = []  # which prompt each of the cache's sequences continues
    texts: dict[int, list[int]] = {i: [] for i in waiting}
    while waiting or rows:
        room = places - len(rows)
        if waiting and (not rows or room >= min(len(waiting), max(1, places * _FREE))):
            (new, *_) = length_batches([len(prompts[i]) for i in waiting[:room]], room)
            asked, waiting = waiting[: len(new)], waiting[len(new) :]
            logits = _read(model, [prompts[i] for i in asked], cache)
            rows += asked
        else:
            asked = rows
            logits = _step(model.base, [texts[i][-1] for i in rows], cache)
        places_asked = [(i, len(texts[i])) for i in asked]
        chosen = process(places_asked, logits.float()).argmax(dim=-1).tolist()
        for i, token in zip(asked, chosen, strict=True):
            texts[i].append(token)
        ended = [n for n, i in enumerate(rows) if texts[i][-1] == end or len(texts[i]) == tokens]
        if ended:
            found |= {rows[n]: _before(end, texts.pop(rows[n])) for n in ended}
            rows = [rows[n] for n in cache.drop(ended)]


def _read(model: AdaptedModel, prompts: Sequence[Prompt], cache: GrowingCache) -> torch.Tensor:
    """The logits [B, V] after each prompt, which is added to the cache."""
    read = model.read_prompts(_batch(model.base, prompts))
    if read is None:
        raise TypeError("the model keeps no keys and values to continue from")
    cache.add(read)
    return read.logits


def _step(base: Base, last: Sequence[int], cache: GrowingCache) -> torch.Tensor:
    """The logits [B, V] after one more token of each sequence."""
    kept, mask, positions = cache.step()
    output = base.model(
        input_ids=torch.tensor(last, device=mask.device)[:, None],
        attention_mask=mask,
        position_ids=positions,
        use_cache=True,
        logits_to_keep=1,
        **{cache_name(base.model): kept},
    )
    logits: torch.Tensor = output.logits[:, -1]
    return logits


def _in_batches(
    run: Callable[..., list[list[int]]],
    model: AdaptedModel,
    prompts: Sequence[Prompt],
    tokens: int,
    batch_size: int,
    process: Process,
) -> list[list[int]]:
    """Continue prompts of similar length together until all have ended."""
    found: list[list[int]] = [[]] * len(prompts)
    end = model.base.tokenizer.eos_token_id
    one = lambda some: run(model, prompts, some, tokens, process)  # noqa: E731
    for batch in length_batches(list(map(len, prompts)), batch_size):
        parts = in_parts(one, batch, model.base.device)
        for i, text in zip(batch, chain.from_iterable(parts), strict=True):
            found[i] = _before(end, text)
    return found


def _by_transformers(
    model: AdaptedModel,
    prompts: Sequence[Prompt],
    rows: Sequence[int],
    tokens: int,
    process: Process,
) -> list[list[int]]:
    """Continue some prompts with transformers' ``generate``."""
    base = model.base
    batch = _batch(base, [prompts[i] for i in rows])
    width = batch.input_ids.shape[1]

    def processed(ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        return process([(i, ids.shape[1] - width) for i in rows], logits)

    with model.editing(batch):
        output = base.model.generate(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            max_new_tokens=tokens,
            do_sample=False,
            logits_processor=[processed],
            pad_token_id=base.pad_token_id,
            eos_token_id=base.tokenizer.eos_token_id,
        )
    texts: list[list[int]] = output[:, width:].tolist()
    return texts


def _by_whole_passes(
    model: AdaptedModel,
    prompts: Sequence[Prompt],
    rows: Sequence[int],
    tokens: int,
    process: Process,
) -> list[list[int]]:
    """Continue some prompts by running them whole for each token."""
    base, texts = model.base, {i: [] for i in rows}  # type: Base, dict[int, list[int]]
    running = list(rows)
    for _ in range(tokens):
        pairs = [AnsweredPrompt(tuple(prompts[i]), (*texts[i], 0)) for i in running]
        logits = model.logits(collate(pairs, base.pad_token_id).to(base.device))[:, -1].float()
        places = [(i, len(texts[i])) for i in running]
        for i, token in zip(running, process(places, logits).argmax(dim=-1).tolist(), strict=True):
            texts[i].append(token)
        running = [i for i in running if texts[i][-1] != base.tokenizer.eos_token_id]
        if not running:
            break
    return [texts[i] for i in rows]


def _batch(base: Base, prompts: Sequence[Prompt]) -> Batch:
    """Prompts, each with a one-token answer that is not read."""
    asked = [AnsweredPrompt(tuple(prompt), (0,)) for prompt in prompts]
    return collate(asked, base.pad_token_id).to(base.device)


def _before(end: Any, text: list[int]) -> list[int]:
    """What stands before the first end token."""
    return text[: text.index(end)] if end in text else text
