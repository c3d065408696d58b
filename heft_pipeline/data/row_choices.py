"""The answers that a row has of its own: its choices, which of them is right, or a written one."""

import string
from collections.abc import Mapping, Sequence
from typing import Any

from heft_pipeline.data.dev_split import Row
from heft_pipeline.data.settings import DataSettings
from heft_pipeline.errors import UserError

#: Some text, and whether it is a row's own.
Piece = tuple[str, bool]


def letter(index: int) -> str:
    """The letter of a choice: A to Z, then AA, AB and so on."""
    return (letter(index // 26 - 1) if index >= 26 else "") + string.ascii_uppercase[index % 26]


def row_choices(data: DataSettings, id: str, row: Row) -> list[str]:
    """The texts of a row's choices, without white space around them.

    Args:
        data: A task with choices per row.
        id: The row's id, for messages.
        row: The row.

    Returns:
        At least two texts.

    Raises:
        UserError: A column is missing or holds no such list, or a choice is empty.
    """
    if data.choices_column is not None:
        key = f"data.choices_column={data.choices_column}"
        values = _list_at(data, id, row, data.choices_column, key)
    else:
        assert data.choices_columns is not None
        key = f"data.choices_columns=[{','.join(data.choices_columns)}]"
        values = [_at(data, row, column, key) for column in data.choices_columns]
        while values and (values[-1] is None or not str(values[-1]).strip()):
            values.pop()
    texts = ["" if value is None else str(value).strip() for value in values]
    if len(texts) < 2:
        raise UserError(
            f"row {id} of {data.name} has {len(texts) or 'no'} choice{'' if texts else 's'} "
            f"({key}), and needs two or more; mend the row or leave it out"
        )
    if "" in texts:
        raise UserError(
            f"row {id} of {data.name} has no text for its choice {texts.index('') + 1} of "
            f"{len(texts)} ({key}); mend the row or leave it out"
        )
    return texts


def right_choice(data: DataSettings, id: str, row: Row, choices: Sequence[str]) -> int:
    """Which of a row's choices is right.

    Args:
        data: A task with choices per row.
        id: The row's id, for messages.
        row: The row.
        choices: Its choices.

    Returns:
        The index of the right one; of several with its text, the first.

    Raises:
        UserError: ``data.answer_column`` says nothing of the kind that ``data.answer_as`` or
            ``data.labels_column`` announces.
    """
    value = row.get(data.answer_column)
    said = str(value).strip() if data.answer_as == "text" else _label(value)
    names = _names(data, id, row, choices)
    if data.answer_as == "letter" and data.labels_column is None:
        said = said.upper()
    if said in names:
        return names.index(said)
    shown = ", ".join(map(repr, names[:6])) + (", ..." if names[6:] else "")
    raise UserError(
        f"row {id} of {data.name} has {data.answer_column}={value!r}, which is none of its "
        f"{len(choices)} choices ({shown}); {_advice(data, said, len(choices))}"
    )


def references(data: DataSettings, id: str, row: Row) -> list[str]:
    """The accepted texts of a row's written answer; the first one is trained on.

    Args:
        data: A task with written answers.
        id: The row's id, for messages.
        row: The row.

    Raises:
        UserError: There is none.
    """
    value = _at(data, row, data.answer_column, f"data.answer_column={data.answer_column}")
    accepted = value if isinstance(value, list | tuple) else [value]
    found = ["" if one is None else str(one).strip() for one in accepted]
    if not found or not all(found):
        raise UserError(
            f"row {id} of {data.name} has no text in {data.answer_column}, where its written "
            "answer should be; mend the row or leave it out"
        )
    return found


def filled(template: str, index: int, choice: str) -> list[Piece]:
    """A template for a choice with its text, letter and number filled in.

    Args:
        template: See :func:`~heft_pipeline.data.answer_text.check_choice`.
        index: The choice's index.
        choice: The choice's text.
    """
    values = {"choice": (choice, True), "letter": (letter(index), False)}
    values["number"] = (str(index + 1), False)
    found: list[Piece] = []
    for literal, field, _, _ in string.Formatter().parse(template):
        found.append((literal, False))
        if field is not None:
            found.append(values[field])
    return [piece for piece in found if piece[0]]


def option_pieces(data: DataSettings, choices: Sequence[str]) -> list[Piece]:
    """What ``{options}`` of a prompt stands for: a line for each choice."""
    found: list[Piece] = []
    for index, choice in enumerate(choices):
        found += [*([("\n", False)] if index else []), *filled(data.option, index, choice)]
    return found


def _names(data: DataSettings, id: str, row: Row, choices: Sequence[str]) -> list[str]:
    """What ``data.answer_column`` can say for each choice."""
    count = len(choices)
    if data.labels_column is not None:
        key = f"data.labels_column={data.labels_column}"
        labels = [_label(one) for one in _list_at(data, id, row, data.labels_column, key)]
        if len(labels) != count or len(set(labels)) < count:
            raise UserError(
                f"row {id} of {data.name} has {count} choices and the labels "
                f"{', '.join(map(repr, labels))} ({key}); it needs one for each, and no two alike"
            )
        return labels
    if data.answer_as == "text":
        return list(choices)
    if data.answer_as == "letter":
        return [letter(index) for index in range(count)]
    first = 0 if data.answer_as == "index" else 1
    return [str(index + first) for index in range(count)]


def _advice(data: DataSettings, said: str, count: int) -> str:
    if said in ("", "-1", "None"):
        return (
            "its label seems to be hidden: report a split whose labels are known (data.eval_split)"
        )
    if data.labels_column is not None:
        return "data.labels_column must name the column that has the answer among each row's labels"
    if data.answer_as == "index" and said == str(count):
        return "if the first choice is 1, use data.answer_as=number"
    if data.answer_as == "number" and said == "0":
        return "if the first choice is 0, use data.answer_as=index"
    return (
        f"data.answer_as={data.answer_as} does not fit: it can be index (0 is the first), number "
        "(1 is the first), letter or text, or name the labels with data.labels_column"
    )


def _list_at(data: DataSettings, id: str, row: Row, column: str, key: str) -> list[Any]:
    """The list that a row has at a column, or at a part of one such as ``choices[text]``."""
    value = _at(data, row, column, key)
    if isinstance(value, list | tuple):
        return list(value)
    kind = "nothing" if value is None else f"a {type(value).__name__}"
    advice = "name a column with a list, or one column for each choice with data.choices_columns"
    if isinstance(value, Mapping):
        advice = f"name a part of it, e.g. {column}[{next(iter(value), 'text')}]"
    raise UserError(f"row {id} of {data.name} has {kind} in {column} ({key}), not a list; {advice}")


def _at(data: DataSettings, row: Row, column: str, key: str) -> Any:
    name, *parts = column.replace("]", "").split("[")
    if name not in row:
        raise UserError(
            f"{key}: {name} is not a column of {data.name}; it has {', '.join(map(str, row))}"
        )
    value = row[name]
    for part in parts:
        # The same data comes as a mapping of lists or as a list of mappings.
        whole = value if isinstance(value, list | tuple) else [value]
        if not all(isinstance(one, Mapping) and part in one for one in whole):
            raise UserError(f"{key}: {name} of {data.name} has no part {part}; it is {value!r:.80}")
        value = [one[part] for one in whole] if isinstance(value, list | tuple) else value[part]
    return value


def _label(value: Any) -> str:
    """A label as text: 1.0, which a column with gaps makes of 1, is 1."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return "" if value is None else str(value).strip()
