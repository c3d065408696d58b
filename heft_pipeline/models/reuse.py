"""Prompts' frozen parts, computed once: keys and values that no trained parameter can change.

Interventions at the last positions of a prompt leave every earlier position's activations to the
frozen weights alone, so they are the same in every epoch. Their attention keys and values
are computed once a prompt and kept; training then runs the last positions and the answer only.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import pad

from heft_pipeline.config import parse_positions
from heft_pipeline.data.batches import AnsweredPrompt, Batch, collate
from heft_pipeline.models.base import Base
from heft_pipeline.spec import StageSpec

Prompt = tuple[int, ...]
#: Shares of what is free that kept activations may take.
_OF_GPU, _OF_RAM = 0.5, 0.5
#: Reading from a file at about 2 GB/s against computing at about 2e14 operations a second.
_FILE_BYTES_A_SECOND, _GPU_OPERATIONS_A_SECOND = 2e9, 2e14
#: Logits may differ by this much from those of recomputing before reuse is refused.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}


@dataclass(frozen=True)
class Choice:
    """Whether a stage reuses frozen activations.

    Attributes:
        suffix: How many last prompt tokens are recomputed; 0: everything is.
        why: The reason, for people.
    """

    suffix: int
    why: str


def choose(stage: StageSpec) -> Choice:
    """Decide from a stage's spec what can be reused.

    Args:
        stage: The stage.

    Returns:
        The choice, by what is trained and where.
    """
    reft = stage.reft
    if reft is None or stage.lora is not None:
        return Choice(0, "LoRA changes every position's activations")
    first, last = parse_positions(reft.positions)
    if reft.reuse == "off":
        return Choice(0, "reft.reuse=off")
    if reft.engine != "hooks":
        return Choice(0, "pyreft's engine runs whole prompts")
    if stage.training is not None and stage.training.gradient_checkpointing:
        return Choice(0, "training.gradient_checkpointing computes layers without a cache")
    if first:
        return Choice(0, f"{reft.positions} edits the prompt's first tokens, on which all depend")
    if any(parent.reft for parent in stage.chain[:-1]):
        return Choice(0, "a parent stage edits the prompt too")
    return Choice(last, f"{reft.positions} edits the last {last} tokens alone")


class FrozenPrompts:
    """The keys and values of prompts without their last tokens.

    Args:
        base: The model, with its frozen parents on it.
        suffix: How many last tokens of each prompt are left out.
        budget: Most bytes that are kept; the rest is computed again each time.
        folder: Where a file goes when memory is short; None for nowhere.
        on_pass: Told the rows and padded tokens of each forward pass.
    """

    def __init__(
        self,
        base: Base,
        suffix: int,
        budget: float,
        folder: Path | None,
        on_pass: Callable[[int, int], None] = lambda _rows, _tokens: None,
    ) -> None:
        self.suffix = suffix
        self._on_pass = on_pass
        self._base = base
        self._budget, self._folder = budget, folder
        self._kept: dict[Prompt, torch.Tensor] = {}
        self._file_at = 0
        self._gpu_left, self._ram_left = _free_bytes(base.device)
        self.bytes_kept = 0

    def __len__(self) -> int:
        """How many prompts are kept."""
        return len(self._kept)

    def prepare(
        self, prompts: Iterable[Prompt], tokens: int, advance: Callable[[int, int], None]
    ) -> None:
        """Compute and keep prompts, in an order and grouping that prompts alone decide.

        Args:
            prompts: What training and the dev split read; repeated ones count once.
            tokens: Most padded tokens a forward pass.
            advance: Told how many are done, and of how many.
        """
        todo = sorted(set(prompts), key=lambda p: (len(p), p))
        start = 0
        while start < len(todo) and self.bytes_kept < self._budget:
            stop = start + 1
            while stop < len(todo) and len(todo[stop]) * (stop + 1 - start) <= tokens:
                stop += 1
            group = todo[start:stop]
            for prompt, states in zip(group, self._compute(group), strict=True):
                if self.bytes_kept + states.nbytes > self._budget or not self._keep(prompt, states):
                    return
            start = stop
            advance(start, len(todo))

    def cache(self, prompts: Sequence[Prompt]) -> tuple[Any, torch.Tensor]:
        """The kept keys and values of a batch.

        Args:
            prompts: B prompts; those that are not kept are computed now.

        Returns:
            A transformers cache of T positions, padded on the left, and its mask [B, T] int64.
        """
        from transformers.cache_utils import DynamicCache

        missing = [p for p in dict.fromkeys(prompts) if p not in self._kept]
        found = dict(zip(missing, self._compute(missing), strict=True)) if missing else {}
        states = [self._kept[p] if p in self._kept else found[p] for p in prompts]
        width = max(s.shape[3] for s in states)
        device = self._base.device
        # [layers, 2, B, heads, T, size]
        together = torch.stack(
            [pad(s.to(device, non_blocking=True), (0, 0, width - s.shape[3], 0)) for s in states],
            dim=2,
        )
        lengths = torch.tensor([s.shape[3] for s in states], device=device)
        mask = (torch.arange(width, device=device) >= width - lengths[:, None]).long()
        return DynamicCache([(layer[0], layer[1]) for layer in together]), mask

    @torch.no_grad()
    def _compute(self, prompts: Sequence[Prompt]) -> list[torch.Tensor]:
        """[layers, 2, heads, T, size] of each prompt's T first tokens."""
        heads = [AnsweredPrompt(prompt[: -self.suffix], (0,)) for prompt in prompts]
        batch = collate(heads, self._base.pad_token_id).to(self._base.device)
        self._on_pass(*batch.input_ids.shape)
        output = self._base.model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            position_ids=batch.position_ids,
            use_cache=True,
            logits_to_keep=1,
        )
        layers = [
            torch.stack([layer.keys, layer.values]) for layer in output.past_key_values.layers
        ]
        together = torch.stack(layers)
        width = together.shape[4]
        return [
            together[:, :, row, :, width - len(head.prompt) :].contiguous()
            for row, head in enumerate(heads)
        ]

    def _keep(self, prompt: Prompt, states: torch.Tensor) -> bool:
        size = states.nbytes
        if self._base.device.type == "cuda" and size <= self._gpu_left:
            self._gpu_left -= size
        elif size <= self._ram_left:
            self._ram_left -= size
            states = states.cpu()
        elif self._folder is not None and self._file_pays(states):
            states = self._to_file(states)
        else:
            return False
        self._kept[prompt] = states
        self.bytes_kept += size
        return True

    def _file_pays(self, states: torch.Tensor) -> bool:
        """Whether reading from a file takes less time than computing again."""
        if self._base.device.type != "cuda":
            return True
        tokens = states.shape[3]
        weights = sum(p.numel() for layer in self._base.layers for p in layer.parameters())
        computing = 2.0 * weights * tokens / _GPU_OPERATIONS_A_SECOND
        return states.nbytes / _FILE_BYTES_A_SECOND < computing

    def _to_file(self, states: torch.Tensor) -> torch.Tensor:
        assert self._folder is not None
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / "frozen_prompts.bin"
        raw = states.cpu().view(torch.uint8).numpy()
        with path.open("r+b" if self._file_at else "wb") as file:
            file.seek(self._file_at)
            file.write(raw.tobytes())
        mapped = np.memmap(path, np.uint8, "c", offset=self._file_at, shape=raw.shape)
        self._file_at += raw.nbytes
        # A view of the file: its pages are read when they are used.
        return torch.from_numpy(mapped).view(states.dtype)


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
    import inspect

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


def _free_bytes(device: torch.device) -> tuple[float, float]:
    gpu = 0.0
    if device.type == "cuda":
        gpu = _OF_GPU * torch.cuda.mem_get_info(device)[0]
    import psutil  # accelerate brings it

    return gpu, _OF_RAM * psutil.virtual_memory().available
