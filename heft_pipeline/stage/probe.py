"""What a loaded model is tried on before it is trusted, and each plan of adapters on it.

Both take a few forward passes over two short prompts of random tokens.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from heft_pipeline.adapters.adapted import AdaptedModel, adapted
from heft_pipeline.adapters.kind import AdapterSettings
from heft_pipeline.data.batches import AnsweredPrompt, collate
from heft_pipeline.data.prompts import Example
from heft_pipeline.devices.memory import is_out_of_memory
from heft_pipeline.errors import UserError
from heft_pipeline.models.base_model import Base
from heft_pipeline.scoring.score import score
from heft_pipeline.training.loss import answer_loss

Choices = tuple[tuple[int, ...], ...]
#: The lengths of the two prompts; they differ, so that one is padded.
_LENGTHS = (24, 10)
_LONGER = (400, 300)
#: What counts as rounding: a share of the effect of another last token, and nats besides.
_ROUNDING = {torch.float32: (0.001, 1e-4), torch.bfloat16: (0.3, 0.1)}


def probe_base(base: Base, name: str) -> Base:
    """Try whether a model computes what the rest of the code takes for granted.

    Its logits must be finite and must not depend on later tokens. The answers of two prompts of
    different lengths must get the log-probabilities that the model itself gives to each alone;
    if they do not, keys and values are not reused, and then nothing is padded.

    Args:
        base: The model as it was loaded.
        name: What to call it in messages, e.g. ``model.id=FOLDER``.

    Returns:
        The same model, with what it cannot do.

    Raises:
        UserError: The model cannot be used; the message says why, and the way out.
    """
    prompts, choices = _inputs(base)
    with _one_message(f"{name} cannot be run"), torch.no_grad():
        whole = [_plain(base, prompt + choices[0][:1]) for prompt in prompts]
        changed, shorter = _plain(base, prompts[0] + choices[1]), _plain(base, prompts[0])
    if not all(logits.isfinite().all() for logits in whole):
        raise UserError(
            f"{name}: its logits are NaN or infinite on a prompt of random tokens; use "
            "model.dtype=float32, model.attn_implementation=eager, or another checkpoint"
        )
    share, nats = _ROUNDING.get(base.model.dtype, _ROUNDING[torch.bfloat16])
    tolerance = share * _apart(whole[0][-1:], changed[-1:]) + nats
    if max(_apart(whole[0][:-1], other) for other in (changed[:-1], shorter)) > tolerance:
        raise UserError(
            f"{name}: {type(base.model).__name__} is not causal here: tokens that follow a text "
            "change its logits, so the model would see the answer that it is scored on; use a "
            "causal model, or set is_decoder in its config.json if it was trained as one"
        )
    expected = torch.stack([_by_itself(logits, choices) for logits in whole])
    for tried in (base, *_with_less(base)):
        with _one_message(f"{name} cannot be scored"):
            found = _scored(tried, prompts, choices)
        if (found - expected).abs().amax() <= tolerance:
            return tried
    raise UserError(
        f"{name}: the log-probabilities of an answer differ by "
        f"{(found - expected).abs().amax():.2g} nats between one forward pass and another over "
        "the same tokens; use model.dtype=float32 or model.attn_implementation=eager"
    )


def probe_adapters(base: Base, stages: Sequence[Sequence[AdapterSettings]]) -> list[str]:
    """Try whether adapters act on a model and can be trained.

    Args:
        base: The model.
        stages: The adapters of each stage of a chain; those of the last are tried, on top of all
            others.

    Returns:
        What qualifies the adapters, in sentences for people.

    Raises:
        UserError: They cannot be put on the model, or no gradient reaches a part of them.
    """
    if not stages or not stages[-1]:
        return []
    # What no gradient reaches on short prompts may act on longer ones, such as compressed keys.
    found = _tried(base, stages, _LENGTHS)
    if any(one.unexplained for one in found):
        found = _tried(base, stages, _LONGER)
    return [note for one in found for note in _notes(one, type(base.model).__name__)]


@dataclass(frozen=True)
class _Tried:
    """An adapter after one backward pass.

    Attributes:
        settings: Its settings.
        tensors: How many tensors it has.
        without: The names of those that no gradient reached.
        known: The names of those of which that was to be expected.
    """

    settings: AdapterSettings
    tensors: int
    without: tuple[str, ...]
    known: frozenset[str]

    @property
    def unexplained(self) -> bool:
        """Whether a tensor has no gradient for no known reason, or none has one."""
        # A token visits only some of a mixture's experts.
        unknown = [name for name in self.without if name not in self.known and "expert" not in name]
        return bool(unknown) or len(self.without) == self.tensors


def _tried(
    base: Base, stages: Sequence[Sequence[AdapterSettings]], lengths: tuple[int, int]
) -> list[_Tried]:
    """Put the adapters of a chain of stages on a model, and see which gradients arrive."""
    prompts, choices = _inputs(base, lengths)
    sequences = [AnsweredPrompt(p, c) for p, c in zip(prompts, choices, strict=True)]
    batch = collate(sequences, base.pad_token_id).to(base.device)
    with adapted(base, []) as model:
        named = " and ".join(settings.title for settings in stages[-1])
        with _one_message(
            f"{named} cannot be trained on {type(base.model).__name__}; use another kind of "
            "adapter, or other layers or modules"
        ):
            for adapters in stages:
                model.add(adapters)
            _fill_zeros(model)
            loss = answer_loss(model.logits(batch), batch)
            if loss.requires_grad:
                loss.backward()
        return [
            _Tried(
                adapter.settings,
                len(adapter.parameters()),
                tuple(
                    name
                    for name, tensor in adapter.parameters().items()
                    if tensor.grad is None or not bool(tensor.grad.any())
                ),
                adapter.without_effect(len(base.layers)),
            )
            for adapter in model.trained[-len(stages[-1]) :]
        ]


def _notes(tried: _Tried, model: str) -> list[str]:
    """Refuse an adapter with tensors that no gradient reaches, unless it is known why."""
    settings = tried.settings
    if tried.unexplained:
        where = "layers" if settings.edits else "target_modules"
        raise UserError(
            f"{settings.kind}.{where}: no gradient reaches {len(tried.without)} of the "
            f"{tried.tensors} tensors of {settings.title} on {model}, e.g. {tried.without[0]}, so "
            f"they cannot change an answer; leave them out with {settings.kind}.{where}, or use "
            "another kind of adapter"
        )
    if not tried.known.intersection(tried.without):
        return []
    return [
        f"{settings.title}: {len(tried.known)} of its {tried.tensors} tensors edit the last layer "
        "at positions that no answer depends on"
    ]


def _with_less(base: Base) -> Iterator[Base]:
    """The same model with keys and values not reused, and then with nothing padded."""
    model = type(base.model).__name__
    yield dataclasses.replace(base, no_cache=f"{model} continues from a cache differently")
    why = f"padding changes the logits of {model}, so prompts are run in batches of equal length"
    yield dataclasses.replace(base, no_cache=why, no_padding=why)


def _inputs(
    base: Base, lengths: tuple[int, int] = _LENGTHS
) -> tuple[list[tuple[int, ...]], Choices]:
    """Two prompts of random ordinary tokens, and choices of two tokens and of one."""
    config = base.model.config.get_text_config()
    size = min(base.model.get_input_embeddings().weight.shape[0], config.vocab_size)
    special = {base.pad_token_id, *base.tokenizer.all_special_ids}
    limit = getattr(config, "max_position_embeddings", None)
    room = max(2, limit - 2) if limit is not None and limit > 0 else max(lengths)
    ids = torch.randperm(size, generator=torch.Generator().manual_seed(0)).tolist()
    usable = [id for id in ids if id not in special] or ids
    draw: Callable[[int], int] = lambda n: usable[n % len(usable)]  # noqa: E731
    prompts = [
        tuple(draw(31 * row + i) for i in range(min(length, room - row)))
        for row, length in enumerate(lengths)
    ]
    return prompts, ((draw(97), draw(98)), (draw(99),))


def _plain(base: Base, tokens: tuple[int, ...]) -> torch.Tensor:
    """[T, V] logits of one text, as the model itself computes them."""
    ids = torch.tensor([tokens], device=base.device)
    logits: torch.Tensor = base.model(input_ids=ids).logits[0].float()
    return logits


def _by_itself(logits: torch.Tensor, choices: Choices) -> torch.Tensor:
    """[C] log-probabilities of the choices, from the logits of a prompt and one more token."""
    table = logits.log_softmax(dim=-1)
    (first, second), (other,) = choices
    return torch.stack([table[-2, first] + table[-1, second], table[-2, other]]).cpu()


def _scored(base: Base, prompts: Sequence[tuple[int, ...]], choices: Choices) -> torch.Tensor:
    """[2, C] log-probabilities as stages score them; NaN where they are not numbers."""
    examples = [
        Example(str(i), prompt, 0, choices=choices, texts=("",) * len(choices))
        for i, prompt in enumerate(prompts)
    ]
    with adapted(base, []) as model:
        return score(model, examples, batch_size=len(examples), may_be_nan=True).log_probabilities


def _apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """How far apart log-probabilities are: a mean over the vocabulary, at the worst position."""
    difference = (one.log_softmax(dim=-1) - other.log_softmax(dim=-1)).abs()
    return float(difference.mean(dim=-1).amax())


def _fill_zeros(model: AdaptedModel) -> None:
    """Move tensors that start at 0 away from it: those they are multiplied by get no gradient."""
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for adapter in model.trained:
            for parameter in adapter.parameters().values():
                if not parameter.any():
                    parameter.copy_(0.02 * torch.randn(parameter.shape, generator=random))


@contextmanager
def _one_message(what: str) -> Iterator[None]:
    """Turn whatever a model's code raises into one message."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # a model's code can raise anything
        if is_out_of_memory(error):
            raise
        first: Any = (str(error).strip() or "no message").splitlines()[0]
        raise UserError(f"{what}: {type(error).__name__}: {first}") from error
