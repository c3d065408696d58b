"""CSV files that a spreadsheet opens without computing anything that a name or a label says."""

import re
from typing import Any

import pandas as pd

from heft_pipeline.command_line.printable import printable

#: What makes a spreadsheet take a cell for a formula, also behind blanks, and in full-width forms.
_FORMULA = re.compile("\\s*[=+\\-@\uff1d\uff0b\uff0d\uff20]|[\t\r\n]")


def csv_text(table: pd.DataFrame) -> str:
    """A table as CSV, in which text that would be taken for a formula begins with ``'``.

    That is the usual measure (OWASP, "CSV injection"). Numbers, and text that is a number, stay as
    they are. What is written so is for people and spreadsheets: nothing in this project reads it.

    Args:
        table: The table, without its index.

    Returns:
        The file's text.
    """
    shown = table.rename(columns=_plain)
    for place, kind in enumerate(table.dtypes):
        if not pd.api.types.is_numeric_dtype(kind):
            shown.isetitem(place, [_plain(value) for value in table.iloc[:, place]])
    return str(shown.to_csv(index=False))


def _plain(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = printable(value)
    if not _FORMULA.match(text):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text
