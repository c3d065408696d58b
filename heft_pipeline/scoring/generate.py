"""Answers that a model writes: decoding, and which choice its text names."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from heft_pipeline.adapters.adapted import AdaptedModel
from heft_pipeline.data.answer_text import PLAIN, AnswerText
from heft_pipeline.data.prompts import Example, Task
from heft_pipeline.data.settings import DataSettings
from heft_pipeline.scoring.continuations import Place, Process, continuations
from heft_pipeline.scoring.extraction import Extraction, extraction
from heft_pipeline.scoring.settings import EvaluationSettings


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


def generated(
    model: AdaptedModel,
    examples: Sequence[Example],
    batch_size: int,
    decoding: Decoding,
    advance: Callable[[int], None] = lambda _: None,
) -> list[str]:
    """What a model writes after each prompt, up to its end.

    Args:
        model: The model.
        examples: N examples.
        batch_size: The most texts that are written together; it changes only the speed.
        decoding: How text is generated.
        advance: Called with the number of texts that have just ended.

    Returns:
        N texts without special tokens.
    """
    own = model.base.tokenizer.eos_token_id
    texts = continuations(
        model,
        [example.prompt for example in examples],
        # A choice is looked for in all that stands before the tokenizer's end token.
        ends=None if decoding.extraction else frozenset([own] if own is not None else []),
        advance=advance,
        tokens=decoding.tokens,
        batch_size=batch_size,
        process=_process(examples, decoding),
    )
    return [model.base.tokenizer.decode(ids, skip_special_tokens=True) for ids in texts]


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


def _process(examples: Sequence[Example], decoding: Decoding) -> Process:
    """Turns logits into what is largest at the next token, drawn or likeliest.

    The largest of log-probabilities with Gumbel noise is a sample from the distribution (Gumbel
    1954). Each example has a generator of its own, so that batches do not change what is drawn.
    """
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    if not decoding.temperature:
        return lambda _, logits: logits
    warpers: list[Any] = [TemperatureLogitsWarper(decoding.temperature)]
    warpers += [TopKLogitsWarper(decoding.top_k)] if decoding.top_k else []
    warpers += [TopPLogitsWarper(decoding.top_p)] if decoding.top_p < 1 else []
    generators: dict[int, torch.Generator] = {}

    def draw(places: Sequence[Place], logits: torch.Tensor) -> torch.Tensor:
        for warp in warpers:
            logits = warp(None, logits)
        for i, written in places:
            if not written:
                generators[i] = _generator(decoding.seed, examples[i].id)
        noise = [
            torch.empty(logits.shape[1]).exponential_(generator=generators[i]) for i, _ in places
        ]
        return logits - torch.stack(noise).log().to(logits.device)

    return draw


def _generator(seed: int, id: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed} {id}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
