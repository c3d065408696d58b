"""lm-evaluation-harness with adapters.

heft lm-eval run --model heft --model_args adapter=ADAPTER --tasks boolq
heft lm-eval agree ADAPTER      whether the harness finds what the evaluation found
"""

import argparse
import importlib.util
import json
import logging
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heft_pipeline.command_line.run import run_command
from heft_pipeline.errors import UserError
from heft_pipeline.use import arguments
from heft_pipeline.use.saved import SavedAdapter

_AGREE = "agree"
#: Log-probabilities that differ by more than this were not computed alike; rounding is far below.
_ALIKE = {"float32": 1e-3, "bfloat16": 0.25}


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line, and return its exit status."""
    return run_command(_run, words)


def _run(words: Sequence[str]) -> int:
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError(
            "lm-evaluation-harness is not installed; pip install 'heft-pipeline[lm-eval]'"
        )
    if words[:1] == [_AGREE]:
        return _agree(words[1:])
    from lm_eval.__main__ import cli_evaluate

    import heft_pipeline.use.harness  # noqa: F401  it registers the model

    before, sys.argv = sys.argv, ["heft lm-eval", *words]
    try:
        cli_evaluate()
    finally:
        sys.argv = before
    return 0


@dataclass(frozen=True)
class Agreement:
    """How the harness's answers compare with the evaluation's.

    Attributes:
        examples: How many were compared.
        differing: How many are answered differently.
        largest: The largest difference of a log-probability, in nats.
        left_out: How many were not compared, because the harness reads their prompts otherwise.
    """

    examples: int
    differing: int
    largest: float
    left_out: int = 0


def _agree(words: Sequence[str]) -> int:
    parser = arguments.parser(
        f"lm-eval {_AGREE}",
        "Let lm-evaluation-harness answer the reported rows of an adapter's task, and compare its "
        "answers with predictions.parquet, example by example.",
    )
    arguments.add_place(parser)
    parser.add_argument("--limit", type=arguments.positive, metavar="N",
                        help="only the first N rows")  # fmt: skip
    parser.add_argument("--batch-size", type=arguments.positive, default=32, metavar="N")
    given = parser.parse_args(words)
    found = arguments.found(given)
    agreement = agree(found, given)
    print(
        f"{agreement.examples:,} examples: {agreement.differing:,} answered differently; "
        f"log-probabilities differ by at most {agreement.largest:.2g}"
    )
    if agreement.left_out:
        print(
            f"{agreement.left_out:,} more were not compared: their prompts were cut, or the "
            "harness reads them as other tokens"
        )
    alike = agreement.largest <= _ALIKE.get(
        given.dtype or found.stage.model.dtype, _ALIKE["bfloat16"]
    )
    return 0 if alike and not agreement.differing else 1


def agree(found: SavedAdapter, given: argparse.Namespace) -> Agreement:
    """Answer the reported rows with the harness, and compare.

    Args:
        found: The adapter, in a store.
        given: ``adapter``, where the model runs, ``batch_size`` and ``limit``.

    Raises:
        UserError: The adapter is not in a store, or its answers are written, not chosen.
    """
    stage = found.stage
    if found.store is None:
        raise UserError(f"{given.adapter} is an exported folder, which has no predictions.parquet")
    if stage.data.written or stage.data.blank or stage.evaluation.mode == "generate":
        raise UserError(f"{stage.label}: only answers that are chosen by likelihood are compared")
    import pandas as pd

    from heft_pipeline.stage.cached_inputs import cached_task
    from heft_pipeline.store.integrity import PREDICTIONS

    task = cached_task(stage)
    kept = task.eval[: given.limit]
    table = pd.read_parquet(found.store.folder(stage.chain[-1].fingerprint) / PREDICTIONS)
    rows = _rows(stage, kept)
    if not rows:
        raise UserError(
            f"none of the {len(kept)} rows is read by the harness as the evaluation did"
        )
    samples = _samples(list(rows.values()), given)
    largest, differing = 0.0, 0
    columns = [f"logprob_{label}" for label in stage.data.labels]
    for number, sample in zip(rows, samples, strict=True):
        row = table.iloc[number]
        known = (
            [float(row[name]) for name in columns] if columns else list(map(float, row.logprobs))
        )
        now = [float(value) for value, _ in sample]
        largest = max([largest, *(abs(a - b) for a, b in zip(known, now, strict=True))])
        differing += known.index(max(known)) != now.index(max(now))
    return Agreement(len(samples), differing, largest, len(kept) - len(rows))


def _rows(stage: Any, kept: Any) -> dict[int, dict[str, Any]]:
    """The reported rows as the harness reads them, by their numbers.

    A row is left out whose prompt is other tokens for the harness: one that was cut, or that has a
    special token in its own text, or twice in front.
    """
    from heft_pipeline.data.rows import read_eval
    from heft_pipeline.models.base_model import load_tokenizer
    from heft_pipeline.use.predictions import prompt_text

    tokenizer = load_tokenizer(stage.model)
    raw = [row for _, row in read_eval(stage.data)][: len(kept)]
    rows = {}
    for number, (row, example) in enumerate(zip(raw, kept, strict=True)):
        text = prompt_text(stage, tokenizer, row)
        bare = text.rstrip() if not stage.data.chat else text
        choices = [text[len(bare) :] + stage.scored_answers.of(choice) for choice in example.texts]
        # The harness moves white space at the end of a context to what follows it.
        same = bare == bare.rstrip() and tuple(tokenizer(bare)["input_ids"]) == example.prompt
        if same:
            rows[number] = {"prompt": bare, "choices": choices, "gold": example.gold}
    return rows


def _samples(
    rows: Sequence[dict[str, Any]], given: argparse.Namespace
) -> list[list[tuple[float, bool]]]:
    """The harness's log-probability of each choice, for each row."""
    import datasets
    from lm_eval.evaluator import evaluate
    from lm_eval.tasks import TaskManager, get_task_dict

    from heft_pipeline.use.harness import HeftLM

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    model = HeftLM(
        given.adapter,
        model=given.model,
        device=given.device,
        dtype=given.dtype,
        batch_size=given.batch_size,
        output_dir=str(given.output_dir),
        revision=given.revision,
        trust_remote_code=given.trust_remote_code,
    )
    with tempfile.TemporaryDirectory(prefix="heft-harness-") as temporary:
        file = Path(temporary, "rows.jsonl")
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        config = {
            "task": "heft_agree",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"validation": str(file)}, "cache_dir": temporary},
            "validation_split": "validation",
            "output_type": "multiple_choice",
            "doc_to_text": "prompt",
            "doc_to_choice": "choices",
            "doc_to_target": "gold",
            "target_delimiter": "",
            "metric_list": [{"metric": "acc"}],
        }
        tasks = get_task_dict([config], TaskManager(include_defaults=False))
        found = evaluate(lm=model, task_dict=tasks, log_samples=True, bootstrap_iters=0)
    samples = sorted(found["samples"]["heft_agree"], key=lambda sample: int(sample["doc_id"]))
    return [[one[0] for one in sample["resps"]] for sample in samples]
