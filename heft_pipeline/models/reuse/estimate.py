"""What reused activations take, in bytes and in repeated work, estimated from a model's shape."""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from heft_pipeline.data.batches import AnsweredPrompt, split_by_tokens
from heft_pipeline.models.forward import Work

#: The sequences that are computed together: few, because a group is computed again as a whole where
#: there is no room, and enough to keep a GPU busy.
_GROUP = 16


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
class KeptSizes:
    """The bytes of what can be kept of a prompt.

    Attributes:
        choice: What is reused.
        layers: How many decoder layers the model has.
        pairs: The bytes of a token's keys and values in the layers above the skipped ones.
        states: The bytes of a layer's output for a token.
    """

    choice: Choice
    layers: int
    pairs: int
    states: int

    def bytes(self, sequence: AnsweredPrompt, keys_values: bool) -> int:
        """What is kept of a sequence.

        Args:
            sequence: The sequence.
            keys_values: Whether keys and values are kept, with the skipped layers' output for
                the later positions, instead of their output for all positions.
        """
        read = sequence.read_length
        if not (keys_values and self.choice.suffix):
            return read * self.states
        earlier = earlier_tokens(sequence, self.choice.suffix)
        later = (read - earlier) * self.states if self.choice.layers else 0
        return earlier * self.pairs + later

    def keeps_keys_values(self, sequences: Iterable[AnsweredPrompt], room: float) -> bool:
        """Whether keeping keys and values leaves less to compute in an epoch.

        What is not kept is computed at each use, through all layers; from kept output, keys and
        values are computed through the layers above.

        Args:
            sequences: The sequences; equal ones are kept once.
            room: The bytes that there is room for.
        """
        if not self.choice.suffix or not self.choice.layers:
            return bool(self.choice.suffix)
        different = set(sequences)
        with_pairs, with_states = (
            min(1.0, room / max(1, sum(self.bytes(one, keep) for one in different)))
            for keep in (True, False)
        )
        above = self.layers - self.choice.layers
        recomputed = (1 - with_states) * self.layers + with_states * above
        return (1 - with_pairs) * self.layers <= recomputed


def kept_sizes(config: Any, layers: int, itemsize: int, choice: Choice) -> KeptSizes:
    """The sizes for a model.

    Args:
        config: The model's transformers config.
        layers: How many decoder layers it has.
        itemsize: The bytes of a number in the model's dtype.
        choice: What is reused.
    """
    text = config.get_text_config()
    width = int(text.hidden_size)
    heads = _number(text, "num_attention_heads")
    groups = _number(text, "num_key_value_heads") or heads
    size = _number(text, "head_dim") or (width // heads if heads else 0)
    pairs = 2 * groups * size * itemsize * (layers - choice.layers)
    # A model without attention keeps other things than keys and values, and is not asked for them.
    return KeptSizes(choice, layers, pairs or width * itemsize, width * itemsize)


def _number(config: Any, name: str) -> int:
    """A number in a configuration; 0 if there is none, or none that holds for all layers."""
    try:
        return int(getattr(config, name, None) or 0)
    except (RuntimeError, TypeError):  # transformers' answer for what differs by layer
        return 0


def earlier_tokens(sequence: AnsweredPrompt, suffix: int) -> int:
    """How many of a prompt's tokens come before the last ones that are computed every time."""
    return max(0, len(sequence.prompt) - suffix)


def kept_key(sequence: AnsweredPrompt, choice: Choice) -> AnsweredPrompt:
    """What a sequence's activations are kept under: the part of it that they depend on.

    The skipped layers' output covers the answer's read tokens too; keys and values do not.
    """
    if not choice.suffix:
        return AnsweredPrompt(sequence.prompt + sequence.answer[:-1], (0,))
    answer = sequence.answer[:-1] if choice.layers else ()
    return AnsweredPrompt(sequence.prompt, (*answer, 0))


def work_of(choice: Choice, tokens: int, answer_tokens: int) -> Work:
    """How much of a batch a pass of a stage computes.

    Args:
        choice: What the stage reuses.
        tokens: The padded tokens of each sequence.
        answer_tokens: The projected positions of each sequence.
    """
    computed = min(tokens, choice.suffix + answer_tokens - 1) if choice.suffix else tokens
    return Work(computed, reused=tokens - computed, skipped_layers=choice.layers)


def in_kept_order(keys: Iterable[AnsweredPrompt]) -> list[AnsweredPrompt]:
    """Different keys in the order in which what is kept under them is computed, shortest first."""
    return sorted(set(keys), key=lambda key: (key.read_length, key.prompt, key.answer))


def kept_groups(
    keys: Sequence[AnsweredPrompt],
    size: Callable[[AnsweredPrompt], int],
    budget: float,
    tokens: int,
) -> Iterator[tuple[AnsweredPrompt, ...]]:
    """The groups in which what is within a budget is computed.

    Args:
        keys: Different keys in the order of :func:`in_kept_order`.
        size: The bytes that are kept of a key.
        budget: The most bytes to keep.
        tokens: The most padded tokens in one pass.

    Yields:
        The first keys that the budget has room for, cut into groups.
    """
    within = keys[: bisect_right(list(accumulate(map(size, keys))), budget)]
    for part in split_by_tokens([key.read_length for key in within], tokens, similar=True):
        for start in range(part.start, part.stop, _GROUP):
            yield tuple(within[start : min(start + _GROUP, part.stop)])


def tried_first(sequences: Iterable[AnsweredPrompt]) -> list[AnsweredPrompt]:
    """The sequences that reuse is tried on before it is trusted: the two longest prompts'."""
    return sorted(set(sequences), key=lambda sequence: len(sequence.prompt))[-2:]


def in_gib(size: float) -> str:
    """A number of bytes for people, e.g. ``11.9 GiB``."""
    return f"{size / 2**30:.3g} GiB"


def why_outputs(sizes: KeptSizes, sequences: Iterable[AnsweredPrompt], room: float) -> str:
    """Why the output of the skipped layers is kept and not keys and values, for people.

    Args:
        sizes: The sizes for the model.
        sequences: The sequences; equal ones are kept once.
        room: The bytes that there is room for.
    """
    needed = sum(sizes.bytes(one, True) for one in set(sequences))
    return (
        f"kept is the output of layer {sizes.choice.layers - 1} for all tokens, from which the "
        f"layers above compute keys and values at each use, because these would take "
        f"{in_gib(needed)}, and there is room for {in_gib(room)}"
    )
