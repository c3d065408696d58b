"""What a hostile folder or data set would say."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

#: Sets a terminal's title, clears its screen, turns writing around, goes back, and hides the rest.
ORDERS = "\x1b]0;owned\x07\x1b[2J\x9b3J\u202egnp\u202c\b\b\rnow\x1b[8mhidden\x7f\u2028"
#: Square brackets that rich would take for markup, some of which does not close.
MARKUP = "[red]red[/red] [link=https://evil.example]here[/link] [/] [/nothing] :warning:"
#: A script that would say so on the page.
SCRIPT = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"


def hostile_rows(text: str, numbers: Iterable[int]) -> list[dict[str, Any]]:
    """Rows of BoolQ's columns, each with the text in its passage, its question and its id."""
    return [
        {
            "passage": f"w{number} {text}",
            "question": f"w{number + 1} {text}",
            "answer": number % 2 == 0,
            "idx": f"{number}{text}",
        }
        for number in numbers
    ]


def hostile_data(folder: Path, text: str, count: int = 24) -> list[str]:
    """A task whose every text is hostile, and the overrides that choose it."""
    folder.mkdir(parents=True)
    for first, split in enumerate(("train", "validation")):
        numbers = range(first * count, (first + 1) * count)
        lines = (json.dumps(row) for row in hostile_rows(text, numbers))
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return ["data=boolq", f"data.path={folder}", "data.id_column=idx", "data.dev_size=4"]
