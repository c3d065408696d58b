"""One architecture: this project's log-probabilities beside those computed by hand."""

import re
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from benchmarks.architectures.by_hand import log_probabilities, no_cache, padding_error
from benchmarks.architectures.task import CHOICES, save_tokenizer, write_task
from benchmarks.architectures.tiny_models import build
from heft_pipeline.errors import UserError

#: The largest difference of a log-probability that rounding in float32 explains.
TOLERANCE = 1e-4
#: Adapters that change no log-probability by more do not act.
NO_EFFECT = 1e-3
#: The columns of differences, each with the method and the overrides that make its run.
RUNS: dict[str, tuple[str, ...]] = {
    "lora": ("lora",),
    "reft": ("reft",),
    "heft": ("heft",),
    "suffix": ("reft", "reft.positions=l7"),
}


@dataclass
class Compared:
    """What was found for one architecture.

    Attributes:
        name: Its model type.
        model: The class of its model.
        unbuilt: Why no tiny model could be built; empty if one was.
        padding: ``exact``, ``equal lengths`` or ``inexact: CHANGE``; ``refused`` or ``unknown`` if
            no run was done.
        differences: For each of :data:`RUNS`, the largest difference of a log-probability.
        failures: For each run without a difference, why it has none.
        effects: For each run, the largest change of a log-probability by its adapters.
        reuse: What this project says of reused activations in the last run.
    """

    name: str
    model: str = ""
    unbuilt: str = ""
    padding: str = ""
    differences: dict[str, float] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    effects: dict[str, float] = field(default_factory=dict)
    reuse: str = ""

    @property
    def agrees(self) -> bool:
        """Whether all runs were done, had an effect, and equal the computation by hand."""
        return all(map(self._good, RUNS))

    @property
    def sound(self) -> bool:
        """Whether each run equals the computation by hand or was refused."""
        refused = {run for run, why in self.failures.items() if why.startswith("refused")}
        return bool(self.unbuilt) or all(run in refused or self._good(run) for run in RUNS)

    def _good(self, run: str) -> bool:
        return self.differences.get(run, 1.0) <= TOLERANCE and self.effects[run] > NO_EFFECT


def compare(name: str, overrides: Sequence[str] = ()) -> Compared:
    """Build an architecture's tiny model, run all of :data:`RUNS` on it, and compare.

    Args:
        name: The architecture.
        overrides: Further overrides of this project's config.
    """
    found = Compared(name)
    with tempfile.TemporaryDirectory(prefix="architecture-") as work:
        folder = Path(work)
        try:
            config, model = build(name)
            found.model = type(model).__name__
            with torch.no_grad():
                model(input_ids=torch.tensor([[1, 5, 6, 7]]), **no_cache(model))
            model.save_pretrained(folder / "model")
            if type(config) is not type(model.config):  # on the hub, the whole has its parts' too
                config.architectures = model.config.architectures
                config.save_pretrained(folder / "model")
        except Exception as error:
            found.unbuilt = reason(error)
            return found
        save_tokenizer(folder / "model")
        _run_all(found, folder, overrides)
    return found


def _run_all(found: Compared, folder: Path, further: Sequence[str]) -> None:
    """Do every run on a saved model; what fails is noted, and the others go on."""
    from transformers import AutoTokenizer

    from benchmarks.architectures.product import Product

    rows = write_task(folder / "data")
    model, tokenizer = folder / "model", AutoTokenizer.from_pretrained(folder / "model")
    prompts = [tokenizer(row.prompt)["input_ids"] for row in rows]
    choices = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in CHOICES.values()]
    short = [choice for choice in choices if len(choice) == 1]
    product = Product(model, folder / "data", folder / "store")
    padding = None
    for run, (method, *overrides) in RUNS.items():
        try:
            stage = product.trained(method, *overrides, *further)
            expected = log_probabilities(model, prompts, choices, **product.adapters(stage))
            plain = log_probabilities(model, prompts, choices)
            errors = [
                product.predicted(stage) - expected,
                product.scored(stage, prompts, short) - expected[:, : len(short)],
            ]
            found.differences[run] = max(float(error.abs().amax()) for error in errors)
            found.effects[run] = float((expected - plain).abs().amax())
            padding = product.result(stage).get("padding", padding)
            found.reuse = product.result(stage)["reuse"]
        except Exception as error:
            found.failures[run] = reason(error)
    found.padding = _padding(found, padding, model, prompts)


def _padding(found: Compared, said: str | None, model: Path, prompts: list[list[int]]) -> str:
    """What this project says of padding if it does, else what is measured without it."""
    if not found.differences:
        refused = all(why.startswith("refused") for why in found.failures.values())
        return "refused" if refused else "unknown"
    if said is not None:
        return "equal lengths" if said else "exact"
    try:
        change = padding_error(model, prompts, 2)
    except Exception as error:
        return reason(error)
    return "exact" if change <= TOLERANCE else f"inexact: {change:.0e}"


def reason(error: Exception) -> str:
    """Why something failed, in one line: this project's refusal, or the place of a crash."""
    lines = str(error).strip().splitlines() or [""]
    if isinstance(error, UserError):
        return f"refused: {re.sub(r'model.id=[^ ]*/model', 'model.id=DIR', lines[0])}"
    place = traceback.extract_tb(error.__traceback__)[-1]
    file = Path(place.filename)
    return f"{type(error).__name__}: {' '.join(lines)[:200]} ({file.parent.name}/{file.name})"
