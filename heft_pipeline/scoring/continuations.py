"""What a model writes after each of many prompts, token by token."""

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import chain, takewhile
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
#: What is largest at each row's next token, [B, V], from its place and float32 logits [B, V]. If
#: memory runs out, texts are begun again, and then a place is asked for again.
Process = Callable[[Sequence[Place], torch.Tensor], torch.Tensor]
#: New prompts are read once this share of the places is free, since all others wait meanwhile.
_FREE = 1 / 8


@dataclass(frozen=True)
class _Asked:
    """What is asked for: see :func:`continuations`."""

    prompts: Sequence[Prompt]
    tokens: int
    process: Process
    ends: Set[int]

    def write(
        self, rows: Sequence[int], logits: torch.Tensor, texts: Mapping[int, list[int]]
    ) -> None:
        """Write the next token of some texts, from logits [B, V]."""
        places = [(i, len(texts[i])) for i in rows]
        chosen = self.process(places, logits.float()).argmax(dim=-1).tolist()
        for i, token in zip(rows, chosen, strict=True):
            texts[i].append(token)

    def has_ended(self, text: Sequence[int]) -> bool:
        """Whether nothing more is written."""
        return text[-1] in self.ends or len(text) == self.tokens

    def before_end(self, text: Sequence[int]) -> list[int]:
        """What stands before the first token that ends a text."""
        return list(takewhile(lambda token: token not in self.ends, text))


@torch.no_grad()
def continuations(
    model: AdaptedModel,
    prompts: Sequence[Prompt],
    *,
    tokens: int,
    batch_size: int,
    process: Process,
    ends: Set[int] | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> list[list[int]]:
    """Continue prompts up to their end tokens, with all adapters' edits.

    A sequence that has ended leaves its place to the next prompt. Models that keep more than keys
    and values are left to transformers' ``generate``, and those that keep none run whole sequences.

    Args:
        model: The model.
        prompts: N prompts, as token ids.
        tokens: The most new tokens of each.
        batch_size: The most sequences that are run together; it changes only the speed. If memory
            runs out, fewer are.
        process: Says which token comes next: the one for which it is largest.
        ends: The tokens that end a text; None for those of :func:`end_tokens`.
        advance: Called with the number of prompts whose continuation has just ended.

    Returns:
        N lists of at most ``tokens`` token ids, without the token that ended them.
    """
    if not tokens:
        advance(len(prompts))
        return [[] for _ in prompts]
    asked = _Asked(prompts, tokens, process, end_tokens(model.base) if ends is None else ends)
    whole = model.base.no_padding or model.base.no_cache
    if whole or any(adapter.forward() for adapter in model.adapters):
        return _in_batches(_by_whole_passes, model, asked, batch_size, advance)
    if model.whole.no_cache:
        return _in_batches(_by_transformers, model, asked, batch_size, advance)
    # With the shortest first, texts have grown by the time that longer prompts join them, so that
    # less of the keys and values that each step reads is padding.
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    found: dict[int, list[int]] = {}
    while waiting := [i for i in order if i not in found]:
        places = min(batch_size, len(waiting))
        try:
            _side_by_side(model, asked, waiting, places, found, advance)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or places == 1:
                raise
            batch_size = places // 2
        else:
            break
        # Outside of the handler, because the exception keeps the failed pass's tensors alive.
        free(model.base.device)
    return [found[i] for i in range(len(prompts))]


def end_tokens(base: Base) -> frozenset[int]:
    """The tokens that end a text: the tokenizer's end token, and others that the model ends with.

    A chat model may end a turn with another token than a text, and names both in its configuration.
    Such a token counts if the tokenizer knows it as a special one, because a configuration that
    names none has its class's default, which can be any word. ``generation_config.json`` does not
    count: it is no part of a stage's fingerprint.
    """
    tokenizer = base.tokenizer
    known = getattr(tokenizer, "added_tokens_decoder", {})
    named: list[Any] = []
    for config in (base.model.config, base.model.config.get_text_config()):
        given = getattr(config, "eos_token_id", None)
        named += given if isinstance(given, list | tuple) else [given]
    own = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    return frozenset([*own, *(id for id in named if id in known and known[id].special)])


def _side_by_side(
    model: AdaptedModel,
    asked: _Asked,
    waiting: Sequence[int],
    places: int,
    found: dict[int, list[int]],
    advance: Callable[[int], None],
) -> None:
    """Continue the waiting prompts, up to ``places`` at a time; each is found once it has ended."""
    prompts, waiting = asked.prompts, list(waiting)
    cache = GrowingCache(places)
    rows: list[int] = []  # which prompt each of the cache's sequences continues
    texts: dict[int, list[int]] = {i: [] for i in waiting}
    while waiting or rows:
        room = places - len(rows)
        if waiting and room >= min(len(waiting), max(1, places * _FREE)):
            (new, *_) = length_batches([len(prompts[i]) for i in waiting[:room]], room)
            run, waiting = waiting[: len(new)], waiting[len(new) :]
            logits = _read(model, [prompts[i] for i in run], cache)
            rows += run
        else:
            run = rows
            logits = _step(model.base, [texts[i][-1] for i in rows], cache)
        asked.write(run, logits, texts)
        ended = [n for n, i in enumerate(rows) if asked.has_ended(texts[i])]
        if ended:
            found |= {rows[n]: asked.before_end(texts.pop(rows[n])) for n in ended}
            rows = [rows[n] for n in cache.drop(ended)]
            advance(len(ended))


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
    run: Callable[[AdaptedModel, _Asked, Sequence[int]], list[list[int]]],
    model: AdaptedModel,
    asked: _Asked,
    batch_size: int,
    advance: Callable[[int], None],
) -> list[list[int]]:
    """Continue prompts of similar length together until all have ended."""
    found: list[list[int]] = [[]] * len(asked.prompts)
    one = lambda some: run(model, asked, some)  # noqa: E731
    for batch in length_batches(list(map(len, asked.prompts)), batch_size):
        parts = in_parts(one, batch, model.base.device)
        for i, text in zip(batch, chain.from_iterable(parts), strict=True):
            found[i] = asked.before_end(text)
        advance(len(batch))
    return found


def _by_transformers(model: AdaptedModel, asked: _Asked, rows: Sequence[int]) -> list[list[int]]:
    """Continue some prompts with transformers' ``generate``."""
    base = model.base
    batch = _batch(base, [asked.prompts[i] for i in rows])
    width = batch.input_ids.shape[1]

    def processed(ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        return asked.process([(i, ids.shape[1] - width) for i in rows], logits)

    with model.editing(batch):
        output = base.model.generate(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            max_new_tokens=asked.tokens,
            do_sample=False,
            logits_processor=[processed],
            pad_token_id=base.pad_token_id,
            eos_token_id=sorted(asked.ends) or None,
        )
    texts: list[list[int]] = output[:, width:].tolist()
    return texts


def _by_whole_passes(model: AdaptedModel, asked: _Asked, rows: Sequence[int]) -> list[list[int]]:
    """Continue some prompts by running them whole for each token."""
    base, running = model.base, list(rows)
    texts: dict[int, list[int]] = {i: [] for i in rows}
    while running:
        pairs = [AnsweredPrompt(tuple(asked.prompts[i]), (*texts[i], 0)) for i in running]
        logits = model.logits(collate(pairs, base.pad_token_id).to(base.device))[:, -1]
        asked.write(running, logits, texts)
        running = [i for i in running if not asked.has_ended(texts[i])]
    return [texts[i] for i in rows]


def _batch(base: Base, prompts: Sequence[Prompt]) -> Batch:
    """Prompts, each with a one-token answer that is not read."""
    asked = [AnsweredPrompt(tuple(prompt), (0,)) for prompt in prompts]
    return collate(asked, base.pad_token_id).to(base.device)
