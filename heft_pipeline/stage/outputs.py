"""What a stage writes besides its adapters: predictions, and the sizes of its edits."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from heft_pipeline.adapters.adapted import AdaptedModel
from heft_pipeline.adapters.edit_sizes import EditSizes
from heft_pipeline.data.batches import AnsweredPrompt, collate
from heft_pipeline.data.prompts import Task
from heft_pipeline.data.settings import DataSettings
from heft_pipeline.files.replaced import replaced
from heft_pipeline.scoring.extraction import extraction
from heft_pipeline.scoring.score import Scores

#: How many dev examples the sizes of edits are measured on; enough for a mean of norms.
_EDIT_EXAMPLES = 128


def write_predictions(path: Path, data: DataSettings, task: Task, scores: Scores) -> None:
    """Write ``predictions.parquet``.

    Its columns are ``id``, ``gold``, ``prediction`` (null if several choices are exactly as likely,
    or if generated text is none of them), and ``credit``: 1 if the prediction is right, 0 if it is
    wrong, and 1/n if it is one of n equally likely ones. Choices that all rows share have a column
    ``logprob_LABEL`` for each label. Choices that rows have of their own are called by letters,
    and a row has lists of their ``logprobs``, ``tokens`` and ``bytes`` (lengths). A written answer
    has the ``logprob`` of the accepted one, ``gold`` and ``prediction`` hold the parts of the texts
    that count, and ``text`` what was written. Generated text is in ``text``, too.

    Args:
        path: The file.
        data: The task's settings.
        task: The task.
        scores: The scores of the task's reported split.
    """
    columns = _written(data, task, scores) if data.written else _chosen(task, scores)
    table = pd.DataFrame({"id": [e.id for e in task.eval], **columns})
    if scores.texts:
        table["text"] = list(scores.texts)
    table["credit"] = scores.credit.numpy()
    with replaced(path) as partial:
        table.to_parquet(partial, index=False)


def _chosen(task: Task, scores: Scores) -> dict[str, Any]:
    labels = [*task.labels, None]  # index -1 is 'none of them'
    found: dict[str, Any] = {
        "gold": [labels[i] for i in scores.gold.tolist()],
        "prediction": [labels[i] for i in scores.predictions.tolist()],
    }
    if task.shared:
        log_probabilities = scores.log_probabilities.T.numpy()
        return found | {
            f"logprob_{label}": own
            for label, own in zip(task.labels, log_probabilities, strict=True)
        }
    lists = {
        "logprobs": scores.log_probabilities,
        "tokens": scores.lengths["token"].int(),
        "bytes": scores.lengths["byte"].int(),
    }
    counts = [len(example.choices) for example in task.eval]
    return found | {
        name: [row[:count].numpy() for row, count in zip(values, counts, strict=True)]
        for name, values in lists.items()
    }


def _written(data: DataSettings, task: Task, scores: Scores) -> dict[str, Any]:
    read = extraction(data)
    return {
        "gold": [read.of(example.texts[0]) or example.texts[0] for example in task.eval],
        "prediction": [read.of(text) for text in scores.texts],
        "logprob": scores.log_probabilities[:, 0].numpy(),
    }


def write_edit_sizes(folder: Path, model: AdaptedModel, task: Task, batch_size: int) -> None:
    """Write ``KIND_edits.csv`` for each trained adapter whose edits can be observed.

    Args:
        folder: The stage's folder.
        model: The model, with its adapters trained.
        task: The task, whose dev examples are read, or training examples if it has none.
        batch_size: Sequences per forward pass.
    """
    examples = (task.dev or task.train)[:_EDIT_EXAMPLES]
    # An edit of the prompt does not see the answer.
    sequences = [AnsweredPrompt(e.prompt, e.answer[:1]) for e in examples]
    for kind, table in edit_sizes(model, sequences, batch_size).items():
        with replaced(folder / f"{kind}_edits.csv") as partial:
            table.to_csv(partial, index=False)


@torch.no_grad()
def edit_sizes(
    model: AdaptedModel, sequences: Sequence[AnsweredPrompt], batch_size: int
) -> dict[str, pd.DataFrame]:
    """Measure how much the trained adapters change the hidden states that they edit.

    Args:
        model: The model, with its adapters trained.
        sequences: The sequences that it reads; their prompts are edited.
        batch_size: Sequences per forward pass.

    Returns:
        For each kind whose edits can be observed, the table of
        :meth:`~heft_pipeline.adapters.edit_sizes.EditSizes.table`.
    """
    found = {}
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i].prompt))
    for adapter in model.trained:
        sizes = EditSizes()
        observed = adapter.observed(sizes.observe)
        if observed is None or not sequences:
            continue
        with observed:
            for start in range(0, len(order), batch_size):
                chosen = [sequences[i] for i in order[start : start + batch_size]]
                model.logits(collate(chosen, model.base.pad_token_id).to(model.base.device))
        found[adapter.settings.kind] = sizes.table()
    return found
