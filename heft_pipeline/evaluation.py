"""Scoring: which answer choice a model finds most likely after a prompt."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import log_softmax

from heft_pipeline.data.batches import AnsweredPrompt, collate
from heft_pipeline.data.prompts import Example
from heft_pipeline.models.adapted import AdaptedModel
from heft_pipeline.models.base import model_inputs
from heft_pipeline.parallel import Ranks

Choices = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Scores:
    """What a model says of N examples with C choices.

    Attributes:
        log_probabilities: [N, C] float32, of each choice given the prompt (summed over tokens).
        predictions: [N] int64, the chosen choice; -1 where generated text is none of them.
        gold: [N] int64, the right choice.
    """

    log_probabilities: torch.Tensor
    predictions: torch.Tensor
    gold: torch.Tensor

    @property
    def accuracy(self) -> float:
        """The share of examples whose prediction is right."""
        return (self.predictions == self.gold).double().mean().item()

    @property
    def loss(self) -> float:
        """The mean negative log-probability of the right choice, in nats an example."""
        return -self.log_probabilities.gather(1, self.gold[:, None]).double().mean().item()


def score(
    model: AdaptedModel,
    examples: Sequence[Example],
    choices: Choices,
    *,
    batch_size: int,
    mode: str = "logprob",
    advance: Callable[[int], None] = lambda _: None,
    ranks: Ranks | None = None,
) -> Scores:
    """Predict an answer for each example.

    Args:
        model: The model.
        examples: N examples.
        choices: Token ids of the C choices.
        batch_size: Sequences a forward pass; it changes speed only.
        mode: ``logprob``: the choice with the highest log-probability (the first of equals).
            ``generate``: greedy decoding, as in the LoReFT paper; log-probabilities are
            computed all the same.
        advance: Called with the number of examples just scored by this process.
        ranks: The processes that score together, each its part; all get the whole result.

    Returns:
        The scores, in the examples' order.
    """
    gold = torch.tensor([e.gold for e in examples])
    own = ranks.share(examples) if ranks else examples
    table = _log_probabilities(model, own, choices, batch_size, advance)
    predictions = (
        table.argmax(dim=1)
        if mode == "logprob"
        else generated(model, own, choices, batch_size=batch_size)
    )
    if ranks and ranks.world > 1:
        parts = ranks.gather((table.tolist(), predictions.tolist()))
        table = torch.tensor(ranks.unshare([rows for rows, _ in parts]))
        predictions = torch.tensor(ranks.unshare([chosen for _, chosen in parts]))
    return Scores(table, predictions, gold)


@torch.no_grad()
def _log_probabilities(
    model: AdaptedModel,
    examples: Sequence[Example],
    choices: Choices,
    batch_size: int,
    advance: Callable[[int], None],
) -> torch.Tensor:
    """[N, C] log-probabilities; choices of one token each share their prompt's forward pass."""
    table = torch.empty(len(examples), len(choices))
    one_token = all(len(c) == 1 for c in choices)
    per_pass = batch_size if one_token else max(1, batch_size // len(choices))
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].prompt))
    for start in range(0, len(order), per_pass):
        chosen = order[start : start + per_pass]
        answers = choices[:1] if one_token else choices
        sequences = [AnsweredPrompt(examples[i].prompt, a) for i in chosen for a in answers]
        batch = collate(sequences, model.base.pad_token_id).to(model.base.device)
        log_probs = log_softmax(model.logits(batch).float(), dim=-1)
        if one_token:
            ids = torch.tensor([c[0] for c in choices], device=log_probs.device)
            scores = log_probs[:, -1, ids]
        else:
            labels = batch.labels[:, :, None]
            picked = log_probs.gather(2, labels.clamp(min=0)).masked_fill(labels < 0, 0.0)
            scores = picked.sum(dim=(1, 2)).view(len(chosen), len(choices))
        table[chosen] = scores.cpu()
        advance(len(chosen))
    return table


@torch.no_grad()
def generated(
    model: AdaptedModel, examples: Sequence[Example], choices: Choices, *, batch_size: int
) -> torch.Tensor:
    """Decode greedily and look which choice the text begins with.

    Args:
        model: The model.
        examples: N examples.
        choices: Token ids of the choices.
        batch_size: Prompts a forward pass.

    Returns:
        [N] int64 indices of choices; -1 where the text begins with none.
    """
    predictions = torch.full((len(examples),), -1)
    longest = max(map(len, choices))
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].prompt))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        prompts = [AnsweredPrompt(examples[i].prompt, choices[0][:1]) for i in chosen]
        batch = collate(prompts, model.base.pad_token_id).to(model.base.device)
        inputs = model_inputs(model.base.model, batch)
        with model.editing(batch):
            output = model.base.model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                max_new_tokens=longest,
                do_sample=False,
                pad_token_id=model.base.pad_token_id,
            )
        texts = output[:, batch.input_ids.shape[1] :].tolist()
        for i, text in zip(chosen, texts, strict=True):
            for c, choice in enumerate(choices):
                if tuple(text[: len(choice)]) == choice:
                    predictions[i] = c
    return predictions
