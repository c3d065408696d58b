"""What a stage writes besides its adapters: predictions, and the sizes of its edits."""

import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch

from heft_pipeline.adapters.adapted import AdaptedModel
from heft_pipeline.adapters.edit_sizes import EditSizes
from heft_pipeline.data.batches import AnsweredPrompt, collate
from heft_pipeline.data.prompts import Task
from heft_pipeline.scoring.score import Scores

#: How many dev examples the sizes of edits are measured on; enough for a mean of norms.
_EDIT_EXAMPLES = 128


def write_predictions(path: Path, task: Task, scores: Scores) -> None:
    """Write ``predictions.parquet``.

    Its columns are ``id``, ``gold``, ``prediction`` (null if several choices are exactly as likely,
    or if generated text is none of them), ``logprob_LABEL`` for each label, and ``credit``: 1 if
    the prediction is right, 0 if it is wrong, and 1/n if it is one of n equally likely ones.

    Args:
        path: The file.
        task: The task.
        scores: The scores of the task's reported split.
    """
    labels = [*task.labels, None]  # index -1 is 'none of them'
    table = pd.DataFrame(
        {
            "id": [e.id for e in task.eval],
            "gold": [labels[i] for i in scores.gold.tolist()],
            "prediction": [labels[i] for i in scores.predictions.tolist()],
        }
    )
    for column, label in enumerate(task.labels):
        table[f"logprob_{label}"] = scores.log_probabilities[:, column].numpy()
    table["credit"] = scores.credit.numpy()
    partial = path.with_suffix(f".{os.getpid()}")
    table.to_parquet(partial, index=False)
    partial.replace(path)


def write_edit_sizes(folder: Path, model: AdaptedModel, task: Task, batch_size: int) -> None:
    """Write ``KIND_edits.csv`` for each trained adapter whose edits can be observed.

    Args:
        folder: The stage's folder.
        model: The model, with its adapters trained.
        task: The task, whose dev examples are read, or training examples if it has none.
        batch_size: Sequences per forward pass.
    """
    answer = task.choices[0][:1]  # an edit of the prompt does not see the answer
    examples = (task.dev or task.train)[:_EDIT_EXAMPLES]
    sequences = [AnsweredPrompt(e.prompt, answer) for e in examples]
    for kind, table in edit_sizes(model, sequences, batch_size).items():
        table.to_csv(folder / f"{kind}_edits.csv", index=False)


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
