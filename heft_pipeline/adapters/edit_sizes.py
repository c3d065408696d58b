"""How much an adapter changes the hidden states that it edits."""

from collections.abc import Callable, Sequence

import pandas as pd
import torch

#: Called for each edit with the decoder layer, the names of the P edited positions, and the hidden
#: states before and after the edit, [B, P, hidden] float32; NaN for a position that is not there.
Observe = Callable[[int, Sequence[str], torch.Tensor, torch.Tensor], None]
COLUMNS = ["layer", "position", "edit_norm", "hidden_norm", "relative_edit", "examples"]


class EditSizes:
    """Sums the sizes of an adapter's edits over forward passes."""

    def __init__(self) -> None:
        self._sums: dict[tuple[int, tuple[str, ...]], torch.Tensor] = {}

    def observe(
        self, layer: int, positions: Sequence[str], before: torch.Tensor, after: torch.Tensor
    ) -> None:
        """Add the edits of one layer in one pass; see :data:`Observe`."""
        edit, hidden = (after - before).norm(dim=-1), before.norm(dim=-1)
        ratio = edit / hidden.clamp(min=torch.finfo(hidden.dtype).tiny)
        there = (~ratio.isnan()).float()
        # [4, P], summed in float64 where the device has it.
        total = torch.stack([edit, hidden, ratio, there]).nansum(dim=1).cpu().double()
        key = (layer, tuple(positions))
        self._sums[key] = self._sums.get(key, torch.zeros_like(total)) + total

    def table(self) -> pd.DataFrame:
        """The mean size of the edits at each layer and position.

        Returns:
            One row per layer and position (``f1`` is the prompt's first token, ``l1`` its last).
            ``edit_norm`` is the mean L2 norm of what is added, ``hidden_norm`` that of the state
            before, and ``relative_edit`` the mean of their ratio; ``examples`` is how many
            sequences have the position.
        """
        rows = [
            [layer, name, *(value / there for value in values), int(there)]
            for (layer, names), total in self._sums.items()
            for name, (*values, there) in zip(names, total.T.tolist(), strict=True)
            if there
        ]
        return pd.DataFrame(rows, columns=COLUMNS)
