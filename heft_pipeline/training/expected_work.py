"""What training and scoring a stage will compute, known before any of it is computed.

Batches follow from the prompts' lengths, the seed and the settings, so the operations are those
that the training loop will count, if no memory runs out and the model can reuse what its settings
allow.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

from heft_pipeline.data.batches import (
    AnsweredPrompt,
    epoch_batches,
    length_batches,
    split_by_tokens,
)
from heft_pipeline.data.prompts import Example, Task
from heft_pipeline.models.reuse.estimate import (
    Choice,
    KeptSizes,
    earlier_tokens,
    in_kept_order,
    kept_groups,
    kept_key,
    tried_first,
    work_of,
)
from heft_pipeline.scoring.generate import longest_answer
from heft_pipeline.scoring.settings import EvaluationSettings
from heft_pipeline.training.flops import FlopCounter

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
        loss: ``answer`` or ``sequence``.
        group_by_length: Whether batches are made of examples of similar length.
        most_tokens: The most padded tokens of a pass; 0 for whole batches.
        lowest_layer: The first decoder layer in which training needs a gradient.
        kept: What is reused, and the bytes of it.
        reuse_tokens: The most padded tokens of a pass that computes what is reused.
        budget: The most bytes to keep.
    """

    batch_size: int
    seed: int
    loss: str
    group_by_length: bool
    most_tokens: int
    lowest_layer: int
    kept: KeptSizes
    reuse_tokens: int
    budget: float

    @property
    def choice(self) -> Choice:
        """What is reused."""
        return self.kept.choice


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
        keys_values: Whether it is keys and values that are kept.
        kept_bytes: The bytes that are kept; known once training was counted.
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
        self._answered = [AnsweredPrompt(e.prompt, e.answer) for e in task.train]
        self._kept: set[AnsweredPrompt] = set()
        self.keys_values = True
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
    def keys(self) -> list[AnsweredPrompt]:
        """What could be kept, in the order in which it is computed."""
        choice = self._steps.choice
        if not (choice.suffix or choice.layers):
            return []
        dev = [AnsweredPrompt(e.prompt, (0,)) for e in self._task.dev]
        return in_kept_order(kept_key(sequence, choice) for sequence in (*self._answered, *dev))

    @cached_property
    def _reused(self) -> float:
        """The operations of computing once what is reused; also notes what will be kept."""
        steps, keys = self._steps, self.keys
        if not keys:
            return 0.0
        self.keys_values = steps.kept.keeps_keys_values(keys, steps.budget)
        dev = [AnsweredPrompt(e.prompt, (0,)) for e in self._task.dev]
        flop = self._missing(tried_first([*self._answered, *dev]))
        size = partial(steps.kept.bytes, keys_values=self.keys_values)
        for group in kept_groups(keys, size, steps.budget, steps.reuse_tokens):
            flop += self._computed(group)
            self._kept.update(group)
            self.kept_bytes += sum(map(size, group))
        return flop

    def _epoch(self, number: int) -> float:
        """The operations of the steps of an epoch."""
        steps, counted, flop = self._steps, Counter[Shape](), 0.0
        apart = not steps.group_by_length
        for batch in epoch_batches(
            self._task.train,
            steps.batch_size,
            steps.seed,
            number,
            steps.group_by_length,
            with_answers=not self._task.shared,
        ):
            sequences = [self._answered[i] for i in batch]
            if apart:
                sequences = sorted(sequences, key=lambda sequence: sequence.read_length)
            lengths = [sequence.read_length for sequence in sequences]
            limit = steps.most_tokens or sum(lengths) * len(batch)
            similar = apart and not (steps.choice.suffix and self.keys_values)
            for part in split_by_tokens(lengths, limit, similar=similar):
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
            shape.answer_tokens if self._steps.loss == "answer" else work.tokens,
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
        flop = 0.0
        lengths = [len(e.prompt) for e in examples]
        for batch in length_batches(lengths, self._evaluation.batch_size):
            rows, tokens = len(batch), max(lengths[i] for i in batch)
            later = [len(c) - 1 for i in batch for c in examples[i].choices if len(c) > 1]
            own = choice
            if later and choice.layers:  # keys and values are needed of all layers
                own = _NOTHING_REUSED
            flop += self._forward(Shape(rows, tokens, 1), own)
            if own.suffix or own.layers:
                flop += self._missing([AnsweredPrompt(examples[i].prompt, (0,)) for i in batch])
            for length, times in Counter(later).items():
                flop += self._flops.forward(times, length, length, reused=tokens)
            if self._evaluation.mode == "generate":
                written = self._evaluation.max_new_tokens or longest_answer(self._task)
                flop += self._flops.forward(rows, tokens, 1)
                flop += (written - 1) * self._flops.forward(rows, 1, 1, reused=tokens)
        return flop

    def _missing(self, sequences: Iterable[AnsweredPrompt]) -> float:
        """The operations of what a batch reuses beyond what is kept."""
        choice = self._steps.choice
        if not (choice.suffix or choice.layers):
            return 0.0
        keys = [kept_key(sequence, choice) for sequence in sequences]
        missing = set(keys) - self._kept
        flop = self._computed(missing) if missing else 0.0
        if choice.suffix and not self.keys_values:
            flop += self._pass(keys, choice.suffix, self._num_layers - choice.layers)
        return flop

    def _computed(self, keys: Collection[AnsweredPrompt]) -> float:
        """The operations of one pass that computes what is kept for some keys."""
        choice = self._steps.choice
        if choice.suffix and not choice.layers:
            return self._pass(keys, choice.suffix, self._num_layers)
        whole = choice.suffix and self.keys_values
        return self._pass(keys, 0, self._num_layers if whole else choice.layers)

    def _pass(self, keys: Collection[AnsweredPrompt], suffix: int, layers: int) -> float:
        """The operations of a pass over sequences, or over what comes before their last tokens."""
        tokens = max(
            max(1, earlier_tokens(key, suffix)) if suffix else key.read_length for key in keys
        )
        return layers / self._num_layers * self._flops.forward(len(keys), tokens, 1)
