"""Answers that a model writes: decoding, and which choice its text names."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch

from heft_pipeline.adapters.adapted import AdaptedModel
from heft_pipeline.data.answer_text import AnswerText
from heft_pipeline.data.batches import AnsweredPrompt, collate
from heft_pipeline.data.prompts import Example, Task
from heft_pipeline.devices.memory import in_parts
from heft_pipeline.scoring.settings import EvaluationSettings

Prompt = tuple[int, ...]
#: [B, V] logits to [B, V], for the next token of each row.
Process = Callable[[Any, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Decoding:
    """How text is generated and read.

    Attributes:
        texts: What is looked for, for each choice; where a text contains several, the first counts.
        tokens: The most new tokens.
        match: ``begins`` or ``contains``: where in the text a choice is looked for.
        temperature: 0 for the likeliest token each time, else what logits are divided by.
        top_p: Tokens are drawn from the likeliest ones that together have this probability.
        top_k: Tokens are drawn from so many likeliest ones; None for all.
        seed: Decides what is drawn.
    """

    texts: tuple[str, ...]
    tokens: int
    match: str = "begins"
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int | None = None
    seed: int = 0


def decoding(task: Task, evaluation: EvaluationSettings, seed: int) -> Decoding | None:
    """How a task's answers are generated; None where they are only scored."""
    if evaluation.mode != "generate":
        return None
    written = AnswerText(evaluation.answer)
    begins = evaluation.match == "begins"
    return Decoding(
        tuple(written.of(text) for text in task.texts) if begins else task.texts,
        evaluation.max_new_tokens or max(map(len, (*task.choices, *task.answers))),
        evaluation.match,
        evaluation.temperature,
        evaluation.top_p,
        evaluation.top_k,
        seed,
    )


@torch.no_grad()
def generated(
    model: AdaptedModel,
    examples: Sequence[Example],
    batches: Sequence[Sequence[int]],
    decoding: Decoding,
) -> torch.Tensor:
    """Decode text after each prompt, and look up which choice it names.

    Args:
        model: The model.
        examples: N examples.
        batches: Their indices in batches, which change only the speed.
        decoding: How text is generated and read.

    Returns:
        [N] int64 indices of choices; -1 if the text names none.
    """
    predictions = torch.full((len(examples),), -1)
    end = model.base.tokenizer.eos_token_id
    for chosen in batches:
        run = lambda some: _continued(model, some, decoding)  # noqa: E731
        parts = in_parts(run, [examples[i] for i in chosen], model.base.device)
        for i, ids in zip(chosen, chain.from_iterable(parts), strict=True):
            own = ids[: ids.index(end)] if end in ids else ids
            text = model.base.tokenizer.decode(own, skip_special_tokens=True)
            predictions[i] = named(text, decoding.texts, decoding.match)
    return predictions


def named(text: str, choices: Sequence[str], match: str) -> int:
    """Which choice a text names.

    Args:
        text: What a model wrote.
        choices: The choices' texts; white space around them does not count.
        match: ``begins``: the longest choice that the text begins with, and not as the beginning of
            a longer word. ``contains``: the first choice that occurs anywhere in the text, as the
            HEFT paper's script reads it.

    Returns:
        The choice's index; -1 for none.
    """
    texts = [choice.strip() for choice in choices]
    if match == "contains":
        return next((i for i, choice in enumerate(texts) if choice in text), -1)
    said = text.strip()
    found = [
        i
        for i, choice in enumerate(texts)
        if said.startswith(choice)
        and not (_in_a_word(choice[-1:]) and _in_a_word(said[len(choice) :][:1]))
    ]
    return max(found, key=lambda i: len(texts[i]), default=-1)


def _in_a_word(character: str) -> bool:
    """Whether it is a digit, or a letter of a script that puts blanks between words."""
    return character.isdigit() or character.lower() != character.upper()


def _continued(
    model: AdaptedModel, examples: Sequence[Example], decoding: Decoding
) -> list[list[int]]:
    """The continuation of each prompt, token by token."""
    base, prompts = model.base, [example.prompt for example in examples]
    process = _process(examples, decoding)
    if base.no_padding or base.no_cache:
        # transformers would pad, count positions its own way, or continue from a cache.
        return _by_whole_passes(model, prompts, decoding.tokens, process)
    batch = collate([AnsweredPrompt(p, (0,)) for p in prompts], base.pad_token_id).to(base.device)
    with model.editing(batch):
        output = base.model.generate(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            max_new_tokens=decoding.tokens,
            do_sample=False,
            logits_processor=[process],
            pad_token_id=base.pad_token_id,
            eos_token_id=base.tokenizer.eos_token_id,
        )
    texts: list[list[int]] = output[:, batch.input_ids.shape[1] :].tolist()
    return texts


def _by_whole_passes(
    model: AdaptedModel, prompts: Sequence[Prompt], tokens: int, process: Process
) -> list[list[int]]:
    base = model.base
    answers: list[Prompt] = [(0,)] * len(prompts)
    for _ in range(tokens):
        pairs = zip(prompts, answers, strict=True)
        batch = collate([AnsweredPrompt(p, a) for p, a in pairs], base.pad_token_id)
        logits = model.logits(batch.to(base.device))[:, -1].float()
        chosen = process(None, logits).argmax(dim=-1).tolist()
        answers = [(*a[:-1], one, 0) for a, one in zip(answers, chosen, strict=True)]
    return [list(answer[:-1]) for answer in answers]


def _process(examples: Sequence[Example], decoding: Decoding) -> Process:
    """Turns logits into what is largest at the next token, drawn or likeliest.

    The largest of log-probabilities with Gumbel noise is a sample from the distribution (Gumbel
    1954). Each row has a generator of its own, so that batches do not change what is drawn.
    """
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    if not decoding.temperature:
        return lambda _, logits: logits
    warpers: list[Process] = [TemperatureLogitsWarper(decoding.temperature)]
    warpers += [TopKLogitsWarper(decoding.top_k)] if decoding.top_k else []
    warpers += [TopPLogitsWarper(decoding.top_p)] if decoding.top_p < 1 else []
    generators = [_generator(decoding.seed, example.id) for example in examples]

    def draw(ids: Any, logits: torch.Tensor) -> torch.Tensor:
        for warp in warpers:
            logits = warp(ids, logits)
        noise = [torch.empty(logits.shape[1]).exponential_(generator=g) for g in generators]
        return logits - torch.stack(noise).log().to(logits.device)

    return draw


def _generator(seed: int, id: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed} {id}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
