"""How much a ReFT adapter changes the hidden states it edits."""

from collections.abc import Sequence

import pandas as pd
import torch

from heft_pipeline.data.batches import AnsweredPrompt, collate
from heft_pipeline.models.adapted import AdaptedModel
from heft_pipeline.models.reft import Unit, position_names

COLUMNS = ["layer", "position", "edit_norm", "hidden_norm", "relative_edit", "examples"]


@torch.no_grad()
def edit_sizes(
    model: AdaptedModel, sequences: Sequence[AnsweredPrompt], batch_size: int
) -> pd.DataFrame | None:
    """Measure the edits of a stage's own ReFT adapter.

    Args:
        model: The model, with the adapter trained.
        sequences: What it reads; the edits are of the prompts.
        batch_size: Sequences a forward pass.

    Returns:
        A row a layer and position (``f1`` is the prompt's first token, ``l1`` its last):
        ``edit_norm``, the mean L2 norm of what is added; ``hidden_norm``, that of the state
        before; ``relative_edit``, the mean of their ratio; ``examples``, how many. None where the
        stage has no ReFT adapter or pyreft's engine makes the edits.
    """
    reft = model.trained_reft
    if reft is None or not sequences:
        return None
    sums: dict[Unit, torch.Tensor] = {}

    def observe(unit: Unit, before: torch.Tensor, after: torch.Tensor) -> None:
        edit, hidden = (after - before).norm(dim=-1), before.norm(dim=-1)
        ratio = edit / hidden.clamp(min=torch.finfo(hidden.dtype).tiny)
        # [3, P], summed in float64 where the device has it.
        total = torch.stack([edit, hidden, ratio]).sum(dim=1).cpu().double()
        sums[unit] = sums.get(unit, torch.zeros_like(total)) + total

    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i].prompt))
    with reft.observed(observe):
        for start in range(0, len(order), batch_size):
            chosen = [sequences[i] for i in order[start : start + batch_size]]
            model.logits(collate(chosen, model.base.pad_token_id).to(model.base.device))
    rows = []
    for unit, total in sums.items():
        names = position_names(reft.spec.positions, unit.end)
        for name, values in zip(names, (total / len(sequences)).T.tolist(), strict=True):
            rows.append([unit.layer, name, *values, len(sequences)])
    return pd.DataFrame(rows, columns=COLUMNS)
