"""Invented rows in the columns of the prepared tasks, and what becomes of them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conftest import write_rows

Row = dict[str, Any]


@dataclass(frozen=True)
class Prepared:
    """A prepared task's rows, and what is expected of the first one.

    Attributes:
        rows: Two rows at least, with different right answers.
        prompt: The first row's prompt.
        choices: What follows it, for each choice (of a written answer, the answer).
        right: The index of the right one.
    """

    rows: tuple[Row, ...]
    prompt: str
    choices: tuple[str, ...]
    right: int


def _lettered(texts: list[str], labels: str = "ABCDE") -> Row:
    return {"text": texts, "label": list(labels[: len(texts)])}


PREPARED: dict[str, Prepared] = {
    "boolq": Prepared(
        (
            {"question": "is rain wet", "passage": "Rain is water.", "answer": True},
            {"question": "is rain dry", "passage": "Rain falls.", "answer": False},
        ),
        "Rain is water.\nQuestion: is rain wet?\nAnswer:",
        (" yes", " no"),
        0,
    ),
    "piqa": Prepared(
        (
            {"goal": "Dry a wet cup.", "sol1": "Bury it.", "sol2": "Wipe it with a cloth.",
             "label": 1},
            {"goal": "Cool tea.", "sol1": "Add ice.", "sol2": "Boil it.", "label": 0},
        ),
        "Question: Dry a wet cup.\nAnswer:",
        (" Bury it.", " Wipe it with a cloth."),
        1,
    ),
    "siqa": Prepared(
        (
            {"context": "Ada lent Bo a book.", "question": "What will Bo do next?",
             "answerA": "read it", "answerB": "eat it", "answerC": "sell it", "label": "1"},
            {"context": "Cy fell.", "question": "How does Cy feel?",
             "answerA": "tall", "answerB": "glad", "answerC": "hurt", "label": "3"},
        ),
        "Q: Ada lent Bo a book. What will Bo do next?\nA:",
        (" read it", " eat it", " sell it"),
        0,
    ),
    "hellaswag": Prepared(
        (
            {"ctx": "A man opens a tin. He", "endings": ["flies.", "eats.", "sinks.", "sings."],
             "label": "1"},
            {"ctx": "A dog digs. It", "endings": ["reads.", "rests.", "drives.", "votes."],
             "label": "1"},
            {"ctx": "A cat sees milk. It", "endings": ["drinks.", "sews.", "bakes.", "sues."],
             "label": "0"},
        ),
        "A man opens a tin. He",
        (" flies.", " eats.", " sinks.", " sings."),
        1,
    ),
    "winogrande": Prepared(
        (
            {"sentence": "The cup did not fit in the box because the _ was too big.",
             "option1": "cup", "option2": "box", "answer": "1"},
            {"sentence": "The cup did not fit in the box because the _ was too small.",
             "option1": "cup", "option2": "box", "answer": "2"},
        ),
        "The cup did not fit in the box because the",
        (" cup was too big.", " box was too big."),
        0,
    ),
    "arc_easy": Prepared(
        (
            {"id": "a", "question": "What do plants need?", "answerKey": "B",
             "choices": _lettered(["sand", "light", "oil", "salt"])},
            {"id": "b", "question": "What is ice?", "answerKey": "1",
             "choices": _lettered(["water", "air", "sand"], "1234")},
        ),
        "Question: What do plants need?\nAnswer:",
        (" sand", " light", " oil", " salt"),
        1,
    ),
    "openbookqa": Prepared(
        (
            {"id": "a", "question_stem": "A magnet pulls", "answerKey": "C",
             "choices": _lettered(["wood", "paper", "iron", "glass"])},
            {"id": "b", "question_stem": "The sun gives", "answerKey": "A",
             "choices": _lettered(["heat", "soup", "shoes", "noise"])},
        ),
        "A magnet pulls",
        (" wood", " paper", " iron", " glass"),
        2,
    ),
    "commonsenseqa": Prepared(
        (
            {"question": "Where is a bed?", "answerKey": "B", "question_concept": "bed",
             "choices": _lettered(["sea", "bedroom", "sky", "jar", "shoe"])},
            {"question": "What cuts?", "answerKey": "E", "question_concept": "cut",
             "choices": _lettered(["soup", "air", "milk", "fog", "knife"])},
        ),
        "Question: Where is a bed?\nA. sea\nB. bedroom\nC. sky\nD. jar\nE. shoe\nAnswer:",
        (" A", " B", " C", " D", " E"),
        1,
    ),
    "mmlu": Prepared(
        (
            {"question": "What is 2 + 2?", "subject": "sums", "choices": ["1", "4", "6", "9"],
             "answer": 1},
            {"question": "What is 3 + 3?", "subject": "sums", "choices": ["6", "4", "1", "9"],
             "answer": 0},
        ),
        "What is 2 + 2?\nA. 1\nB. 4\nC. 6\nD. 9\nAnswer:",
        (" A", " B", " C", " D"),
        1,
    ),
    "gsm8k": Prepared(
        (
            {"question": "Ann has 2 nuts and gets 3. How many?", "answer": "2 + 3 = 5\n#### 5"},
            {"question": "Bo had 1,200 and lost 200.", "answer": "1200 - 200\n#### 1,000"},
        ),
        "Question: Ann has 2 nuts and gets 3. How many?\nAnswer:",
        (" 2 + 3 = 5\n#### 5",),
        0,
    ),
}  # fmt: skip
PREPARED["arc_challenge"] = PREPARED["arc_easy"]


def write_task(folder: Path, name: str, copies: int = 2) -> Path:
    """Write a prepared task's rows as its splits, no two rows alike.

    Args:
        folder: Where to put the task's folder.
        name: The task's name.
        copies: How often each row is written to each split, with a number in its prompt.

    Returns:
        The task's folder.
    """
    task = PREPARED[name]
    number = 0
    for split in ("train", "validation", "test"):
        rows = []
        for _ in range(copies):
            for row in task.rows:
                rows.append(row if number == 0 else _numbered(row, number))
                number += 1
        own = "auxiliary_train" if (name, split) == ("mmlu", "train") else split
        write_rows(folder / name / f"{own}.jsonl", rows)
    return folder / name


def _numbered(row: Row, number: int) -> Row:
    column = next(name for name in ("passage", "goal", "context", "ctx", "sentence",
                                    "question_stem", "question") if name in row)  # fmt: skip
    return row | {column: f"{number} {row[column]}"}
