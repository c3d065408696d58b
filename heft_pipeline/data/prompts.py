"""From rows to token ids: the prompt, the answer choices, and what is cut if it is too long."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from heft_pipeline.data.answer_text import PLAIN, AnswerText
from heft_pipeline.data.answers import (
    Ids,
    answer_tokens,
    beginning,
    refuse_beginnings,
    row_answer_tokens,
)
from heft_pipeline.data.asked import Asked, read_answers, read_questions
from heft_pipeline.data.chat import Chat
from heft_pipeline.data.dev_split import Row
from heft_pipeline.data.encode import Encoder, render
from heft_pipeline.data.row_choices import Piece, letter
from heft_pipeline.data.rows import read_splits
from heft_pipeline.data.settings import DataSettings
from heft_pipeline.errors import UserError

#: A row's answer as it is trained on, its choices as they are scored, and how many first tokens of
#: each are not.
Tokens = tuple[Ids, tuple[Ids, ...], tuple[int, ...]]


@dataclass(frozen=True)
class Example:
    """One row, ready for a model.

    Attributes:
        id: The row's id, unique in its split.
        prompt: Token ids of the prompt, including special tokens.
        gold: Index of the correct answer among the choices.
        answer: Token ids of the right answer as it is trained on after the prompt.
        choices: Token ids of each answer choice as it is scored after the prompt; of a written
            answer, the one that is accepted first.
        texts: The choices' texts; of a written answer, all that are accepted.
        given: How many of each choice's first tokens are read but not scored; empty for none.
    """

    id: str
    prompt: Ids
    gold: int
    answer: Ids = ()
    choices: tuple[Ids, ...] = ()
    texts: tuple[str, ...] = ()
    given: tuple[int, ...] = ()

    @property
    def unscored(self) -> tuple[int, ...]:
        """How many of each choice's first tokens are read but not scored, for each choice."""
        return self.given or (0,) * len(self.choices)


@dataclass(frozen=True)
class Task:
    """A tokenised task.

    Attributes:
        train: The examples that stages are trained on.
        dev: The examples that the best epoch is chosen on.
        eval: The examples that are reported, read once per stage.
        labels: What the choices are called, in their order: as ``data.choices`` does, or by their
            letters where rows have their own. Empty where answers are written.
        shared: Whether all rows have the same choices.
        truncated: How many prompts were cut to ``data.max_prompt_tokens``.
        overlap: Pairs of ids: a reported row, and a training or dev row that asks the same.
        repeated: How many training rows ask what an earlier one does.
        doubled: The text of the leading special tokens if prompts have them twice; else empty.
        begun: How many reported rows have a choice that another one begins with.
    """

    train: tuple[Example, ...]
    dev: tuple[Example, ...]
    eval: tuple[Example, ...]
    labels: tuple[str, ...]
    shared: bool
    truncated: int
    overlap: tuple[tuple[str, str], ...]
    repeated: int
    doubled: str = ""
    begun: int = 0

    @property
    def examples(self) -> tuple[Example, ...]:
        """The examples of all splits."""
        return (*self.train, *self.dev, *self.eval)

    @property
    def prompt_lengths(self) -> list[int]:
        """The length in tokens of each prompt, of all splits."""
        return [len(e.prompt) for e in self.examples]

    @property
    def longest_answer(self) -> int:
        """The most tokens of an answer that is trained on."""
        return max(len(e.answer) for e in self.train)

    @property
    def notes(self) -> tuple[str, ...]:
        """What qualifies results on this task, in sentences for people."""
        notes = []
        if self.shared and len({example.gold for example in self.dev}) == 1:
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
        if self.begun:
            notes.append(
                f"{self.begun} of {len(self.eval)} reported rows have a choice that another one "
                "begins with, or the same one twice; without evaluation.normalize, the shorter one "
                "is always at least as likely"
            )
        return tuple(notes)


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
    encoder = Encoder(tokenizer, data.special_tokens)
    chat = Chat(tokenizer, data.system) if data.chat else None
    asked = {name: read_answers(data, name, rows) for name, rows in read_splits(data, seed).items()}
    pieces = {
        name: [_pieces(data, chat, one.id, one.row) for one in rows] for name, rows in asked.items()
    }
    overlap, repeated = _repeats(data, asked, pieces)
    tokenized = {
        name: _tokenize(data, encoder, chat, rows, pieces[name]) for name, rows in asked.items()
    }
    shared = None
    if data.choices:
        shared = _shared_tokens(data, encoder, pieces["train"][0], trained, scored)
    splits = {
        name: tuple(
            Example(one.id, prompt, one.gold, answer, choices, one.texts, given)
            for one, (_, prompt), (answer, choices, given) in zip(
                rows,
                tokenized[name][0],
                [shared[one.gold] for one in rows]
                if shared
                else _own_tokens(data, encoder, rows, tokenized[name][0], trained, scored),
                strict=True,
            )
        )
        for name, rows in asked.items()
    }
    return Task(
        **splits,
        labels=_labels(data, [e for examples in splits.values() for e in examples]),
        shared=bool(data.choices),
        truncated=sum(cut for _, cut in tokenized.values()),
        overlap=tuple(overlap),
        repeated=repeated,
        doubled=encoder.doubled,
        begun=0 if data.choices or data.written else sum(map(_has_beginning, splits["eval"])),
    )


def read_unanswered(
    data: DataSettings,
    tokenizer: Any,
    rows: Sequence[tuple[str, Row]],
    scored: AnswerText = PLAIN,
) -> list[Example]:
    """Render and tokenise rows whose right answers nobody knows.

    Args:
        data: The task.
        tokenizer: A transformers tokenizer.
        rows: Pairs of id and row; one or more.
        scored: How the answers are written that are scored.

    Returns:
        An example for each row, whose right answer means nothing; without choices where answers
        are written.

    Raises:
        UserError: A column is missing, or a prompt is too long and cannot be cut enough.
    """
    encoder = Encoder(tokenizer, data.special_tokens)
    chat = Chat(tokenizer, data.system) if data.chat else None
    asked = read_questions(data, rows)
    pieces = [_pieces(data, chat, one.id, one.row) for one in asked]
    tokenized, _ = _tokenize(data, encoder, chat, asked, pieces)
    found: list[tuple[tuple[Ids, ...], tuple[int, ...]]] = [((), ())] * len(asked)
    if data.choices:
        found = [(answer_tokens(data, encoder, pieces[0], scored), ())] * len(asked)
    elif not data.written:
        own = _own_tokens(data, encoder, asked, tokenized, scored, scored)
        found = [(choices, given) for _, choices, given in own]
    return [
        Example(one.id, prompt, 0, choices=choices, texts=one.texts, given=given)
        for one, (_, prompt), (choices, given) in zip(asked, tokenized, found, strict=True)
    ]


def _repeats(
    data: DataSettings,
    asked: Mapping[str, Sequence[Asked]],
    pieces: Mapping[str, Sequence[Sequence[Piece]]],
) -> tuple[list[tuple[str, str]], int]:
    """Reported rows that ask what a training or dev row does, and repeated training rows.

    Rows ask the same if they have the same prompt, and the same choices in any order.
    """
    seen: dict[tuple[str, ...], str] = {}  # what is asked -> the row that first asked it
    overlap, repeated = [], 0
    for name, rows in asked.items():
        for one, prompt in zip(rows, pieces[name], strict=True):
            own = sorted(one.texts) if data.own_choices else []
            text = ("".join(part for part, _ in prompt), *own)
            if name == "eval":
                overlap += [(one.id, seen[text])] if text in seen else []
            else:
                repeated += name == "train" and text in seen
                seen.setdefault(text, one.id)
    return overlap, repeated


def _pieces(data: DataSettings, chat: Chat | None, id: str, row: Row) -> list[Piece]:
    """The pieces of a row's prompt, inside the chat template if there is one."""
    prompt = render(data, id, row).prompt
    return chat.pieces(id, prompt) if chat else prompt


def _shared_tokens(
    data: DataSettings,
    encoder: Encoder,
    prompt: Sequence[Piece],
    trained: AnswerText,
    scored: AnswerText,
) -> list[Tokens]:
    """The answers of the rows for which each of the choices that all share is right."""
    choices = answer_tokens(data, encoder, prompt, scored)
    refuse_beginnings(data, choices)
    return [(answer, choices, ()) for answer in answer_tokens(data, encoder, prompt, trained)]


def _own_tokens(
    data: DataSettings,
    encoder: Encoder,
    rows: Sequence[Asked],
    prompts: Sequence[tuple[Sequence[Piece], Ids]],
    trained: AnswerText,
    scored: AnswerText,
) -> list[Tokens]:
    """Each row's answers, where they are its own."""
    names = [f"{one.id} of {data.name}" for one in rows]
    choices = row_answer_tokens(
        encoder, names, prompts, [one.answers(data, scored) for one in rows]
    )
    written = choices  # most often, and then it need not be done twice
    if trained != scored:
        pieces = [one.answers(data, trained) for one in rows]
        written = row_answer_tokens(encoder, names, prompts, pieces, end_token=trained.end_token)
    answers = [own[one.gold] for one, own in zip(rows, written, strict=True)]
    given: list[tuple[int, ...]] = [()] * len(rows)
    if data.score == "rest":
        parts = row_answer_tokens(
            encoder, names, prompts, [one.given(data, scored) for one in rows]
        )
        given = [tuple(map(_alike, *both)) for both in zip(choices, parts, strict=True)]
    return list(zip(answers, choices, given, strict=True))


def _alike(one: Ids, other: Ids) -> int:
    """How many first tokens two texts have in common, but never all of the first text's."""
    count = sum(
        1 for _ in takewhile(lambda both: both[0] == both[1], zip(one, other, strict=False))
    )
    return min(count, len(one) - 1)


def _labels(data: DataSettings, examples: Sequence[Example]) -> tuple[str, ...]:
    if data.written:
        return ()
    most = max(len(example.choices) for example in examples)
    return data.labels or tuple(letter(index) for index in range(most))


def _has_beginning(example: Example) -> bool:
    """Whether one of an example's choices begins with another."""
    return beginning(example.choices) is not None


def _tokenize(
    data: DataSettings,
    encoder: Encoder,
    chat: Chat | None,
    rows: Sequence[Asked],
    whole: Sequence[list[Piece]],
) -> tuple[list[tuple[list[Piece], Ids]], int]:
    """Each row's prompt as pieces and as token ids, and how many were cut."""
    pieces, prompts = list(whole), encoder.encode(whole)
    long = [i for i, ids in enumerate(prompts) if len(ids) > data.max_prompt_tokens]
    for i in long:
        pieces[i], prompts[i] = _cut(data, encoder, chat, rows[i].id, rows[i].row, len(prompts[i]))
    for one, ids in zip(rows, prompts, strict=True):
        if not ids:
            raise UserError(
                f"row {one.id} of {data.name} makes an empty prompt; mend the row or leave it out, "
                "or give data.prompt words of its own"
            )
    return list(zip(pieces, prompts, strict=True)), len(long)


def _cut(
    data: DataSettings, encoder: Encoder, chat: Chat | None, id: str, row: Row, tokens: int
) -> tuple[list[Piece], Ids]:
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
        pieces = _pieces(data, chat, id, cut)
        (ids,) = encoder.encode([pieces])
        if len(ids) <= data.max_prompt_tokens:
            fitting, low = (pieces, ids), middle + 1
        else:
            high = middle - 1
    if fitting is None:
        raise UserError(
            f"a prompt of {data.name} is longer than {limit} even without its {column}; raise it"
        )
    return fitting
