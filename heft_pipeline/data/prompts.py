"""From rows to token ids: the prompt, the answer choices, and what is cut if it is too long."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from heft_pipeline.data.answer_text import PLAIN, AnswerText
from heft_pipeline.data.answers import answer_tokens, refuse_beginnings
from heft_pipeline.data.chat import Chat
from heft_pipeline.data.dev_split import Row
from heft_pipeline.data.encode import Encoder, Piece, pieces
from heft_pipeline.data.rows import read_splits
from heft_pipeline.data.settings import DataSettings
from heft_pipeline.errors import UserError


@dataclass(frozen=True)
class Example:
    """One row, ready for a model.

    Attributes:
        id: The row's id, unique in its split.
        prompt: Token ids of the prompt, including special tokens.
        gold: Index of the correct answer among the choices.
    """

    id: str
    prompt: tuple[int, ...]
    gold: int


@dataclass(frozen=True)
class Task:
    """A tokenised task.

    Attributes:
        train: The examples that stages are trained on.
        dev: The examples that the best epoch is chosen on.
        eval: The examples that are reported, read once per stage.
        choices: Token ids of each answer choice as it is scored after a prompt.
        answers: Token ids of each answer choice as it is trained on after a prompt.
        labels: The choices' labels, in the same order.
        texts: The choices' texts, in the same order.
        truncated: How many prompts were cut to ``data.max_prompt_tokens``.
        overlap: Pairs of ids: a reported row, and a training or dev row with the same prompt.
        repeated: How many training rows have the prompt of an earlier one.
        doubled: The text of the leading special tokens if prompts have them twice; else empty.
    """

    train: tuple[Example, ...]
    dev: tuple[Example, ...]
    eval: tuple[Example, ...]
    choices: tuple[tuple[int, ...], ...]
    answers: tuple[tuple[int, ...], ...]
    labels: tuple[str, ...]
    texts: tuple[str, ...]
    truncated: int
    overlap: tuple[tuple[str, str], ...]
    repeated: int
    doubled: str = ""

    @property
    def prompt_lengths(self) -> list[int]:
        """The length in tokens of each prompt, of all splits."""
        return [len(e.prompt) for e in (*self.train, *self.dev, *self.eval)]

    @property
    def notes(self) -> tuple[str, ...]:
        """What qualifies results on this task, in sentences for people."""
        notes = []
        if len({example.gold for example in self.dev}) == 1:
            notes.append(
                f"all {len(self.dev)} dev rows have the answer {self.labels[self.dev[0].gold]}, so "
                "they say little about which epoch is best; hold out more rows (data.dev_size) or "
                "keep the last epoch (training.selection=last)"
            )
        if self.doubled:
            notes.append(
                f"prompts begin with {self.doubled} twice: the prompt's template has it, and the "
                "tokenizer adds it (data.special_tokens=add)"
            )
        return tuple(notes)

    def answered(self, example: Example) -> tuple[int, ...]:
        """The token ids of an example's right answer as it is trained on."""
        return self.answers[example.gold]


def load_task(
    data: DataSettings,
    tokenizer: Any,
    seed: int,
    trained: AnswerText = PLAIN,
    scored: AnswerText = PLAIN,
) -> Task:
    """Read, render and tokenise a task.

    Args:
        data: The task.
        tokenizer: A transformers tokenizer.
        seed: Decides which training rows become dev rows.
        trained: How the answers are written that are trained on.
        scored: How the answers are written that are scored.

    Raises:
        UserError: A split, column or label is missing, all trained or reported rows have the same
            answer, an answer cannot be tokenised, or a prompt is too long and cannot be cut enough.
    """
    truncated, encoder = 0, Encoder(tokenizer, data.special_tokens)
    chat = Chat(tokenizer, data.system) if data.chat else None
    splits = {}
    rows_of = read_splits(data, seed)
    seen: dict[str, str] = {}  # the text of a prompt -> the row that first had it
    overlap, repeated = [], 0
    for name, rows in rows_of.items():
        golds = _golds(data, name, rows) if rows else []
        parts = [_pieces(data, chat, id, row) for id, row in rows]
        for (id, _), part in zip(rows, parts, strict=True):
            text = "".join(one for one, _ in part)
            if name == "eval":
                overlap += [(id, seen[text])] if text in seen else []
            else:
                repeated += name == "train" and text in seen
                seen.setdefault(text, id)
        prompts, cut = _tokenize(data, encoder, chat, rows, parts)
        truncated += cut
        splits[name] = tuple(
            Example(id, prompt, gold)
            for (id, _), prompt, gold in zip(rows, prompts, golds, strict=True)
        )
    prompt = _pieces(data, chat, *rows_of["train"][0])
    choices = answer_tokens(data, encoder, prompt, scored)
    refuse_beginnings(data, choices)
    return Task(
        **splits,
        choices=choices,
        answers=answer_tokens(data, encoder, prompt, trained),
        labels=data.labels,
        texts=tuple(data.choices.values()),
        truncated=truncated,
        overlap=tuple(overlap),
        repeated=repeated,
        doubled=encoder.doubled,
    )


def _pieces(data: DataSettings, chat: Chat | None, id: str, row: Row) -> list[Piece]:
    """The pieces of a row's prompt, inside the chat template if there is one."""
    prompt = pieces(data, id, row)
    return chat.pieces(id, prompt) if chat else prompt


def _golds(data: DataSettings, split: str, rows: Sequence[tuple[str, Row]]) -> list[int]:
    column, first = data.answer_column, rows[0][1]
    names = {"train": data.train_split, "dev": data.dev_split, "eval": data.eval_split}
    where = f"data.{split}_split={names[split]}" if names[split] else "the held-out dev rows"
    if column not in first:
        raise UserError(
            f"data.answer_column={column} is not a column of {where} of {data.name}; "
            f"it has {', '.join(map(str, first))}"
        )
    index = {label: i for i, label in enumerate(data.labels)}
    golds = []
    for id, row in rows:
        value = row.get(column)
        label = str(value).lower() if isinstance(value, bool) else str(value)
        if label not in index:
            values = sorted({repr(row.get(column)) for _, row in rows})
            shown = ", ".join(values[:8]) + (", ..." if values[8:] else "")
            raise UserError(
                f"row {id} of {data.name} has {column}={value!r}, which is not among "
                f"data.choices ({', '.join(data.labels)}); the column has {shown}, and a label "
                "must be written as its value is (in YAML, yes and no need quotes)"
            )
        golds.append(index[label])
    if len(set(golds)) == 1 and split != "dev":
        raise UserError(
            f"{where}: all {len(rows)} rows of {data.name} have the same answer "
            f"({data.labels[golds[0]]}), so nothing can be learnt or measured on them; give rows "
            "with more than one answer"
        )
    return golds


def _tokenize(
    data: DataSettings,
    encoder: Encoder,
    chat: Chat | None,
    rows: Sequence[tuple[str, Row]],
    parts: Sequence[Sequence[Piece]],
) -> tuple[list[tuple[int, ...]], int]:
    prompts = encoder.encode(parts)
    long = [i for i, ids in enumerate(prompts) if len(ids) > data.max_prompt_tokens]
    for i in long:
        prompts[i] = _cut(data, encoder, chat, *rows[i], len(prompts[i]))
    for (id, _), ids in zip(rows, prompts, strict=True):
        if not ids:
            raise UserError(
                f"row {id} of {data.name} makes an empty prompt; mend the row or leave it out, or "
                "give data.prompt words of its own"
            )
    return prompts, len(long)


def _cut(
    data: DataSettings, encoder: Encoder, chat: Chat | None, id: str, row: Row, tokens: int
) -> tuple[int, ...]:
    """Tokenise a row with as many of the first tokens of its truncatable column as fit."""
    column = data.truncate_column
    limit = f"data.max_prompt_tokens={data.max_prompt_tokens}"
    if column is None:
        raise UserError(
            f"a prompt of {data.name} has {tokens} tokens, more than {limit}; raise it, or name "
            "the column that may be cut, e.g. data.truncate_column=passage"
        )
    text = str(row[column])
    ends = encoder.token_ends(text)
    fitting, low, high = None, 0, len(ends) - 1
    while low <= high:  # find the most tokens with which the prompt fits
        middle = (low + high) // 2
        cut = {**row, column: text[: ends[middle]]}
        ids = encoder.encode([_pieces(data, chat, id, cut)])[0]
        if len(ids) <= data.max_prompt_tokens:
            fitting, low = ids, middle + 1
        else:
            high = middle - 1
    if fitting is None:
        raise UserError(
            f"a prompt of {data.name} is longer than {limit} even without its {column}; raise it"
        )
    return fitting
