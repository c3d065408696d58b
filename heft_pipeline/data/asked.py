"""What rows ask: their answers, and which of them is right."""

from collections.abc import Sequence
from dataclasses import dataclass

from heft_pipeline.data.answer_text import CHOICE, AnswerText
from heft_pipeline.data.dev_split import Row
from heft_pipeline.data.encode import render
from heft_pipeline.data.row_choices import (
    Piece,
    filled,
    references,
    right_choice,
    row_choices,
)
from heft_pipeline.data.settings import DataSettings
from heft_pipeline.errors import UserError


@dataclass(frozen=True)
class Asked:
    """A row with its answers.

    Attributes:
        id: The row's id.
        row: The row.
        gold: The index of the right answer.
        texts: The answers' texts as they follow the prompt; of a written answer, all that are
            accepted.
    """

    id: str
    row: Row
    gold: int
    texts: tuple[str, ...]

    def answers(self, data: DataSettings, answer: AnswerText) -> list[list[Piece]]:
        """The pieces of the answers that are the row's own, with the white space before them."""
        before, after = answer.template.split(CHOICE)
        start = [(self._space(data), False), (before, False)]
        return [[*start, *own, (after, False)] for own in _own(data, self.id, self.row)]

    def given(self, data: DataSettings, answer: AnswerText) -> list[list[Piece]]:
        """The beginnings of these answers that are not scored."""
        before, _ = answer.template.split(CHOICE)
        start = [(self._space(data), False), (before, False)]
        choices = row_choices(data, self.id, self.row)
        return [[*start, *filled(data.choice, n, text)] for n, text in enumerate(choices)]

    def _space(self, data: DataSettings) -> str:
        # In a conversation, what stands between prompt and answer is the chat template's.
        return "" if data.chat else render(data, self.id, self.row).space


def read_answers(data: DataSettings, split: str, rows: Sequence[tuple[str, Row]]) -> list[Asked]:
    """Read the answers of a split's rows.

    Args:
        data: The task.
        split: ``train``, ``dev`` or ``eval``.
        rows: Pairs of id and row.

    Raises:
        UserError: A column or a label is missing, or all trained or reported rows have the same
            answer.
    """
    if not rows:
        return []
    column, first = data.answer_column, rows[0][1]
    names = {"train": data.train_split, "dev": data.dev_split, "eval": data.eval_split}
    where = f"data.{split}_split={names[split]}" if names[split] else "the held-out dev rows"
    if column.split("[")[0] not in first:
        raise UserError(
            f"data.answer_column={column} is not a column of {where} of {data.name}; "
            f"it has {', '.join(map(str, first))}"
        )
    if data.choices:
        texts = tuple(data.choices.values())
        golds = _golds(data, rows)
        found = [Asked(id, row, gold, texts) for (id, row), gold in zip(rows, golds, strict=True)]
    else:
        found = [_with_own(data, id, row) for id, row in rows]
    right = {one.texts[one.gold] for one in found}
    if len(right) == 1 and split != "dev":
        said = data.labels[found[0].gold] if data.choices else right.pop().strip()
        raise UserError(
            f"{where}: all {len(rows)} rows of {data.name} have the same answer ({said}), so "
            "nothing can be learnt or measured on them; give rows with more than one answer"
        )
    return found


def read_questions(data: DataSettings, rows: Sequence[tuple[str, Row]]) -> list[Asked]:
    """Read rows whose right answers nobody knows; the first choice stands for it.

    Args:
        data: The task.
        rows: Pairs of id and row; ``data.answer_column`` is not looked at.

    Raises:
        UserError: A row has no choices where it has to have its own.
    """
    if data.own_choices:
        return [
            Asked(
                id, row, 0, tuple("".join(part for part, _ in own) for own in _own(data, id, row))
            )
            for id, row in rows
        ]
    return [Asked(id, row, 0, tuple(data.choices.values())) for id, row in rows]


def _with_own(data: DataSettings, id: str, row: Row) -> Asked:
    if data.written:
        return Asked(id, row, 0, tuple(references(data, id, row)))
    gold = right_choice(data, id, row, row_choices(data, id, row))
    texts = ("".join(part for part, _ in own) for own in _own(data, id, row))
    return Asked(id, row, gold, tuple(texts))


def _own(data: DataSettings, id: str, row: Row) -> list[list[Piece]]:
    """The pieces of a row's own answers, by ``data.choice`` and with what follows a blank."""
    texts = references(data, id, row)[:1] if data.written else row_choices(data, id, row)
    rest = render(data, id, row).rest if data.blank is not None else ()
    return [[*filled(data.choice, index, text), *rest] for index, text in enumerate(texts)]


def _golds(data: DataSettings, rows: Sequence[tuple[str, Row]]) -> list[int]:
    """The indices of the right answers among the choices that all rows share."""
    column = data.answer_column
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
    return golds
