"""What training and scoring a stage will compute, known before any of it is computed.

Batches follow from the prompts' lengths, the seed and the settings, so the operations are those
that the training loop will count, if no memory runs out and the model can reuse what its settings
allow.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from heft_pipeline.data.batches import AnsweredPrompt, epoch_batches, split_by_tokens
from heft_pipeline.data.prompts import Example, Task
from heft_pipeline.models.forward import Work
from heft_pipeline.models.reuse.start_reuse import Choice
from heft_pipeline.scoring.score import scoring_batches
from heft_pipeline.scoring.settings import EvaluationSettings
from heft_pipeline.training.flops import FlopCounter

#: The token ids that an activation is kept under.
Key = tuple[int, ...]
_NOTHING_REUSED = Choice(0, 0, "")


@dataclass(frozen=True)
class Shape:
    """The shape of a pass over a batch: rows, padded tokens, and projected positions of a row."""

    rows: int
    tokens: int
    answer_tokens: int


@dataclass(frozen=True)
class Steps:
    """How a stage runs the model while it trains.

    Attributes:
        batch_size: Examples per optimiser step.
        seed: The seed of the examples' order.
        most_tokens: The most padded tokens of a pass; 0 for whole batches.
        lowest_layer: The first decoder layer in which training needs a gradient.
        choice: What is reused.
        reuse_tokens: The most padded tokens of a pass that computes what is reused.
        kept_bytes: The bytes that are kept of each token.
        budget: The most bytes to keep.
    """

    batch_size: int
    seed: int
    most_tokens: int
    lowest_layer: int
    choice: Choice
    reuse_tokens: int
    kept_bytes: int
    budget: float


def work_of(choice: Choice, tokens: int, answer_tokens: int) -> Work:
    """How much of a batch a pass of a stage computes.

    Args:
        choice: What the stage reuses.
        tokens: The padded tokens of each sequence.
        answer_tokens: The projected positions of each sequence.
    """
    computed = min(tokens, choice.suffix + answer_tokens - 1) if choice.suffix else tokens
    return Work(computed, reused=tokens - computed, skipped_layers=choice.layers)


class ExpectedWork:
    """The floating-point operations of a stage that is still to be trained.

    Args:
        flops: Counts operations.
        num_layers: How many decoder layers the model has.
        task: The tokenised task.
        steps: How the stage runs the model while it trains.
        evaluation: How answers are scored.

    Attributes:
        shapes: The shapes of all training passes that were counted so far.
    """

    def __init__(
        self,
        flops: FlopCounter,
        num_layers: int,
        task: Task,
        steps: Steps,
        evaluation: EvaluationSettings,
    ) -> None:
        self._flops, self._num_layers, self._task = flops, num_layers, task
        self._steps, self._evaluation = steps, evaluation
        self._answered = [AnsweredPrompt(e.prompt, task.choices[e.gold]) for e in task.train]
        self._kept: set[Key] = set()
        self._epochs: list[float] = []
        self.shapes: set[Shape] = set()
        self.kept_bytes = 0

    def training(self, epochs: int) -> float:
        """The operations of training, as ``result.json`` will have them."""
        once = self._reused  # first, because it says what is kept
        while len(self._epochs) < epochs:
            self._epochs.append(self._epoch(len(self._epochs)))
        return once + sum(self._epochs[:epochs])

    def scoring(self, epochs: int) -> float:
        """The operations of scoring the dev split after each epoch, and then the reported split."""
        dev = self._scored(self._task.dev, self._steps.choice) if epochs else 0.0
        return epochs * dev + self._scored(self._task.eval, _NOTHING_REUSED)

    @cached_property
    def _reused(self) -> float:
        """The operations of computing once what is reused; also notes what will be kept."""
        if not (self._steps.choice.suffix or self._steps.choice.layers):
            return 0.0
        dev = [AnsweredPrompt(e.prompt, (0,)) for e in self._task.dev]
        sequences = [*self._answered, *dev]
        # Reuse is tried on two sequences before it is trusted.
        probe = sorted(set(sequences), key=lambda s: len(s.prompt))[-2:]
        flop = self._computed(map(self._key, probe))
        keys = sorted(set(map(self._key, sequences)), key=lambda key: (len(key), key))
        start, budget = 0, self._steps.budget
        while start < len(keys) and self.kept_bytes < budget:
            stop = start + 1
            while stop < len(keys) and self._fits(len(keys[stop]), stop + 1 - start):
                stop += 1
            flop += self._computed(keys[start:stop])
            for key in keys[start:stop]:
                size = max(0, len(key) - self._steps.choice.suffix) * self._steps.kept_bytes
                if self.kept_bytes + size > budget:
                    return flop
                self._kept.add(key)
                self.kept_bytes += size
            start = stop
        return flop

    def _fits(self, tokens: int, rows: int) -> bool:
        return tokens * rows <= self._steps.reuse_tokens

    def _epoch(self, number: int) -> float:
        """The operations of the steps of an epoch."""
        steps, counted, flop = self._steps, Counter[Shape](), 0.0
        for batch in epoch_batches(self._task.train, steps.batch_size, steps.seed, number):
            sequences = [self._answered[i] for i in batch]
            lengths = [len(s.prompt) + len(s.answer) - 1 for s in sequences]
            for part in split_by_tokens(lengths, steps.most_tokens or sum(lengths) * len(batch)):
                own = sequences[part]
                answer = max(len(s.answer) for s in own)
                counted[Shape(len(own), max(lengths[part]), answer)] += 1
                flop += self._missing(own)
        self.shapes |= set(counted)
        return flop + sum(times * self._step(shape) for shape, times in counted.items())

    def _step(self, shape: Shape) -> float:
        """The operations of the forward and backward pass of a training batch."""
        work = work_of(self._steps.choice, shape.tokens, shape.answer_tokens)
        return self._flops.training(
            shape.rows,
            work.tokens,
            shape.answer_tokens,
            self._steps.lowest_layer,
            reused=work.reused,
            skipped=work.skipped_layers,
        )

    def _forward(self, shape: Shape, choice: Choice) -> float:
        work = work_of(choice, shape.tokens, shape.answer_tokens)
        return self._flops.forward(
            shape.rows,
            work.tokens,
            shape.answer_tokens,
            reused=work.reused,
            skipped=work.skipped_layers,
        )

    def _scored(self, examples: Sequence[Example], choice: Choice) -> float:
        """The operations of scoring examples once."""
        choices, flop = self._task.choices, 0.0
        longest = max(map(len, choices))
        if longest > 1:  # keys and values are needed of all layers
            choice = Choice(choice.suffix, 0, choice.why)
        lengths = [len(e.prompt) for e in examples]
        for batch in scoring_batches(lengths, self._evaluation.batch_size):
            rows, tokens = len(batch), max(lengths[i] for i in batch)
            flop += self._forward(Shape(rows, tokens, 1), choice)
            if choice.suffix or choice.layers:
                flop += self._missing([AnsweredPrompt(examples[i].prompt, (0,)) for i in batch])
            if longest > 1:
                together = rows * len(choices)
                flop += self._flops.forward(together, longest - 1, longest - 1, reused=tokens)
            if self._evaluation.mode == "generate":
                flop += self._flops.forward(rows, tokens, 1)
                flop += (longest - 1) * self._flops.forward(rows, 1, 1, reused=tokens)
        return flop

    def _key(self, sequence: AnsweredPrompt) -> Key:
        """The key that a sequence's activations are kept under, as in ``models.reuse``."""
        whole = self._steps.choice.suffix
        return sequence.prompt if whole else sequence.prompt + sequence.answer[:-1]

    def _missing(self, sequences: Iterable[AnsweredPrompt]) -> float:
        """The operations of computing what a batch reuses and the budget had no room for."""
        if not (self._steps.choice.suffix or self._steps.choice.layers):
            return 0.0
        missing = set(map(self._key, sequences)) - self._kept
        return self._computed(missing) if missing else 0.0

    def _computed(self, keys: Iterable[Key]) -> float:
        """The operations of one pass that computes what is kept for some keys."""
        choice, lengths = self._steps.choice, [len(key) for key in set(keys)]
        tokens = max(max(1, length - choice.suffix) for length in lengths)
        share = (choice.layers or self._num_layers) / self._num_layers
        return share * self._flops.forward(len(lengths), tokens, 1)
