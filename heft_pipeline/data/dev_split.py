"""Holding out dev rows from the training rows."""

from typing import Any

import numpy as np

from heft_pipeline.errors import UserError

Row = dict[str, Any]


def hold_out(
    rows: list[tuple[str, Row]], dev_size: float, seed: int
) -> tuple[list[tuple[str, Row]], list[tuple[str, Row]]]:
    """Split rows into training and dev rows at random.

    Args:
        rows: All training rows.
        dev_size: The share of rows to hold out if it is below 1, else their number.
        seed: Decides which rows are held out.

    Returns:
        (train, dev), each in file order.

    Raises:
        UserError: No row would be left for training, or none would be held out.
    """
    count = round(dev_size * len(rows)) if dev_size < 1 else int(dev_size)
    if not 0 < count < len(rows):
        raise UserError(
            f"data.dev_size={dev_size:g} holds {count} of {len(rows)} training rows out for dev; "
            "choose a size that leaves rows on both sides, e.g. data.dev_size=0.1"
        )
    held = set(np.random.default_rng([seed, 1]).permutation(len(rows))[:count].tolist())
    return (
        [row for i, row in enumerate(rows) if i not in held],
        [row for i, row in enumerate(rows) if i in held],
    )
