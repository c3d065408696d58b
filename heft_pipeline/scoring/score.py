"""Scoring: which answer choice a model finds most likely after a prompt."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import log_softmax

from heft_pipeline.adapters.adapted import AdaptedModel
from heft_pipeline.data.batches import IGNORED_LABEL, AnsweredPrompt, collate, far_longer
from heft_pipeline.data.prompts import Example
from heft_pipeline.devices.memory import in_parts
from heft_pipeline.devices.processes import Ranks
from heft_pipeline.errors import UserError
from heft_pipeline.models.forward import ReadPrompts, cache_name
from heft_pipeline.scoring.generate import Decoding, generated

Choices = tuple[tuple[int, ...], ...]
Prompt = tuple[int, ...]


@dataclass(frozen=True)
class Scores:
    """A model's scores for N examples with C choices.

    Attributes:
        log_probabilities: [N, C] float32, of each choice given the prompt (summed over tokens).
        predictions: [N] int64, the predicted choice; -1 if several are exactly as likely, or if
            generated text is none of them.
        gold: [N] int64, the correct choice.
        credit: [N] float64, 1 for a right prediction, 0 for a wrong one. Where n choices are
            exactly as likely as each other and the correct one is among them, it is 1/n, which is
            what choosing among them at random would give.
        tied: How many examples have several likeliest choices; 0 where text is generated.
        unmatched: How many generated texts name no choice.
    """

    log_probabilities: torch.Tensor
    predictions: torch.Tensor
    gold: torch.Tensor
    credit: torch.Tensor
    tied: int
    unmatched: int = 0

    @property
    def accuracy(self) -> float:
        """The share of examples whose prediction is correct; ties count as what chance gives."""
        return self.credit.mean().item()

    @property
    def logprob_accuracy(self) -> float:
        """The accuracy of the likeliest choices, whatever the predictions were read from."""
        return credit(self.log_probabilities, self.gold).mean().item()

    @property
    def loss(self) -> float:
        """The mean negative log-probability of the correct choice, in nats per example."""
        return -self.log_probabilities.gather(1, self.gold[:, None]).double().mean().item()


def score(
    model: AdaptedModel,
    examples: Sequence[Example],
    choices: Choices,
    *,
    batch_size: int,
    decoding: Decoding | None = None,
    advance: Callable[[int], None] = lambda _: None,
    ranks: Ranks | None = None,
    may_be_nan: bool = False,
) -> Scores:
    """Predict an answer for each example.

    Args:
        model: The model.
        examples: N examples.
        choices: Token ids of the C choices.
        batch_size: Prompts per forward pass; it changes only the speed.
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
    own = ranks.share(examples) if ranks else examples
    table = _log_probabilities(model, own, choices, batch_size, advance)
    if not may_be_nan and (broken := int(table.isnan().any(dim=1).sum())):
        raise UserError(
            f"the model's log-probabilities of the answers are NaN for {broken} of {len(own)} "
            "prompts; use model.dtype=float32, or another checkpoint"
        )
    predictions = (
        likeliest(table)
        if decoding is None
        else generated(
            model, own, scoring_batches([len(e.prompt) for e in own], batch_size), decoding
        )
    )
    if ranks and ranks.world > 1:
        parts = ranks.gather((table.tolist(), predictions.tolist()))
        table = torch.tensor(ranks.unshare([rows for rows, _ in parts]))
        predictions = torch.tensor(ranks.unshare([chosen for _, chosen in parts]))
    none = int((predictions < 0).sum())
    if decoding is None:
        return Scores(table, predictions, gold, credit(table, gold), tied=none)
    right = (predictions == gold).double()
    return Scores(table, predictions, gold, right, tied=0, unmatched=none)


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
    choices: Choices,
    batch_size: int,
    advance: Callable[[int], None],
) -> torch.Tensor:
    """[N, C] log-probabilities; all choices of an example share one pass over its prompt."""
    table = torch.empty(len(examples), len(choices))
    for chosen in scoring_batches([len(e.prompt) for e in examples], batch_size):
        table[chosen] = _scored(model, [examples[i].prompt for i in chosen], choices)
        advance(len(chosen))
    return table


def scoring_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Batches of similar length, to keep padding low.

    Args:
        lengths: The prompts' lengths in tokens.
        batch_size: The most prompts in a batch.

    Returns:
        Lists of indices into ``lengths``.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        batch = batches[-1] if batches else []
        padded = batch and far_longer(lengths[index], lengths[batch[0]], len(batch))
        if not batch or len(batch) >= batch_size or padded:
            batches.append([])
        batches[-1].append(index)
    return batches


def _scored(model: AdaptedModel, prompts: Sequence[Prompt], choices: Choices) -> torch.Tensor:
    """[B, C] log-probabilities on the CPU."""
    run = lambda some: _one_pass(model, some, choices).cpu()  # noqa: E731
    return torch.cat(in_parts(run, prompts, model.base.device))


def _one_pass(model: AdaptedModel, prompts: Sequence[Prompt], choices: Choices) -> torch.Tensor:
    batch = collate([AnsweredPrompt(p, (0,)) for p in prompts], model.base.pad_token_id)
    batch = batch.to(model.base.device)
    if all(len(c) == 1 for c in choices):
        return _first_tokens(model.logits(batch)[:, -1], choices)
    read = model.read_prompts(batch)
    if read is None:
        return _each_by_itself(model, prompts, choices)
    return _first_tokens(read.logits, choices) + _later_tokens(model, read, choices)


def _first_tokens(logits: torch.Tensor, choices: Choices) -> torch.Tensor:
    """[B, C] log-probabilities of the choices' first tokens, from logits [B, V]."""
    ids = torch.tensor([c[0] for c in choices], device=logits.device)
    return log_softmax(logits.float(), dim=-1)[:, ids]


def _later_tokens(model: AdaptedModel, read: ReadPrompts, choices: Choices) -> torch.Tensor:
    """[B, C] summed log-probabilities of all tokens but the first, continuing from the prompts."""
    prompts, device = read.mask.shape[0], read.mask.device
    width = max(map(len, choices)) - 1
    # Padding goes on the right, since later tokens change nothing before them.
    padded = torch.tensor([[*c, *[IGNORED_LABEL] * (width + 1 - len(c))] for c in choices])
    labels = padded[:, 1:].to(device).repeat(prompts, 1)
    own = (labels != IGNORED_LABEL).long()
    mask = read.mask.repeat_interleave(len(choices), dim=0)
    read.cache.batch_repeat_interleave(len(choices))
    output = model.base.model(
        input_ids=padded[:, :-1].clamp(min=0).to(device).repeat(prompts, 1),
        attention_mask=torch.cat([mask, own], dim=1),
        position_ids=mask.sum(dim=1, keepdim=True) + torch.arange(width, device=device),
        use_cache=True,
        logits_to_keep=width,
        **{cache_name(model.base.model): read.cache},
    )
    return _picked(output.logits, labels).view(prompts, len(choices))


def _each_by_itself(
    model: AdaptedModel, prompts: Sequence[Prompt], choices: Choices
) -> torch.Tensor:
    """[B, C] log-probabilities where a prompt's keys and values cannot be shared."""
    sequences = [AnsweredPrompt(p, c) for p in prompts for c in choices]
    batch = collate(sequences, model.base.pad_token_id).to(model.base.device)
    return _picked(model.logits(batch), batch.labels).view(len(prompts), len(choices))


def _picked(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """[B] summed log-probabilities of labels [B, K] under logits [B, K, V]."""
    log_probs = log_softmax(logits.float(), dim=-1)
    wanted = labels[:, :, None]
    picked = log_probs.gather(2, wanted.clamp(min=0)).masked_fill(wanted < 0, 0.0)
    return picked.sum(dim=(1, 2))
