"""What reused activations take, in bytes and in repeated work, estimated from a model's shape."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from heft_pipeline.data.batches import AnsweredPrompt


@dataclass(frozen=True)
class Choice:
    """What a stage reuses.

    Attributes:
        suffix: How many of a prompt's last tokens are computed while the earlier ones are reused;
            0 if all are computed.
        layers: How many decoder layers are skipped because their output is reused.
        why: The reason, for people.
    """

    suffix: int
    layers: int
    why: str


@dataclass(frozen=True)
class Sizes:
    """The bytes of what could be kept of sequences, and how much of it there is room for.

    Attributes:
        keys_values: Keys and values of the earlier positions in the layers above, with the skipped
            layers' output for the later positions.
        outputs: The skipped layers' output for all positions; 0 if no layer is skipped.
    """

    keys_values: float
    outputs: float

    def keeps_keys_values(self, room: float, layers: int, skipped: int) -> bool:
        """Whether keeping keys and values leaves less to compute in an epoch.

        What is not kept is computed at each use, through all layers; from kept output, keys and
        values are computed through the layers above.

        Args:
            room: The bytes that there is room for.
            layers: How many decoder layers the model has.
            skipped: How many of them are skipped.
        """
        if not self.outputs:
            return True
        kept = min(1.0, room / self.keys_values) if self.keys_values else 1.0
        other = min(1.0, room / self.outputs)
        return (1 - kept) * layers <= other * (layers - skipped) + (1 - other) * layers


def sizes(
    config: Any, layers: int, itemsize: int, choice: Choice, sequences: Sequence[AnsweredPrompt]
) -> Sizes:
    """Estimate what the activations of sequences take.

    Args:
        config: The model's transformers config.
        layers: How many decoder layers it has.
        itemsize: The bytes of a number in the model's dtype.
        choice: What is reused.
        sequences: The sequences; equal ones are kept once.
    """
    text = config.get_text_config()
    width = text.hidden_size
    heads = text.num_attention_heads
    groups = getattr(text, "num_key_value_heads", None) or heads
    size = getattr(text, "head_dim", None) or width // heads
    different = set(sequences)
    read = sum(one.read_length for one in different)
    earlier = sum(max(0, len(one.prompt) - choice.suffix) for one in different)
    states = width * itemsize
    pairs = 2 * groups * size * itemsize * (layers - choice.layers)
    if not choice.layers:
        return Sizes(earlier * pairs, 0)
    return Sizes(earlier * pairs + (read - earlier) * states, read * states)


def in_gib(size: float) -> str:
    """A number of bytes for people, e.g. ``11.9 GiB``."""
    return f"{size / 2**30:.3g} GiB"
