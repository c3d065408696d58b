"""Holding out dev rows from the training rows."""

import math
from typing import Any

import numpy as np

from heft_pipeline.errors import UserError

Row = dict[str, Any]


def hold_out(
    rows: list[tuple[str, Row]], answer_column: str | None, dev_size: float, seed: int
) -> tuple[list[tuple[str, Row]], list[tuple[str, Row]]]:
    """Split rows into training and dev rows at random, with the same share of each answer.

    Args:
        rows: All training rows.
        answer_column: The column with the answers; None where answers are not shared.
        dev_size: The share of rows to hold out if it is below 1, else their number.
        seed: Decides which rows are held out.

    Returns:
        (train, dev), each in file order.

    Raises:
        UserError: No row would be left for training, or none would be held out.
    """
    count = round(dev_size * len(rows)) if dev_size < 1 else int(dev_size)
    if len(rows) < 2:
        raise UserError(
            "data.train_split has a single row, and dev rows are held out of it; give more rows"
        )
    if not 0 < count < len(rows):
        raise UserError(
            f"data.dev_size={dev_size:g} holds {count} of {len(rows)} training rows out for dev; "
            "choose a size that leaves rows on both sides, e.g. "
            f"data.dev_size={max(1, len(rows) // 10)}"
        )
    order = np.random.default_rng([seed, 1]).permutation(len(rows)).tolist()
    said = ["" if answer_column is None else str(row.get(answer_column)) for _, row in rows]
    answers: dict[str, list[int]] = {answer: [] for answer in said}
    for index in order:
        answers[said[index]].append(index)
    counts = _shares([len(indices) for indices in answers.values()], count)
    held = {i for each, n in zip(answers.values(), counts, strict=True) for i in each[:n]}
    return (
        [row for i, row in enumerate(rows) if i not in held],
        [row for i, row in enumerate(rows) if i in held],
    )


def _shares(sizes: list[int], count: int) -> list[int]:
    """Divide a count in proportion to sizes, by largest remainders; each gets one if it can."""
    exact = [count * size / sum(sizes) for size in sizes]
    shares = [math.floor(share) for share in exact]
    by_remainder = sorted(range(len(sizes)), key=lambda i: shares[i] - exact[i])
    for i in by_remainder[: count - sum(shares)]:
        shares[i] += 1
    for i in range(len(sizes)):
        largest = max(range(len(sizes)), key=lambda j: shares[j])
        if not shares[i] and sizes[i] > 1 and shares[largest] > 1:
            shares[i], shares[largest] = 1, shares[largest] - 1
    return shares
