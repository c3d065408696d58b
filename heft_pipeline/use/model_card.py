"""The page that a shared adapter has on the hub."""

import math
from pathlib import Path
from typing import Any

from heft_pipeline.command_line.printable import printable
from heft_pipeline.evidence.intervals import wilson_interval
from heft_pipeline.plan.sources import BUILTIN
from heft_pipeline.plan.stage_spec import StageSpec
from heft_pipeline.report import words
from heft_pipeline.report.markdown_text import code, escape
from heft_pipeline.use.measured import Measured, measured
from heft_pipeline.use.saved import SavedAdapter

_ABOUT = {
    "lora": "LoRA adds a product of two narrow matrices to weights (arXiv 2106.09685).",
    "reft": "ReFT edits hidden states at positions of the prompt (arXiv 2404.03592).",
    "red": "RED scales and shifts the outputs of feed-forward networks (arXiv 2402.15179).",
}
_HEFT = "HEFT trains LoRA first, and then ReFT on the frozen result (arXiv 2509.09801)."
_PIPELINE = "text-generation"
_TASKS = {True: "Text generation", False: "Multiple choice"}


def model_card(found: SavedAdapter, repo: str, license: str) -> str:
    """A model card with the task, the data, the accuracy with its interval, and how to load it.

    Args:
        found: The adapter; of one in a store, what was measured is told, too.
        repo: The repository, ``owner/name``.
        license: The licence, by the hub's name for it, e.g. ``apache-2.0``.

    Returns:
        Markdown with a YAML header, as the hub reads it.
    """
    from huggingface_hub import ModelCardData

    stage, known = found.stage, measured(found)
    data = stage.data
    header = ModelCardData(
        license=license,
        base_model=stage.model.id if stage.model.revision else None,
        datasets=[data.id] if data.revision and data.id else None,
        tags=["heft", *dict.fromkeys(one.kind for one, _ in found.adapters)],
        library_name="heft_pipeline",
        pipeline_tag=_PIPELINE,
        model_name=repo.rsplit("/", 1)[-1],
        eval_results=_eval_results(stage, known),
    )
    title = _plain(f"{_method(stage)} on {stage.model.name} for {data.name}")
    parts = [
        f"---\n{header.to_yaml()}\n---",
        f"# {title}",
        _what(found),
        "## Accuracy",
        _accuracy(stage, known),
        "## How it was trained",
        _training(stage, known),
        "## How to load it",
        _loading(found, repo),
    ]
    return "\n\n".join(parts) + "\n"


def _plain(text: str) -> str:
    return str(escape(" ".join(printable(text).split())))


def _method(stage: StageSpec) -> str:
    kinds = [part.name for part in stage.chain]
    return "HEFT" if kinds == ["lora", "reft"] else ", then ".join(p.title for p in stage.chain)


def _eval_results(stage: StageSpec, known: Measured | None) -> Any:
    from huggingface_hub import EvalResult

    if known is None:
        return None
    return [
        EvalResult(
            task_type=_PIPELINE,
            task_name=_TASKS[stage.data.written],
            dataset_type=str(stage.data.id if stage.data.revision else stage.data.name),
            dataset_name=str(stage.data.name),
            dataset_split=stage.data.eval_split,
            metric_type="accuracy",
            metric_name="Accuracy",
            metric_value=round(float(known.stages[-1]["accuracy"]), 4),
        )
    ]


def _what(found: SavedAdapter) -> str:
    stage = found.stage
    kinds = dict.fromkeys(one.kind for one, _ in found.adapters)
    about = [_ABOUT[kind] for kind in kinds if kind in _ABOUT]
    if _method(stage) == "HEFT":
        about.append(_HEFT)
    base = _plain(str(stage.model.id if stage.model.revision else stage.model.name))
    source = _plain(str(stage.data.id if stage.data.revision else stage.data.name))
    return (
        f"An adapter of {base}, trained on the split {_plain(stage.data.train_split)} of {source} "
        f"with heft_pipeline. {' '.join(about)}"
    )


def _accuracy(stage: StageSpec, known: Measured | None) -> str:
    if known is None:
        return "What was measured is not told by the folder that this was made from."
    data = stage.data
    rows = [("untouched model", known.untouched), ("this adapter", known.stages[-1])]
    lines = ["| | accuracy | 95 % interval | examples |", "|---|---:|---:|---:|"]
    for name, result in rows:
        if result is None:
            continue
        accuracy, count = float(result["accuracy"]), int(result["n_eval"])
        low, high = wilson_interval(accuracy * count, count)
        lines.append(
            f"| {name} | {words.percent(accuracy)} | {100 * low:.2f} to {100 * high:.2f} % "
            f"| {count:,} |"
        )
    note = (
        f"Of the split {_plain(data.eval_split)} of {_plain(str(data.name))}. The intervals are "
        "Wilson's, and speak of other examples; how much another seed would differ, one adapter "
        "cannot say."
    )
    return "\n".join(lines) + f"\n\n{note}"


def _training(stage: StageSpec, known: Measured | None) -> str:
    lines = ["| stage | epochs | rank | learning rate | parameters | seconds |",
             "|---|---:|---:|---:|---:|---:|"]  # fmt: skip
    told = known.stages if known else ({},) * len(stage.chain)
    for part, result in zip(stage.chain, told, strict=True):
        rate = part.adapters[0].learning_rate if part.adapters else math.nan
        count, seconds = result.get("trainable_params"), result.get("train_seconds")
        cells = [
            part.title,
            str(part.epochs),
            str(part.rank or ""),
            f"{rate:g}",
            "" if count is None else f"{count:,}",
            "" if seconds is None else f"{seconds:.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    prompt = code(stage.data.prompt)
    seed = f"Seed {stage.seed}. The prompt is {prompt}; `stage.json` has every setting."
    return "\n".join(lines) + f"\n\n{seed}"


def _loading(found: SavedAdapter, repo: str) -> str:
    model = found.stage.model
    ships = Path(model.id).resolve() == BUILTIN["builtin:tiny"].resolve()
    elsewhere = model.revision is None and not ships
    return "\n".join(
        [
            "```bash",
            "pip install heft-pipeline",
            f"heft predict {repo} --data rows.jsonl" + (" --model BASE" if elsewhere else ""),
            "```",
            "",
            "```python",
            "import heft_pipeline",
            "",
            f'model = heft_pipeline.load("{repo}"' + (', model="BASE")' if elsewhere else ")"),
            'model.generate("...")',
            "```",
            *(["", "BASE is the folder of the base model."] if elsewhere else []),
        ]
    )
