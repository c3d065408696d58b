"""The settings of evaluation."""

from dataclasses import dataclass

from heft_pipeline.declare_settings import Settings, setting


@dataclass(frozen=True)
class EvaluationSettings(Settings):
    """How answers are scored."""

    mode: str = setting(
        "logprob",
        "logprob compares the choices' log-probabilities; generate decodes greedily, as the "
        "LoReFT paper does",
        choices=("logprob", "generate"),
    )
    batch_size: int = setting(
        64, "prompts per forward pass; changes only the speed", above=0, identity=False
    )
