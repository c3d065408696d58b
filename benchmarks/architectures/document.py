"""The table of architectures as Markdown."""

import importlib.metadata
import platform
import re
from collections.abc import Sequence

from benchmarks.architectures.compare import NO_EFFECT, RUNS, TOLERANCE, Compared

_TITLES = {"lora": "LoRA", "reft": "ReFT", "heft": "HEFT", "suffix": "ReFT at l7"}
_PACKAGES = ("transformers", "peft", "torch", "pyreft")


def cell(found: Compared, run: str) -> str:
    """A run's cell: the difference (``2e-6``), why it was refused, or how it crashed."""
    if run not in found.differences:
        return found.failures.get(run, "")
    if not found.effects[run] > NO_EFFECT:
        return f"no effect: {_short(found.effects[run])}"
    error = found.differences[run]
    return _short(error) if error <= TOLERANCE else f"differs: {_short(error)}"


def words(text: str) -> str:
    """A cell's first word, without digits, which does not depend on the machine."""
    return "agrees" if re.match(r"\d", text) else text.split(":")[0]


def statuses(line: str) -> list[str]:
    """The name in a line of the table, and the words of its cells."""
    name, *cells = (cell.strip() for cell in line.strip().strip("|").split(" | "))
    return [name.strip("`"), *map(words, cells)]


def row(found: Compared) -> str:
    """An architecture's line of the table, or why it has none."""
    if found.unbuilt:
        return f"| `{found.name}` | {found.unbuilt} |"
    cells = [f"`{found.name}`", found.padding, *(cell(found, run) for run in RUNS)]
    return f"| {' | '.join(text.replace('|', '/') for text in cells)} |"


def _short(number: float) -> str:
    return re.sub(r"e([+-])0", r"e\1", f"{number:.0e}")


def document(found: Sequence[Compared]) -> str:
    """The whole page."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES)
    built, unbuilt = ([f for f in found if bool(f.unbuilt) == no] for no in (False, True))
    agree = sum(f.agrees for f in built)
    head = ["architecture", "padding", *(_TITLES[run] for run in RUNS)]
    return "\n".join(
        [
            _INTRODUCTION.format(
                versions=versions,
                machine=f"Python {platform.python_version()} on {platform.machine()}",
                tolerance=_short(TOLERANCE),
                built=len(built),
                all=len(found),
                agree=agree,
            ),
            f"| {' | '.join(head)} |",
            f"|{'---|' * len(head)}",
            *map(row, built),
            "",
            "## No tiny model",
            "",
            "| architecture | why |",
            "|---|---|",
            *map(row, unbuilt),
            "",
        ]
    )


_INTRODUCTION = """\
# Which architectures work

For each causal language model that transformers knows, a tiny random model was built with every
kind of layer that the architecture has. This project trained LoRA, ReFT and HEFT (LoRA, then ReFT)
on it for five steps, and the log-probabilities that it reported were compared with those of the
same adapters computed by hand: with transformers, PEFT and plain hooks, one prompt at a time,
without padding or a cache. Of {all} architectures, {built} could be built, and {agree} of them
agree in all columns.

```bash
python -m benchmarks.architectures --write docs/architectures.md    # all: 5 minutes on one core
python -m benchmarks.architectures llama mixtral                    # some, printed
```

Made with {versions}; {machine}.

- **padding**: `exact` means that prompts of different lengths can share a batch. `equal lengths`
  means that padding would change this model's answers, so that each batch has prompts of one
  length. `inexact` means that padding changes a log-probability by so much, and nothing avoids it.
- **LoRA**, **ReFT** and **HEFT**: the largest difference of a log-probability, over six prompts of
  14 to 39 tokens and choices of one and of two tokens. Above {tolerance} it `differs`. An adapter
  that changes nothing has `no effect`.
- **ReFT at l7**: the same at the last 7 positions of the prompt, with earlier activations reused
  where the model allows it.
- `refused`: this project says before training that it does not support this, and why. Anything
  else in a cell is a crash.

A name with `+is_decoder` is an encoder that is built with `is_decoder=true`.

Three of them need a word more: PEFT loses weights when it loads a LoRA adapter that was saved from
`laguna`, `inkling2_text` or `inkling2_loop_text`, because it passes their names through patterns
that match too much. This project reads them whole, and refuses to export them.
"""
