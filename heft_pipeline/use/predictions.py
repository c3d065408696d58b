"""The answers of a loaded model: to rows of its task, and the scores of any choices."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from heft_pipeline.data.answers import row_answer_tokens
from heft_pipeline.data.chat import Chat
from heft_pipeline.data.encode import Encoder, render
from heft_pipeline.data.prompts import Example, read_unanswered
from heft_pipeline.data.row_choices import letter
from heft_pipeline.data.settings import DataSettings
from heft_pipeline.errors import UserError
from heft_pipeline.plan.stage_spec import StageSpec
from heft_pipeline.scoring.extraction import extraction

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from heft_pipeline.adapters.adapted import AdaptedModel


@dataclass(frozen=True)
class Prediction:
    """A model's answer to a row.

    Attributes:
        id: The row's id: the value of ``data.id_column``, or its number.
        prediction: The answer: a label of ``data.choices``, the letter of a row's own choice, or
            what was written. None if several choices are exactly as likely, or if what was written
            names none of them.
        text: The answer's own text; of a choice, as it follows the prompt.
        log_probabilities: Of each choice by its label or letter; empty where answers are written.
    """

    id: str
    prediction: str | None
    text: str | None
    log_probabilities: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """The prediction as a JSON object of ``heft predict``."""
        found: dict[str, Any] = {"id": self.id, "prediction": self.prediction, "text": self.text}
        if self.log_probabilities:
            found["logprobs"] = dict(self.log_probabilities)
        return found


def prompt_text(stage: StageSpec, tokenizer: Any, row: Mapping[str, Any]) -> str:
    """See :meth:`~heft_pipeline.use.loaded.HeftModel.prompt`."""
    rendered = render(stage.data, "given", dict(row))
    if not stage.data.chat:
        return rendered.text + rendered.space
    pieces = Chat(tokenizer, stage.data.system).pieces("given", rendered.prompt)
    return "".join(text for text, _ in pieces)


def predict(
    stage: StageSpec,
    model: "AdaptedModel",
    rows: Sequence[Mapping[str, Any]],
    batch_size: int | None = None,
    first: int = 0,
) -> list[Prediction]:
    """See :meth:`~heft_pipeline.use.loaded.HeftModel.predict`.

    Args:
        stage: The stage, whose task and evaluation count.
        model: The model.
        rows: The rows.
        batch_size: Rows per forward pass; None for the evaluation's own.
        first: The number of the first row, where rows have no ids.
    """
    if not rows:
        return []
    evaluation = stage.evaluation
    size = batch_size or evaluation.batch_size
    named = [(_id(stage, row, first + n), dict(row)) for n, row in enumerate(rows)]
    examples = read_unanswered(stage.data, model.base.tokenizer, named, stage.scored_answers)
    if stage.data.written:
        return _written(stage, model, examples, size)
    from heft_pipeline.scoring.generate import Decoding
    from heft_pipeline.scoring.score import score

    decoding = None
    if evaluation.mode == "generate":
        decoding = _decoding(stage, Decoding)
    scores = score(
        model,
        examples,
        batch_size=size,
        normalize=evaluation.normalize,
        answer=stage.scored_answers,
        decoding=decoding,
    )
    found = []
    for number, example in enumerate(examples):
        labels = _labels(stage, example)
        chosen = int(scores.predictions[number])
        values = scores.log_probabilities[number, : len(labels)].tolist()
        text = scores.texts[number] if scores.texts else None
        if text is None and chosen >= 0:
            text = example.texts[chosen].strip()
        found.append(
            Prediction(
                example.id,
                labels[chosen] if chosen >= 0 else None,
                text,
                dict(zip(labels, values, strict=True)),
            )
        )
    return found


def _written(
    stage: StageSpec, model: "AdaptedModel", examples: Sequence[Example], batch_size: int
) -> list[Prediction]:
    from heft_pipeline.scoring.generate import Decoding, generated

    read = extraction(stage.data)
    decoding = _decoding(stage, Decoding, extraction=read)
    texts = generated(model, examples, batch_size, decoding)
    return [
        Prediction(example.id, read.of(text), text, {})
        for example, text in zip(examples, texts, strict=True)
    ]


def _decoding(stage: StageSpec, made: Any, **more: Any) -> Any:
    evaluation = stage.evaluation
    if evaluation.max_new_tokens is None:
        raise UserError(
            f"{stage.label}: nobody says how long its answers may be; export the adapter again "
            "from its store"
        )
    return made(
        evaluation.max_new_tokens,
        evaluation.match,
        stage.scored_answers,
        temperature=evaluation.temperature,
        top_p=evaluation.top_p,
        top_k=evaluation.top_k,
        seed=stage.seed,
        **more,
    )


def _labels(stage: StageSpec, example: Example) -> tuple[str, ...]:
    return stage.data.labels or tuple(letter(n) for n in range(len(example.choices)))


def _id(stage: StageSpec, row: Mapping[str, Any], number: int) -> str:
    column = stage.data.id_column
    return str(row[column]) if column and row.get(column) is not None else str(number)


def choice_scores(
    data: DataSettings,
    model: "AdaptedModel",
    prompts: Sequence[str],
    choices: Sequence[str] | Sequence[Sequence[str]],
    batch_size: int,
) -> "NDArray[np.float32]":
    """See :meth:`~heft_pipeline.use.loaded.HeftModel.score`."""
    import numpy as np

    from heft_pipeline.scoring.score import score

    own = _for_each(prompts, choices)
    if not prompts:
        return np.empty((0, 0), dtype=np.float32)
    encoder = Encoder(model.base.tokenizer, data.special_tokens)
    bare = [prompt if data.chat else prompt.rstrip() for prompt in prompts]
    spaces = [prompt[len(kept) :] for prompt, kept in zip(prompts, bare, strict=True)]
    pieces = [[(text, False)] for text in bare]
    ids = encoder.encode(pieces)
    if empty := [text for text, found in zip(prompts, ids, strict=True) if not found]:
        raise UserError(f"the prompt {empty[0]!r} has no tokens")
    tokens = row_answer_tokens(
        encoder,
        [str(number) for number in range(len(prompts))],
        list(zip(pieces, ids, strict=True)),
        [
            [[(space + choice, False)] for choice in texts]
            for space, texts in zip(spaces, own, strict=True)
        ],
    )
    examples = [
        Example(str(number), prompt, 0, choices=found, texts=tuple(texts))
        for number, (prompt, found, texts) in enumerate(zip(ids, tokens, own, strict=True))
    ]
    return score(model, examples, batch_size=batch_size).log_probabilities.numpy()


def _for_each(
    prompts: Sequence[str], choices: Sequence[str] | Sequence[Sequence[str]]
) -> list[list[str]]:
    """Each prompt's choices."""
    if isinstance(choices, str) or not choices:
        raise UserError(f"choices={choices!r} must be a list of texts, or a list of lists of texts")
    if all(isinstance(choice, str) for choice in choices):
        return [[str(choice) for choice in choices]] * len(prompts)
    own = [[str(text) for text in texts] for texts in choices if not isinstance(texts, str)]
    if len(own) != len(prompts) or not all(own):
        raise UserError(
            f"choices has {len(own)} lists for {len(prompts)} prompts; give one for each, with a "
            "text or more in it, or one list for all"
        )
    return own
