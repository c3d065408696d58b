"""The training settings that all kinds of adapter have in common."""

from dataclasses import dataclass
from typing import Any

from heft_pipeline.declare_settings import Settings, setting
from heft_pipeline.errors import UserError


@dataclass(frozen=True)
class TrainingSettings(Settings):
    """How stages are trained, whichever adapters they train."""

    lr_scheduler: str = setting(
        "linear",
        "how the learning rate falls after the warm-up",
        choices=("linear", "cosine", "constant"),
    )
    max_grad_norm: float = setting(1.0, "the norm that gradients are clipped to", above=0)
    group_by_length: bool = setting(
        True, "put examples of similar length into the same batches; false: at random"
    )
    selection: str = setting(
        "best",
        "the epoch that is kept: the one with the best dev accuracy, or the last",
        choices=("best", "last"),
    )
    early_stopping_patience: int | None = setting(
        None, "stop after this many epochs without a better dev accuracy", above=0, example=3
    )
    micro_batch_tokens: Any = setting(
        16384,
        "a batch with more padded tokens is accumulated in parts; auto: whole batches; both are "
        "halved when memory runs out",
        above=0,
        whole=True,
        choices=("auto",),
    )
    gradient_checkpointing: bool = setting(False, "use less memory, for a third more time")
    compile: bool = setting(
        False, "fuse decoder layers with torch.compile; takes half a minute more at the start"
    )
    log_every_steps: int = setting(
        10, "optimiser steps between two step lines of metrics.jsonl", above=0, identity=False
    )
    checkpoint_every_seconds: float = setting(
        300.0, "seconds between two checkpoints within an epoch", above=0, identity=False
    )

    def check(self, key: str) -> None:
        """Refuse early stopping on a dev split that is not read."""
        if self.early_stopping_patience and self.selection == "last":
            raise UserError(
                f"{key}.early_stopping_patience stops on the dev split, which "
                f"{key}.selection=last does not read; use {key}.selection=best"
            )
