"""How much an adapter changes the hidden states that it edits."""

from collections.abc import Callable, Sequence

import pandas as pd
import torch

#: Called for each edit with the decoder layer, the names of the P edited positions, and the hidden
#: states before and after the edit, [B, P, hidden] float32.
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
        # [3, P], summed in float64 where the device has it.
        total = torch.stack([edit, hidden, ratio]).sum(dim=1).cpu().double()
        key = (layer, tuple(positions))
        self._sums[key] = self._sums.get(key, torch.zeros_like(total)) + total

    def table(self, examples: int) -> pd.DataFrame:
        """The mean size of the edits at each layer and position.

        Args:
            examples: How many sequences were read.

        Returns:
            One row per layer and position (``f1`` is the prompt's first token, ``l1`` its last).
            ``edit_norm`` is the mean L2 norm of what is added, ``hidden_norm`` that of the state
            before, and ``relative_edit`` the mean of their ratio; ``examples`` is as given.
        """
        rows = [
            [layer, name, *values, examples]
            for (layer, names), total in self._sums.items()
            for name, values in zip(names, (total / examples).T.tolist(), strict=True)
        ]
        return pd.DataFrame(rows, columns=COLUMNS)
