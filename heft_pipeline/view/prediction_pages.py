"""A stage's answers, filtered and page by page: there can be a hundred thousand."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow.parquet

from heft_pipeline.data.row_choices import letter
from heft_pipeline.errors import UserError
from heft_pipeline.files.byte_sizes import in_bytes
from heft_pipeline.store.beside_predictions import LOGPROB_PREFIX, OWN_LOGPROBS, WRITTEN_LOGPROB

ROWS = 50
#: As memory holds it, whatever it takes on disk.
_MOST_BYTES = 2**30
_MOST_CHOICES = 30
_LONGEST = 4000
_LONGEST_SEARCH = 200
NONE = "(none)"


class Choice(NamedTuple):
    """An answer and its log-probability in nats."""

    name: str
    log_probability: float
    chosen: bool
    right: bool


@dataclass(frozen=True)
class Prediction:
    """An evaluated example.

    Attributes:
        id: Its id.
        gold: The right answer.
        answer: The given one; empty if there is none.
        credit: How right it is, from 0 to 1.
        choices: The answers whose log-probabilities are known.
        text: What the model wrote; empty for a scored choice.
    """

    id: str
    gold: str
    answer: str
    credit: float
    choices: tuple[Choice, ...]
    text: str


@dataclass(frozen=True)
class Asked:
    """Which predictions are asked for.

    Attributes:
        wrong: Whether only those that are not right.
        choice: The answer that was given, :data:`NONE` for none; empty for all.
        search: What the id, the answers or the written text hold, in any case; empty for all.
        page: The page, from 1.
    """

    wrong: bool = False
    choice: str = ""
    search: str = ""
    page: int = 1

    @staticmethod
    def read(query: Mapping[str, str]) -> "Asked":
        """What an address asks for; what makes no sense is left out."""
        number = query.get("page", "")
        page = int(number) if number.isascii() and number.isdigit() and len(number) < 9 else 1
        return Asked(
            query.get("wrong") == "1",
            query.get("choice", ""),
            query.get("q", "")[:_LONGEST_SEARCH],
            max(1, page),
        )

    def query(self, page: int) -> dict[str, str]:
        """The address's query for a page of these."""
        found = {"choice": self.choice, "q": self.search, "wrong": "1" if self.wrong else ""}
        return {key: value for key, value in found.items() if value} | {"page": str(page)}


@dataclass(frozen=True)
class PredictionPage:
    """A page of predictions.

    Attributes:
        rows: What is on it.
        asked: What was asked for, with the page that is shown.
        found: How many fit.
        total: How many there are.
        pages: How many pages what fits has, at least 1.
        answers: The answers that were given, to filter by; empty where there are too many.
        first: The number of the first row, from 1.
    """

    rows: tuple[Prediction, ...]
    asked: Asked
    found: int
    total: int
    pages: int
    answers: tuple[str, ...]
    first: int


def read_table(path: Path) -> pd.DataFrame:
    """Read a ``predictions.parquet``.

    Args:
        path: The file.

    Raises:
        UserError: It takes too much memory, or holds no predictions.
        ValueError: It is broken; pyarrow's errors are such.
    """
    metadata = pyarrow.parquet.read_metadata(path)
    size = sum(metadata.row_group(n).total_byte_size for n in range(metadata.num_row_groups))
    if size > _MOST_BYTES:
        raise UserError(f"{path.name} takes {in_bytes(size)}, which is too much to be shown")
    table = pd.read_parquet(path)
    if missing := {"id", "gold", "prediction", "credit"} - set(table.columns):
        raise UserError(f"{path.name} lacks {', '.join(sorted(missing))}")
    return table


def prediction_page(table: pd.DataFrame, asked: Asked) -> PredictionPage:
    """A page of what is asked for.

    Args:
        table: What :func:`read_table` gave.
        asked: What is asked for; a page past the last one is the last.
    """
    keep = np.ones(len(table), dtype=bool)
    if asked.wrong:
        keep &= ~(pd.to_numeric(table.credit, errors="coerce") >= 1).to_numpy()
    answers = table.prediction.astype("object").where(table.prediction.notna(), None)
    if asked.choice == NONE:
        keep &= answers.isna().to_numpy()
    elif asked.choice:
        keep &= (answers.astype(str) == asked.choice).to_numpy() & answers.notna().to_numpy()
    if asked.search:
        holds = np.zeros(len(table), dtype=bool)
        for name in ("id", "gold", "prediction", "text"):
            if name in table.columns:
                text = table[name].fillna("").astype(str).str
                holds |= text.contains(asked.search, case=False, regex=False).to_numpy()
        keep &= holds
    places = np.flatnonzero(keep)
    pages = max(1, math.ceil(len(places) / ROWS))
    page = min(asked.page, pages)
    shown = places[(page - 1) * ROWS : page * ROWS]
    given = sorted(map(str, answers.dropna().unique())) if answers.notna().any() else []
    if answers.isna().any():
        given.append(NONE)
    return PredictionPage(
        tuple(_prediction(row) for row in table.iloc[shown].to_dict("records")),
        Asked(asked.wrong, asked.choice, asked.search, page),
        len(places),
        len(table),
        pages,
        tuple(given) if len(given) <= _MOST_CHOICES else (),
        (page - 1) * ROWS + 1 if len(places) else 0,
    )


def _prediction(row: Mapping[Any, Any]) -> Prediction:
    gold, given = _text(row["gold"]), _text(row["prediction"])
    if OWN_LOGPROBS in row:
        own = row[OWN_LOGPROBS]
        pairs = [(letter(place), value) for place, value in enumerate(own)]
    elif WRITTEN_LOGPROB in row:
        pairs = [(gold, row[WRITTEN_LOGPROB])]
    else:
        names = [str(name) for name in row if str(name).startswith(LOGPROB_PREFIX)]
        pairs = [(name.removeprefix(LOGPROB_PREFIX), row[name]) for name in names]
    choices = [Choice(name, float(value), name == given, name == gold) for name, value in pairs]
    credit = row["credit"]
    return Prediction(
        _text(row["id"]), gold, given, float(credit), tuple(choices[:_MOST_CHOICES]),
        _text(row.get("text")),
    )  # fmt: skip


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    text = str(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} [...]"
