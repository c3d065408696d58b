"""Answers that a model writes: decoding, and which choice its text names."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch

from heft_pipeline.adapters.adapted import AdaptedModel
from heft_pipeline.data.answer_text import PLAIN, AnswerText
from heft_pipeline.data.batches import AnsweredPrompt, collate, length_batches
from heft_pipeline.data.prompts import Example, Task
from heft_pipeline.data.settings import DataSettings
from heft_pipeline.devices.memory import in_parts
from heft_pipeline.scoring.extraction import Extraction, extraction
from heft_pipeline.scoring.settings import EvaluationSettings

Prompt = tuple[int, ...]
#: [B, V] logits to [B, V], for the next token of each row.
Process = Callable[[Any, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Decoding:
    """How text is generated and read.

    Attributes:
        tokens: The most new tokens.
        match: ``begins`` or ``contains``: where in the text a choice is looked for; where it
            contains several, the first counts.
        answer: How a choice is written that a text begins with.
        extraction: How a written answer is read and compared; None where choices are looked for.
        temperature: 0 for the likeliest token each time, else what logits are divided by.
        top_p: Tokens are drawn from the likeliest ones that together have this probability.
        top_k: Tokens are drawn from so many likeliest ones; None for all.
        seed: Decides what is drawn.
    """

    tokens: int
    match: str = "begins"
    answer: AnswerText = PLAIN
    extraction: Extraction | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int | None = None
    seed: int = 0

    def read(self, text: str, example: Example) -> "Read":
        """Read a text that was generated for an example."""
        if self.extraction is not None:
            found = self.extraction.of(text)
            right = self.extraction.accepts(found, example.texts)
            return Read(0 if right else -1, found is not None)
        begins = self.match == "begins"
        texts = [self.answer.of(one) for one in example.texts] if begins else example.texts
        choice = named(text, texts, self.match)
        return Read(choice, choice >= 0)


@dataclass(frozen=True)
class Read:
    """What a generated text says.

    Attributes:
        choice: The index of the choice that it names, -1 for none; of a written answer 0 if it is
            accepted, else -1.
        found: Whether it names a choice, or holds an answer.
    """

    choice: int
    found: bool


def decoding(
    task: Task, data: DataSettings, evaluation: EvaluationSettings, seed: int
) -> Decoding | None:
    """How a task's answers are generated; None where they are only scored.

    Args:
        task: The task, tokenised.
        data: Its settings.
        evaluation: How answers are evaluated, with the mode resolved.
        seed: The run's seed.
    """
    if evaluation.mode != "generate":
        return None
    return Decoding(
        evaluation.max_new_tokens or longest_answer(task),
        evaluation.match,
        AnswerText(evaluation.answer),
        extraction(data) if data.written else None,
        evaluation.temperature,
        evaluation.top_p,
        evaluation.top_k,
        seed,
    )


def longest_answer(task: Task) -> int:
    """The most tokens that an answer may take by default.

    It is the longest that is trained on; where answers are chosen, also the longest choice of any
    example. A reported row's written answer is not looked at for that.
    """
    chosen = () if not task.labels else (c for e in task.examples for c in e.choices)
    return max(task.longest_answer, *map(len, chosen), 0)


@torch.no_grad()
def generated(
    model: AdaptedModel, examples: Sequence[Example], batch_size: int, decoding: Decoding
) -> list[str]:
    """Decode text after each prompt, up to its end.

    Args:
        model: The model.
        examples: N examples.
        batch_size: Prompts per forward pass; it changes only the speed.
        decoding: How text is generated.

    Returns:
        N texts without special tokens.
    """
    texts = [""] * len(examples)
    end = model.base.tokenizer.eos_token_id
    for chosen in length_batches([len(e.prompt) for e in examples], batch_size):
        run = lambda some: _continued(model, some, decoding)  # noqa: E731
        parts = in_parts(run, [examples[i] for i in chosen], model.base.device)
        for i, ids in zip(chosen, chain.from_iterable(parts), strict=True):
            own = ids[: ids.index(end)] if end in ids else ids
            texts[i] = model.base.tokenizer.decode(own, skip_special_tokens=True)
    return texts


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
