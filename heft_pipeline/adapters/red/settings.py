"""The settings of RED."""

from dataclasses import dataclass
from typing import ClassVar

from heft_pipeline.adapters.kind import EditSettings, Reach
from heft_pipeline.declare_settings import setting


@dataclass(frozen=True)
class RedSettings(EditSettings):
    """RED's scales and biases and how they are trained."""

    kind: ClassVar[str] = "red"
    title: ClassVar[str] = "RED"
    init_files: ClassVar[tuple[str, ...]] = ("red.safetensors",)

    learning_rate: float = setting(
        "${tiny_or:${model.id},2e-2,1e-3}", "the highest learning rate", above=0, example=1e-3
    )

    def reach(self) -> Reach:
        """RED edits every position, starting with the first edited layer's feed-forward network."""
        lowest = 0 if self.layers == "all" else min(self.layers)
        return Reach(lowest, None, "RED")
