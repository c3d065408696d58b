"""What was measured of an adapter, in a store or in an exported folder."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heft_pipeline.errors import UserError
from heft_pipeline.files.untrusted import read_untrusted
from heft_pipeline.plan.graph import untouched_model
from heft_pipeline.use.saved import SavedAdapter

#: The file of an exported folder.
MEASURED = "measured.json"
#: What of a stage's ``result.json`` is told to others; the rest is about a machine.
_LIMIT, _MOST_TOKENS = "answer_tokens", 100_000
_TOLD = ("accuracy", "n_eval", "trainable_params", "train_seconds", "train_tflop", "seed")


@dataclass(frozen=True)
class Measured:
    """What was measured, as in ``result.json``.

    Attributes:
        stages: Of each stage of the chain, first to last.
        untouched: Of the untouched model; None where it was not evaluated.
    """

    stages: tuple[Mapping[str, Any], ...]
    untouched: Mapping[str, Any] | None


def answer_tokens(found: SavedAdapter) -> int | None:
    """The most tokens of a written answer, as the evaluation had it; None where nobody says it."""
    evaluation = found.stage.evaluation
    if evaluation.mode != "generate":
        return None
    if evaluation.max_new_tokens is not None:
        return evaluation.max_new_tokens
    if found.store is not None:
        from heft_pipeline.scoring.generate import longest_answer
        from heft_pipeline.stage.cached_inputs import cached_task

        return longest_answer(cached_task(found.stage, found.store.tokenized))
    file = found.folders[-1] / MEASURED
    told = read_untrusted(file, str(file.parent)).get(_LIMIT) if file.is_file() else None
    return told if type(told) is int and 0 < told < _MOST_TOKENS else None


def measured(found: SavedAdapter) -> Measured | None:
    """What was measured of an adapter; None where nobody says it."""
    if found.store is not None:
        read = [found.store.result(part.fingerprint) for part in found.stage.chain]
        base = found.store.result(untouched_model(found.stage.chain[0]).fingerprint)
        whole = [_told(result) for result in read if result is not None]
        if len(whole) < len(read):
            return None
        return Measured(tuple(whole), None if base is None else _told(base))
    file = found.folders[-1] / MEASURED
    if not file.is_file():
        return None
    data = read_untrusted(file, str(file.parent))
    try:
        stages = tuple(_numbers(one) for one in data["stages"])
        base = None if data["untouched"] is None else _numbers(data["untouched"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{file} is not what `heft export` writes ({error})") from error
    return Measured(stages, base) if len(stages) == len(found.stage.chain) else None


def write_measured(found: SavedAdapter, to: Path) -> None:
    """Write what was measured beside an exported adapter."""
    known = measured(found)
    if known is not None:
        data: dict[str, Any] = {"stages": list(known.stages), "untouched": known.untouched}
        data[_LIMIT] = answer_tokens(found)
        (to / MEASURED).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def _told(result: Mapping[str, Any]) -> dict[str, Any]:
    return {name: result[name] for name in _TOLD if name in result}


def _numbers(result: Mapping[str, Any]) -> dict[str, Any]:
    """What a stranger may have written, if it is numbers."""
    told = {name: result[name] for name in _TOLD if result.get(name) is not None}
    return {name: float(value) if "." in str(value) else int(value) for name, value in told.items()}
