"""Frozen activations, computed once: what no trained parameter of a ReFT stage can change.

With interventions at the last positions of a prompt only, every earlier position's activations
are the same in every epoch: their attention keys and values are kept, and training runs the last
positions and the answer alone. With any interventions, what comes out of the first edited
layer before its edit is the same: it is kept, and training begins there.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import pad

from heft_pipeline.config import parse_positions
from heft_pipeline.data.batches import AnsweredPrompt, Batch, collate
from heft_pipeline.models.base import Base, answer_logits, model_inputs
from heft_pipeline.models.kept import Kept
from heft_pipeline.spec import StageSpec

Tokens = tuple[int, ...]
#: Below this share of all layers, skipping the first ones saves less than it costs in memory.
_SHARE_OF_LAYERS = 0.05
#: Logits may differ by this much, against their scale, from those of recomputing everything.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}
OnPass = Callable[[int, int, int], None]
Editing = Callable[[Batch], AbstractContextManager[None]]
#: Padded tokens a pass that computes reused activations; without gradients, so small.
_TOKENS = 16384


@dataclass(frozen=True)
class Choice:
    """What a stage reuses.

    Attributes:
        suffix: How many last prompt tokens are computed, earlier ones being reused; 0 for all.
        layers: How many decoder layers are skipped, what comes out of them being reused.
        why: The reason, for people.
    """

    suffix: int
    layers: int
    why: str


def choose(stage: StageSpec, num_layers: int) -> Choice:
    """Decide from a stage's spec what can be reused.

    Args:
        stage: The stage.
        num_layers: How many decoder layers the model has.

    Returns:
        The choice, by what is trained and where.
    """
    reft = stage.reft
    if reft is None or stage.lora is not None:
        return Choice(0, 0, "LoRA changes every position's activations")
    if reft.reuse == "off":
        return Choice(0, 0, "reft.reuse=off")
    if reft.engine != "hooks":
        return Choice(0, 0, "pyreft's engine runs whole prompts")
    if any(parent.reft for parent in stage.chain[:-1]):
        return Choice(0, 0, "a parent stage edits the prompt too")
    first, last = parse_positions(reft.positions)
    checkpointing = stage.training is not None and stage.training.gradient_checkpointing
    if not first and not checkpointing:
        return Choice(last, 0, f"{reft.positions} edits the last {last} tokens alone")
    skipped = 1 + (0 if isinstance(reft.layers, str) else min(reft.layers))
    if skipped / num_layers < _SHARE_OF_LAYERS:
        return Choice(0, 0, f"{reft.positions} leaves {skipped} of {num_layers} layers unchanged")
    return Choice(0, skipped, f"nothing is trained in the first {skipped} of {num_layers} layers")


class FrozenPrompts:
    """The keys and values of prompts without their last tokens.

    Args:
        base: The model, with its frozen parents on it.
        suffix: How many last tokens of each prompt are left out.
        kept: Where they are kept.
        on_pass: Told the rows, padded tokens and layers of each forward pass.
    """

    def __init__(
        self,
        base: Base,
        suffix: int,
        kept: Kept,
        on_pass: OnPass = lambda _rows, _tokens, _layers: None,
    ) -> None:
        self.suffix, self.kept = suffix, kept
        self._base, self._on_pass = base, on_pass

    def prepare(
        self,
        sequences: Iterable[AnsweredPrompt],
        tokens: int,
        advance: Callable[[int, int], None],
    ) -> int:
        """Compute and keep prompts.

        Args:
            sequences: What training and the dev split read; repeated prompts count once.
            tokens: Most padded tokens a forward pass.
            advance: Told how many are done, and of how many.

        Returns:
            How many different ones there are.
        """
        keys = sorted({s.prompt for s in sequences}, key=lambda p: (len(p), p))
        self.kept.fill(keys, [len(p) for p in keys], tokens, self._compute, advance)
        return len(keys)

    def logits(self, batch: Batch, editing: Editing) -> torch.Tensor:
        """The logits that predict a batch's answers.

        Args:
            batch: B sequences of at most K answer tokens.
            editing: Makes ReFT's edits to a batch's prompts.

        Returns:
            [B, K, V].
        """
        logits: torch.Tensor = self.output(batch, editing)[0].logits[:, -batch.answer_tokens :]
        return logits

    def output(self, batch: Batch, editing: Editing) -> tuple[Any, torch.Tensor]:
        """The model's output on the last prompt tokens and the answer.

        Args:
            batch: B sequences.
            editing: Makes ReFT's edits to a batch's prompts.

        Returns:
            transformers' output with the whole cache, and the mask [B, T] of what it holds.
        """
        short = suffix_batch(batch, self.suffix, self._base.pad_token_id)
        cache, mask = self.cache([s.prompt for s in batch.sequences])
        whole = torch.cat([mask, short.attention_mask], dim=1)
        inputs = model_inputs(self._base.model, short) | {
            "attention_mask": whole,
            "position_ids": short.position_ids + mask.sum(dim=1, keepdim=True),
            "past_key_values": cache,
            "use_cache": True,
        }
        with editing(short):
            return self._base.model(**inputs), whole

    def cache(self, prompts: Sequence[Tokens]) -> tuple[Any, torch.Tensor]:
        """The kept keys and values of a batch.

        Args:
            prompts: B prompts; those that are not kept are computed now.

        Returns:
            A transformers cache of T positions, padded on the left, and its mask [B, T] int64.
        """
        from transformers.cache_utils import DynamicCache

        states = self.kept.get(prompts, self._compute)
        width = max(s.shape[3] for s in states)
        # [layers, 2, B, heads, T, size]
        together = torch.stack([pad(s, (0, 0, width - s.shape[3], 0)) for s in states], dim=2)
        device = together.device
        lengths = torch.tensor([s.shape[3] for s in states], device=device)
        mask = (torch.arange(width, device=device) >= width - lengths[:, None]).long()
        return DynamicCache([(layer[0], layer[1]) for layer in together]), mask

    @torch.no_grad()
    def _compute(self, prompts: Sequence[Tokens]) -> list[torch.Tensor]:
        """[layers, 2, heads, T, size] of each prompt's T first tokens."""
        heads = [AnsweredPrompt(prompt[: -self.suffix], (0,)) for prompt in prompts]
        batch = collate(heads, self._base.pad_token_id).to(self._base.device)
        rows, tokens = batch.input_ids.shape
        self._on_pass(rows, tokens, len(self._base.layers))
        output = self._base.model(**model_inputs(self._base.model, batch) | {"use_cache": True})
        layers = [
            torch.stack([layer.keys, layer.values]) for layer in output.past_key_values.layers
        ]
        together = torch.stack(layers)
        width = together.shape[4]
        return [
            together[:, :, row, :, width - len(head.prompt) :].contiguous()
            for row, head in enumerate(heads)
        ]


class FrozenLayers:
    """What comes out of the first decoder layers, whose edits, if any, are yet to be made.

    Args:
        base: The model, with its frozen parents on it.
        layers: How many first layers are skipped; the last of them may be edited.
        kept: Where it is kept.
        on_pass: Told the rows, padded tokens and layers of each pass.
    """

    def __init__(
        self,
        base: Base,
        layers: int,
        kept: Kept,
        on_pass: OnPass = lambda _rows, _tokens, _layers: None,
    ) -> None:
        self.layers, self.kept = layers, kept
        self._base, self._on_pass = base, on_pass
        self._in_tuple = False

    def prepare(
        self,
        sequences: Iterable[AnsweredPrompt],
        tokens: int,
        advance: Callable[[int, int], None],
    ) -> int:
        """Compute and keep sequences.

        Args:
            sequences: What training and the dev split read; repeated ones count once.
            tokens: Most padded tokens a forward pass.
            advance: Told how many are done, and of how many.

        Returns:
            How many different ones there are.
        """
        keys = sorted({_inputs(s) for s in sequences}, key=lambda k: (len(k), k))
        self.kept.fill(keys, [len(k) for k in keys], tokens, self._compute, advance)
        return len(keys)

    def logits(self, batch: Batch, editing: Editing) -> torch.Tensor:
        """The logits that predict a batch's answers.

        Args:
            batch: B sequences of at most K answer tokens.
            editing: Makes ReFT's edits to a batch's prompts.

        Returns:
            [B, K, V].
        """
        inputs = model_inputs(self._base.model, batch) | {"inputs_embeds": self.hidden(batch)}
        del inputs["input_ids"]
        with editing(batch), self.skipped():
            logits: torch.Tensor = self._base.model(**inputs).logits[:, -batch.answer_tokens :]
        return logits

    def hidden(self, batch: Batch) -> torch.Tensor:
        """The kept states of a batch.

        Args:
            batch: B sequences of at most T input tokens.

        Returns:
            [B, T, hidden], 0 on padding.
        """
        states = self.kept.get([_inputs(s) for s in batch.sequences], self._compute)
        width = batch.input_ids.shape[1]
        return torch.stack([pad(s, (0, 0, width - s.shape[0], 0)) for s in states])

    @contextmanager
    def skipped(self) -> Iterator[None]:
        """Let the first layers pass on what they are given, in the forward passes inside.

        Yields:
            Nothing.
        """

        def passed_on(hidden_states: torch.Tensor, *_: Any, **__: Any) -> Any:
            return (hidden_states,) if self._in_tuple else hidden_states

        layers = self._base.layers[: self.layers]
        before = [vars(layer).get("forward") for layer in layers]
        for layer in layers:
            layer.forward = passed_on
        try:
            yield
        finally:
            for layer, forward in zip(layers, before, strict=True):
                vars(layer).pop("forward")
                if forward is not None:
                    layer.forward = forward

    @torch.no_grad()
    def _compute(self, keys: Sequence[Tokens]) -> list[torch.Tensor]:
        """[T, hidden] of each input of T tokens."""
        batch = collate([AnsweredPrompt(key, (0,)) for key in keys], self._base.pad_token_id)
        batch = batch.to(self._base.device)
        rows, tokens = batch.input_ids.shape
        self._on_pass(rows, tokens, self.layers)

        def stop(_module: Any, _args: Any, output: Any) -> None:
            self._in_tuple = isinstance(output, tuple)
            raise _Reached(output[0] if self._in_tuple else output)

        handle = self._base.layers[self.layers - 1].register_forward_hook(stop)
        try:
            self._base.model(**model_inputs(self._base.model, batch))
        except _Reached as reached:
            hidden = reached.hidden
        finally:
            handle.remove()
        width = hidden.shape[1]
        return [hidden[row, width - len(key) :].clone() for row, key in enumerate(keys)]


class _Reached(Exception):
    """Ends a forward pass at the layer whose output is wanted."""

    def __init__(self, hidden: torch.Tensor) -> None:
        super().__init__()
        self.hidden = hidden


def start_reuse(
    base: Base,
    editing: Editing,
    stage: StageSpec,
    sequences: Sequence[AnsweredPrompt],
    folder: Path,
    *,
    advance: Callable[[int, int], None],
    on_pass: OnPass,
) -> tuple[FrozenPrompts | FrozenLayers | None, str]:
    """Compute once what no trained parameter can change, where the stage allows it.

    Whether the model gives the same logits that way is seen on two sequences first.

    Args:
        base: The model with the stage's adapters on it.
        editing: Makes ReFT's edits to a batch's prompts.
        stage: The stage.
        sequences: What training and the dev split read.
        folder: Where activations go that memory has no room for.
        advance: Told how many are done, and of how many.
        on_pass: Told the rows, padded tokens and layers of each pass that computes them.

    Returns:
        What is to be used instead of the whole model, or None; and what is said of it.
    """
    choice = choose(stage, len(base.layers))
    nothing = "everything is recomputed: "
    if not (choice.suffix or choice.layers) or not sequences:
        return None, nothing + choice.why
    if choice.suffix and (reason := unsupported(base)):
        return None, nothing + reason
    assert stage.reft is not None and stage.training is not None
    probe = sorted(set(sequences), key=lambda s: len(s.prompt))[-2:]
    batch = collate(probe, base.pad_token_id).to(base.device)
    budget = stage.reft.reuse_budget_gib * 2**30
    kept = Kept(base.device, budget, folder, _operations_a_byte(base, choice))
    found: FrozenPrompts | FrozenLayers = (
        FrozenPrompts(base, choice.suffix, kept, on_pass)
        if choice.suffix
        else FrozenLayers(base, choice.layers, kept, on_pass)
    )
    with torch.no_grad():
        reused = found.logits(batch, editing)
        with editing(batch):
            recomputed = answer_logits(base.model, batch)
    if differs(reused, recomputed):
        return None, f"{nothing}reused activations change the logits of this model"
    asked = stage.training.micro_batch_tokens
    different = found.prepare(sequences, _TOKENS if isinstance(asked, str) else asked, advance)
    size = kept.bytes / 2**30
    return found, f"{len(kept)} of {different} prompts kept in {size:.2f} GiB: {choice.why}"


def _operations_a_byte(base: Base, choice: Choice) -> float:
    """What computing kept activations anew takes, by the weights of the layers they stand for."""
    config = base.model.config.get_text_config()
    layers = base.layers[: choice.layers or None]
    weights = sum(p.numel() for layer in layers for p in layer.parameters())
    width = config.hidden_size
    if choice.suffix:
        heads = config.num_attention_heads
        keys = getattr(config, "num_key_value_heads", None) or heads
        width = 2 * len(layers) * keys * (getattr(config, "head_dim", None) or width // heads)
    return 2.0 * weights / (width * base.model.dtype.itemsize)


def suffix_batch(batch: Batch, suffix: int, pad_token_id: int) -> Batch:
    """The part of a batch that is computed when its prompts' first tokens are reused.

    Args:
        batch: The batch.
        suffix: How many last prompt tokens are left.
        pad_token_id: Fills padding.

    Returns:
        The batch of the last prompt tokens with their answers, on the same device.
    """
    short = [AnsweredPrompt(s.prompt[-suffix:], s.answer) for s in batch.sequences]
    return collate(short, pad_token_id).to(batch.input_ids.device)


def unsupported(base: Base) -> str:
    """Why a model's keys and values cannot be reused.

    Args:
        base: The model.

    Returns:
        The reason, or an empty string.
    """
    from transformers.cache_utils import DynamicLayer

    accepted = inspect.signature(base.model.forward).parameters
    if not {"past_key_values", "position_ids", "logits_to_keep"} <= set(accepted):
        return f"{type(base.model).__name__} takes no cache of keys and values"
    prompt = AnsweredPrompt((base.pad_token_id,) * 2, (0,))
    batch = collate([prompt], base.pad_token_id).to(base.device)
    with torch.no_grad():
        past = base.model(input_ids=batch.input_ids, use_cache=True).past_key_values
    layers = getattr(past, "layers", [])
    plain = len(layers) == len(base.layers) and all(
        type(layer) is DynamicLayer and layer.keys.shape == layer.values.shape for layer in layers
    )
    return "" if plain else f"{type(base.model).__name__} keeps more than keys and values"


def differs(reused: torch.Tensor, recomputed: torch.Tensor) -> bool:
    """Whether logits with reuse are further from those without than rounding explains.

    Args:
        reused: [B, K, V].
        recomputed: The same, by whole prompts.

    Returns:
        True where reuse must not be used.
    """
    scale = recomputed.float().abs().amax().clamp(min=1.0)
    error = (reused.float() - recomputed.float()).abs().amax() / scale
    return bool(error > _TOLERANCE.get(recomputed.dtype, 1e-3))


def _inputs(sequence: AnsweredPrompt) -> Tokens:
    return sequence.prompt + sequence.answer[:-1]
