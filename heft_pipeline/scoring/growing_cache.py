"""The keys and values of sequences that are written side by side, each from its own prompt."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

from heft_pipeline.models.forward import ReadPrompts

#: The new columns that are made room for together.
_ROOM = 64


class GrowingCache:
    """Keys and values of up to R sequences, aligned right.

    transformers' own cache copies all keys and values at each step, and its rows stay what they
    were. Here a step writes only its own into room that was made beforehand, the place of a
    sequence that has ended is taken by another one, and new prompts join at any step.

    Args:
        places: R, the most sequences at once.

    Attributes:
        count: How many sequences there are.
    """

    def __init__(self, places: int) -> None:
        self.count = 0
        self._places = places
        self._start = self._end = 0  # the columns in use
        self._mask = torch.zeros(places, 0, dtype=torch.long)
        self._layers: list[_RoomyLayer] = []

    def add(self, read: ReadPrompts) -> None:
        """Add prompts that were read, behind the sequences that there are."""
        rows, width = read.mask.shape
        if not self._layers:
            self._mask = self._mask.to(read.mask.device)
            self._layers = [_RoomyLayer(layer, self._places) for layer in read.cache.layers]
        if width > self._end or self._end == self._mask.shape[1]:
            self._move(width)
        at, columns = slice(self.count, self.count + rows), slice(self._end - width, self._end)
        whole = slice(min(self._start, columns.start) if self.count else columns.start, self._end)
        # What a row had before could be infinite, and a masked infinity still spoils a sum.
        fresh, older = slice(whole.start, columns.start), slice(whole.start, self._start)
        self._mask[at, whole] = 0
        self._mask[at, columns] = read.mask
        self._mask[: self.count, older] = 0
        for own, other in zip(self._layers, read.cache.layers, strict=True):
            for kept, new in ((own.all_keys, other.keys), (own.all_values, other.values)):
                kept[at, :, fresh] = 0
                kept[: self.count, :, older] = 0
                kept[at, :, columns] = new
        self._start = whole.start
        self.count += rows

    def drop(self, ended: Sequence[int]) -> list[int]:
        """Take sequences away; the last ones move to their places.

        Args:
            ended: Their rows.

        Returns:
            The row that each remaining sequence had before.
        """
        gone, count = set(ended), self.count - len(ended)
        order = list(range(count))
        holes = [row for row in order if row in gone]
        movers = [row for row in range(count, self.count) if row not in gone]
        for hole, mover in zip(holes, movers, strict=True):
            order[hole] = mover
        self.count = count
        if holes:
            self._mask[holes] = self._mask[movers]
            columns = slice(self._start, self._end)
            for layer in self._layers:
                for kept in (layer.all_keys, layer.all_values):
                    kept[holes, :, columns] = kept[movers, :, columns]
        if count:
            used = self._mask[:count, self._start : self._end].any(dim=0)
            self._start += int(used.int().argmax())
        return order

    def step(self) -> tuple[Any, torch.Tensor, torch.Tensor]:
        """Make ready for one more token of each of the B sequences.

        Returns:
            The cache to give to the model, the mask [B, T], and the positions [B, 1].
        """
        if self._end == self._mask.shape[1]:
            self._move(0)
        self._mask[: self.count, self._end] = 1
        mask = self._mask[: self.count, self._start : self._end + 1]
        for layer in self._layers:
            layer.show(self.count, self._start, self._end)
        self._end += 1
        cache = DynamicCache()
        cache.layers = self._layers
        return cache, mask, mask.sum(dim=1, keepdim=True) - 1

    def _move(self, width: int) -> None:
        """Move to new room with at least ``width`` columns before the next one."""
        used = self._end - self._start if self.count else 0
        end = max(used, width)
        old, new = slice(self._end - used, self._end), slice(end - used, end)
        mask = self._mask.new_zeros(self._places, end + _ROOM)
        mask[: self.count, new] = self._mask[: self.count, old]
        self._mask = mask
        for layer in self._layers:
            layer.move(self.count, old, new, end + _ROOM)
        self._start, self._end = new.start, end


class _RoomyLayer(DynamicLayer):
    """One layer's keys and values; what is shown of them is what transformers sees.

    Args:
        like: A layer with keys and values of the same kind.
        places: The most sequences.
    """

    def __init__(self, like: Any, places: int) -> None:
        super().__init__()
        self.lazy_initialization(like.keys, like.values)
        self.all_keys = _room(like.keys, places, 0)
        self.all_values = _room(like.values, places, 0)
        self._shown = (0, 0, 0)

    def show(self, count: int, start: int, end: int) -> None:
        """Show the first ``count`` rows of the columns from ``start`` to ``end``."""
        self._shown = (count, start, end)
        self.keys = self.all_keys[:count, :, start:end]
        self.values = self.all_values[:count, :, start:end]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write one token's keys and values behind those that are shown, and show them too."""
        count, start, end = self._shown
        self.all_keys[:count, :, end : end + 1] = key_states
        self.all_values[:count, :, end : end + 1] = value_states
        self.show(count, start, end + 1)
        return self.keys, self.values

    def move(self, count: int, old: slice, new: slice, width: int) -> None:
        """Move columns of the first ``count`` rows to new room of ``width`` columns."""
        for name in ("all_keys", "all_values"):
            kept = getattr(self, name)
            room = _room(kept, len(kept), width)
            room[:count, :, new] = kept[:count, :, old]
            setattr(self, name, room)


def _room(like: torch.Tensor, places: int, width: int) -> torch.Tensor:
    """Zeros for keys or values [places, heads, width, size]."""
    return like.new_zeros(places, like.shape[1], width, like.shape[3])
