"""Scoring: which answer choice a model finds most likely after a prompt."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import log_softmax

from heft_pipeline.adapters.adapted import AdaptedModel
from heft_pipeline.data.answer_text import PLAIN, AnswerText
from heft_pipeline.data.batches import (
    IGNORED_LABEL,
    AnsweredPrompt,
    collate,
    length_batches,
    split_by_tokens,
)
from heft_pipeline.data.prompts import Example, Task
from heft_pipeline.data.settings import DataSettings
from heft_pipeline.devices.memory import in_parts
from heft_pipeline.devices.processes import Ranks
from heft_pipeline.errors import UserError
from heft_pipeline.models.forward import ReadPrompts, cache_name
from heft_pipeline.scoring.generate import Decoding, decoding, generated
from heft_pipeline.scoring.lengths import Lengths, choice_lengths
from heft_pipeline.scoring.settings import EvaluationSettings

#: :func:`score` without what is the same for all of a task's examples.
Scorer = Callable[..., "Scores"]
#: A row of a batch, the tokens of one of its choices, and how many first ones are not scored.
Pair = tuple[int, tuple[int, ...], int]
#: The most logits that a pass over choices computes, and the most padded tokens on a CPU, beyond
#: which they leave its caches.
_LOGITS, _CPU_TOKENS = 2**26, 2048
_NOTHING = float("-inf")


@dataclass(frozen=True)
class Scores:
    """A model's scores for N examples with up to C choices; a written answer counts as one.

    Attributes:
        log_probabilities: [N, C] float32, of each choice given the prompt (summed over tokens);
            -inf where an example has fewer choices.
        lengths: [N, C] float32 each: what log-probabilities can be divided by, by name.
        normalize: The name of the lengths that they are divided by.
        predictions: [N] int64, the predicted choice; -1 if several are exactly as likely, or if
            generated text is none of them. Of a written answer 0 if it is accepted, else -1.
        gold: [N] int64, the correct choice.
        credit: [N] float64, 1 for a right prediction, 0 for a wrong one. Where n choices are
            exactly as likely as each other and the correct one is among them, it is 1/n, which is
            what choosing among them at random would give.
        tied: How many examples have several likeliest choices; 0 where text is generated.
        unmatched: How many generated texts name no choice, or hold no answer.
        texts: What was generated, as text; empty where nothing was.
    """

    log_probabilities: torch.Tensor
    lengths: Lengths
    normalize: str
    predictions: torch.Tensor
    gold: torch.Tensor
    credit: torch.Tensor
    tied: int
    unmatched: int = 0
    texts: tuple[str, ...] = ()

    @property
    def accuracy(self) -> float:
        """The share of examples whose prediction is correct; ties count as what chance gives."""
        return self.credit.mean().item()

    @property
    def accuracies(self) -> dict[str, float]:
        """The accuracy of the likeliest choices, by what log-probabilities are divided by."""
        return {
            name: credit(self.log_probabilities / lengths, self.gold).mean().item()
            for name, lengths in self.lengths.items()
        }

    @property
    def logprob_accuracy(self) -> float:
        """The accuracy of the likeliest choices, whatever the predictions were read from."""
        return self.accuracies[self.normalize]

    @property
    def loss(self) -> float:
        """The mean negative log-probability of the correct choice, in nats per example."""
        return -self.log_probabilities.gather(1, self.gold[:, None]).double().mean().item()


def score(
    model: AdaptedModel,
    examples: Sequence[Example],
    *,
    batch_size: int,
    normalize: str = "none",
    answer: AnswerText = PLAIN,
    decoding: Decoding | None = None,
    advance: Callable[[int], None] = lambda _: None,
    ranks: Ranks | None = None,
    may_be_nan: bool = False,
) -> Scores:
    """Predict an answer for each example.

    Args:
        model: The model.
        examples: N examples with choices.
        batch_size: Prompts per forward pass; it changes only the speed.
        normalize: What a choice's log-probability is divided by; see
            :class:`~heft_pipeline.scoring.settings.EvaluationSettings`.
        answer: How the choices are written that are scored.
        decoding: How text is generated, for predictions that are read from it; log-probabilities
            are computed as well. None: the prediction is the choice with the highest
            log-probability; none if several have it.
        advance: Called with the number of examples that this process has just scored.
        ranks: The processes that score together. Each scores its part; all get the whole result.
        may_be_nan: Whether to return log-probabilities that are NaN.

    Returns:
        The scores, in the examples' order.

    Raises:
        UserError: Log-probabilities are NaN.
    """
    gold = torch.tensor([e.gold for e in examples])
    lengths = choice_lengths(examples, answer)
    own = ranks.share(examples) if ranks else examples
    # Of scoring and generating, the latter takes far longer.
    scored = advance if decoding is None else lambda _: None
    table = _log_probabilities(model, own, lengths["none"].shape[1], batch_size, scored)
    if not may_be_nan and (broken := int(table.isnan().any(dim=1).sum())):
        raise UserError(
            f"the model's log-probabilities of the answers are NaN for {broken} of {len(own)} "
            "prompts; use model.dtype=float32, or another checkpoint"
        )
    texts = [] if decoding is None else generated(model, own, batch_size, decoding, advance)
    if ranks and ranks.world > 1:
        parts = ranks.gather((table.tolist(), texts))
        table = torch.tensor(ranks.unshare([rows for rows, _ in parts]))
        texts = ranks.unshare([written for _, written in parts]) if decoding else []
    if decoding is None:
        compared = table / lengths[normalize]
        chosen = likeliest(compared)
        right, tied, unmatched = credit(compared, gold), int((chosen < 0).sum()), 0
    else:
        read = [decoding.read(text, e) for text, e in zip(texts, examples, strict=True)]
        chosen = torch.tensor([one.choice for one in read])
        right, tied = (chosen == gold).double(), 0
        unmatched = sum(not one.found for one in read)
    return Scores(table, lengths, normalize, chosen, gold, right, tied, unmatched, tuple(texts))


def scorer(task: Task, data: DataSettings, evaluation: EvaluationSettings, seed: int) -> Scorer:
    """How a task's examples are scored: :func:`score` with the settings filled in.

    Args:
        task: The task, tokenised.
        data: Its settings.
        evaluation: How answers are evaluated, with the mode resolved.
        seed: The run's seed.
    """
    return functools.partial(
        score,
        batch_size=evaluation.batch_size,
        normalize=evaluation.normalize,
        answer=AnswerText(evaluation.answer),
        decoding=decoding(task, data, evaluation, seed),
    )


def likeliest(table: torch.Tensor) -> torch.Tensor:
    """The choice with the highest log-probability.

    Args:
        table: [N, C] log-probabilities.

    Returns:
        [N] int64; -1 where several choices have exactly the same one.
    """
    return table.argmax(dim=1).where(_best(table).sum(dim=1) == 1, torch.tensor(-1))


def credit(table: torch.Tensor, gold: torch.Tensor) -> torch.Tensor:
    """How right it is to choose at random among the likeliest choices.

    Args:
        table: [N, C] log-probabilities.
        gold: [N] int64, the correct choice.

    Returns:
        [N] float64: 1 if only the correct choice is the likeliest, 1/n if n choices including it
        have exactly the same log-probability, else 0.
    """
    best = _best(table)
    return best.gather(1, gold[:, None])[:, 0].double() / best.sum(dim=1)


def _best(table: torch.Tensor) -> torch.Tensor:
    return table == table.amax(dim=1, keepdim=True)


@torch.no_grad()
def _log_probabilities(
    model: AdaptedModel,
    examples: Sequence[Example],
    width: int,
    batch_size: int,
    advance: Callable[[int], None],
) -> torch.Tensor:
    """[N, C] log-probabilities; all choices of an example share one pass over its prompt."""
    table = torch.empty(len(examples), width)
    for chosen in length_batches([len(e.prompt) for e in examples], batch_size):
        run = lambda some: _one_pass(model, some, width).cpu()  # noqa: E731
        own = [examples[i] for i in chosen]
        table[chosen] = torch.cat(in_parts(run, own, model.base.device))
        advance(len(chosen))
    return table


def _one_pass(model: AdaptedModel, examples: Sequence[Example], width: int) -> torch.Tensor:
    """[B, C] log-probabilities; -inf beyond an example's choices."""
    prompts = [example.prompt for example in examples]
    batch = collate([AnsweredPrompt(p, (0,)) for p in prompts], model.base.pad_token_id)
    batch = batch.to(model.base.device)
    longer = [
        (row, column)
        for row, example in enumerate(examples)
        for column, choice in enumerate(example.choices)
        if len(choice) > 1
    ]
    if not longer:
        return _first_tokens(model.logits(batch)[:, -1], examples, width)
    read = model.read_prompts(batch)
    if read is not None:
        table = _first_tokens(read.logits, examples, width)
        run = lambda some: _later_tokens(model, read, some)  # noqa: E731
    else:
        table = torch.full((len(examples), width), _NOTHING)
        longer = [(row, c) for row, e in enumerate(examples) for c in range(len(e.choices))]
        table[tuple(zip(*longer, strict=True))] = 0.0
        run = lambda some: _each_by_itself(model, prompts, some)  # noqa: E731
    # Those of similar lengths together, so that little is padded.
    longer.sort(key=lambda at: len(examples[at[0]].choices[at[1]]))
    pairs = [
        (row, examples[row].choices[column], examples[row].unscored[column])
        for row, column in longer
    ]
    own = 0 if read is not None else batch.input_ids.shape[1]
    lengths = [own + len(choice) for _, choice, _ in pairs]
    for part in split_by_tokens(lengths, _most_tokens(model), similar=True):
        table[tuple(zip(*longer[part], strict=True))] += run(pairs[part]).to(table.device)
    return table


def _most_tokens(model: AdaptedModel) -> int:
    """The most padded tokens of one pass over choices."""
    base = model.base
    positions = max(1, _LOGITS // base.model.config.get_text_config().vocab_size)
    return min(positions, _CPU_TOKENS) if base.device.type == "cpu" else positions


def _first_tokens(logits: torch.Tensor, examples: Sequence[Example], width: int) -> torch.Tensor:
    """[B, C] log-probabilities of the choices' first tokens, from logits [B, V]."""
    first = [[choice[0] for choice in example.choices] for example in examples]
    ids = torch.tensor([[*one, *[IGNORED_LABEL] * (width - len(one))] for one in first])
    ids = ids.to(logits.device)
    found = log_softmax(logits.float(), dim=-1).gather(1, ids.clamp(min=0))
    given = [[*(n > 0 for n in e.unscored), *[False] * (width - len(e.choices))] for e in examples]
    found = found.masked_fill(torch.tensor(given, device=logits.device), 0.0)
    return found.masked_fill(ids < 0, _NOTHING)


def _later_tokens(model: AdaptedModel, read: ReadPrompts, pairs: Sequence[Pair]) -> torch.Tensor:
    """[P] summed log-probabilities of all tokens but the first, continuing from the prompts."""
    device, width = read.mask.device, max(len(choice) for _, choice, _ in pairs) - 1
    # Padding goes on the right, since later tokens change nothing before them.
    padded = torch.tensor([[*c, *[IGNORED_LABEL] * (width + 1 - len(c))] for _, c, _ in pairs])
    labels = padded[:, 1:].to(device)
    rows = torch.tensor([row for row, _, _ in pairs], device=device)
    mask = read.mask[rows]
    output = model.base.model(
        input_ids=padded[:, :-1].clamp(min=0).to(device),
        attention_mask=torch.cat([mask, (labels != IGNORED_LABEL).long()], dim=1),
        position_ids=mask.sum(dim=1, keepdim=True) + torch.arange(width, device=device),
        use_cache=True,
        logits_to_keep=width,
        **{cache_name(model.base.model): _selected(read.cache, rows)},
    )
    given = torch.tensor([own - 1 for _, _, own in pairs], device=device)
    return _picked(output.logits, _scored(labels, given))


def _scored(labels: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
    """Labels [P, K] without the first ``given`` [P] of each row."""
    columns = torch.arange(labels.shape[1], device=labels.device)
    return labels.masked_fill(columns < given[:, None], IGNORED_LABEL)


def _selected(cache: Any, rows: torch.Tensor) -> Any:
    """A cache of some prompts, some of them several times."""
    from transformers.cache_utils import DynamicCache

    found = DynamicCache()
    for number, layer in enumerate(cache.layers):
        found.update(layer.keys[rows], layer.values[rows], number)
    return found


def _each_by_itself(
    model: AdaptedModel, prompts: Sequence[tuple[int, ...]], pairs: Sequence[Pair]
) -> torch.Tensor:
    """[P] log-probabilities where a prompt's keys and values cannot be shared."""
    sequences = [AnsweredPrompt(prompts[row], choice) for row, choice, _ in pairs]
    batch = collate(sequences, model.base.pad_token_id).to(model.base.device)
    before = batch.answer_tokens - torch.tensor([len(choice) - own for _, choice, own in pairs])
    labels = _scored(batch.labels, before.to(model.base.device))
    return _picked(model.logits(batch), labels)


def _picked(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """[B] summed log-probabilities of labels [B, K] under logits [B, K, V]."""
    log_probs = log_softmax(logits.float(), dim=-1)
    wanted = labels[:, :, None]
    picked = log_probs.gather(2, wanted.clamp(min=0)).masked_fill(wanted < 0, 0.0)
    return picked.sum(dim=(1, 2))
