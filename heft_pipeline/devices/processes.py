"""Several processes that train one stage together (torch.distributed through accelerate)."""

import os
from collections.abc import Iterable, Sequence
from typing import Any

import torch


class Ranks:
    """This process's place among the processes that work on a stage.

    Args:
        rank: Its number, from 0; only process 0 writes files and shows progress.
        world: How many processes there are.
        device: Where this process computes.
    """

    def __init__(self, rank: int, world: int, device: torch.device) -> None:
        self.rank, self.world, self.device = rank, world, device

    @property
    def first(self) -> bool:
        """Whether this is process 0."""
        return self.rank == 0

    def share(self, items: Sequence[Any]) -> list[Any]:
        """This process's part of a list: every ``world``-th item, starting with its rank."""
        return list(items[self.rank :: self.world])

    def unshare(self, parts: Sequence[Sequence[Any]]) -> list[Any]:
        """Put the processes' parts, in order of rank, back into one list."""
        whole: list[Any] = [None] * sum(map(len, parts))
        for rank, part in enumerate(parts):
            whole[rank :: self.world] = part
        return whole

    def gather(self, value: Any) -> list[Any]:
        """Collect every process's value, in order of rank, on all processes."""
        if self.world == 1:
            return [value]
        from accelerate.utils import gather_object

        return list(gather_object([value]))

    def from_first(self, value: Any) -> Any:
        """Send process 0's value to all processes."""
        if self.world == 1:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]

    def sum_gradients(
        self, parameters: Iterable[torch.nn.Parameter], *others: torch.Tensor
    ) -> None:
        """Sum gradients over all processes, in place and with a single message.

        Args:
            parameters: The parameters whose gradients are summed; a missing gradient counts as 0.
            *others: Scalars that are summed as well.
        """
        if self.world == 1:
            return
        from accelerate.utils import reduce

        for parameter in (parameters := list(parameters)):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        parts = [p.grad.flatten() for p in parameters if p.grad is not None]
        flat = torch.cat([*parts, *(other.reshape(1).to(parts[0].dtype) for other in others)])
        total = reduce(flat, reduction="sum")
        sizes = [*(part.numel() for part in parts), *(1 for _ in others)]
        pieces = total.split(sizes)
        for parameter, piece in zip(parameters, pieces, strict=False):
            assert parameter.grad is not None
            parameter.grad.copy_(piece.view_as(parameter))
        for other, piece in zip(others, pieces[len(parts) :], strict=True):
            other.copy_(piece.reshape(()))


def start_ranks(device: torch.device) -> Ranks:
    """Join the processes that the environment names (``WORLD_SIZE``, ``RANK``, ``MASTER_ADDR``).

    Args:
        device: Where to compute if there is only one process.

    Returns:
        This process's place; if the environment names no other processes, the only one.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Ranks(0, 1, device)
    from accelerate import PartialState

    state = PartialState(cpu=device.type == "cpu")
    return Ranks(state.process_index, state.num_processes, state.device)
