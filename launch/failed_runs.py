"""The last line of a sweep with failed runs: why they failed."""

import re
from collections.abc import Mapping, Sequence

from heft_pipeline.errors import UserError
from heft_pipeline.plan.graph import Run, labelled

#: How many reasons are named, and how many characters of each.
_MOST_REASONS = 3
_MOST_CHARACTERS = 300
_NUMBER = re.compile(r"\d+(\.\d+)?(e[+-]?\d+)?")


def refuse_failed(runs: Sequence[Run], failures: Mapping[str, str]) -> None:
    """Say why runs failed, the most frequent reason first.

    Reasons that differ in numbers alone, such as the step of a loss that was not finite, are one.
    A stage whose parent failed has no reason of its own.

    Args:
        runs: The sweep's runs.
        failures: Why stages failed, by fingerprint.

    Raises:
        UserError: A run failed.
    """
    failed = [run for run in runs if any(s.fingerprint in failures for s in run.stages)]
    if not failed:
        return
    stages = {stage.fingerprint: stage for run in failed for stage in run.stages}
    label = labelled(stages.values())
    told: dict[str, list[str]] = {}
    for key, stage in stages.items():
        parent = stage.parent.fingerprint if stage.parent else None
        if key in failures and parent not in failures:
            # A stage's own error may begin with its label, and is the same for another stage.
            why = " ".join(failures[key].removeprefix(f"{stage.label}: ").split())
            told.setdefault(_NUMBER.sub("#", why), []).append(f"{label(stage)}: {_cut(why)}")
    ranked = sorted(told.values(), key=len, reverse=True)
    parts = [one[0] + (f" (and {len(one) - 1} more alike)" if one[1:] else "") for one in ranked]
    if beyond := len(parts) - _MOST_REASONS:
        parts = [*parts[:_MOST_REASONS], *([f"{beyond} more reasons"] if beyond > 0 else [])]
    runs_failed = f"{len(failed)} of {len(runs)} runs failed" if len(runs) > 1 else "the run failed"
    raise UserError(
        f"{runs_failed}: {'; '.join(parts)}. Fix the cause and run the same command again: "
        "finished stages are kept, and the logs are named above"
    )


def _cut(text: str) -> str:
    text = text.rstrip(".")
    return text if len(text) <= _MOST_CHARACTERS else f"{text[: _MOST_CHARACTERS - 3]}..."
