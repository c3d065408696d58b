"""The peers' side: pyreft's trainer, PEFT with transformers' trainer, pyreft's generation.

They are used as their documentation shows; ``benchmarks/README.md`` says what had to be added for
current versions of the libraries.
"""

import io
import tempfile
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForCausalLM,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from benchmarks.own import input_tokens
from benchmarks.piece import Measured, Piece, composed
from heft_pipeline.adapters.lora.settings import LoraSettings
from heft_pipeline.adapters.reft.settings import ReftSettings
from heft_pipeline.data.batches import epoch_batches
from heft_pipeline.data.prompts import Example, Task
from heft_pipeline.devices.memory import peak_mb, reset_peak
from heft_pipeline.devices.resolve import resolve_device
from heft_pipeline.models.base_model import load_tokenizer, quieten
from heft_pipeline.models.decoder import decoder_layers
from heft_pipeline.plan.stage_spec import StageSpec
from heft_pipeline.stage.cached_inputs import cached_task
from heft_pipeline.training.flops import FlopCounter

with redirect_stdout(io.StringIO()):  # pyvene prints advice about an optional package
    import pyreft
    from pyreft.dataset import get_intervention_locations
    from pyreft.reft_trainer import make_data_collator, make_dataloader

#: The batch size of pyreft's examples/loreft/compute_metrics.py.
GENERATE_BATCH = 4


class EpochTimes(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """The wall time of each epoch of a transformers trainer."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._since = device, 0.0
        self.seconds: list[float] = []

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        self._since = self._now()

    def on_epoch_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(self._now() - self._since)

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


class Shapes:
    """A collator that remembers the shapes of its batches.

    Args:
        collator: The collator that makes the batches.
    """

    def __init__(self, collator: Any) -> None:
        self._collator = collator
        self.seen: list[tuple[int, int]] = []

    def __call__(self, instances: Any) -> Any:
        """Collate."""
        batch = self._collator(instances)
        rows, tokens = batch["input_ids"].shape
        self.seen.append((rows, tokens))
        return batch


class OwnBatches:
    """The batches of this project's epochs, with a new epoch at each pass.

    Args:
        task: The task.
        batch_size: Examples per batch.
        seed: The stage's seed.
    """

    def __init__(self, task: Task, batch_size: int, seed: int) -> None:
        self._of = lambda epoch: epoch_batches(task.train, batch_size, seed, epoch)
        self._epoch = 0

    def __len__(self) -> int:
        return len(self._of(0))

    def __iter__(self) -> Iterator[list[int]]:
        self._epoch += 1
        return iter(self._of(self._epoch - 1))


class LossLog:
    """A mixin for trainers: records each step's loss at full precision, and fixes the batches."""

    step_losses: list[float]
    batches: "OwnBatches"

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the trainer's own loss and record it."""
        loss = super().compute_loss(*args, **kwargs)  # type: ignore[misc]
        self.step_losses.append(loss.item())
        return loss

    def get_train_dataloader(self) -> Any:
        """A loader of the batches in ``batches``."""
        trainer: Any = self
        return DataLoader(
            trainer.train_dataset, batch_sampler=self.batches, collate_fn=trainer.data_collator
        )


class CurrentReftTrainer(pyreft.ReftTrainerForCausalLM):  # type: ignore[misc, unused-ignore]
    """pyreft's trainer, for a transformers version that passes ``num_items_in_batch``."""

    def compute_loss(
        self, intervenable: Any, inputs: Any, return_outputs: bool = False, **_: Any
    ) -> Any:
        """Compute pyreft's loss."""
        return super().compute_loss(intervenable, inputs, return_outputs)


class CheckedReftTrainer(LossLog, CurrentReftTrainer):
    """pyreft's trainer for comparing losses."""


class CheckedTrainer(LossLog, Trainer):  # type: ignore[misc, unused-ignore]
    """transformers' trainer for comparing losses."""


def train(piece: Piece) -> Measured:
    """Train with a peer's trainer.

    Args:
        piece: A piece whose ``work`` is ``reft`` (pyreft) or ``lora`` (PEFT).
    """
    quieten()
    stage = composed(piece).last
    device, tokenizer, task, model = _loaded(piece, stage)
    flops = FlopCounter(model, decoder_layers(model)[1])
    tokenizer.padding_side = "right"
    reset_peak(device)
    torch.manual_seed(stage.seed)
    (adapter,) = stage.adapters
    make = _peft if isinstance(adapter, LoraSettings) else _pyreft
    peer = make(stage, model, tokenizer, task)
    batches = OwnBatches(task, piece.batch_size, stage.seed)
    shapes, clock = Shapes(peer.collator), EpochTimes(device)
    with tempfile.TemporaryDirectory(dir=piece.workdir) as folder:
        trainer = (peer.checked if piece.losses else peer.trainer)(
            model=peer.model,
            args=_arguments(stage, peer.learning_rate, len(batches), device, folder),
            train_dataset=peer.rows,
            data_collator=shapes,
            processing_class=tokenizer,
            callbacks=[clock],
        )
        if piece.losses:
            trainer.step_losses, trainer.batches = [], batches
        with redirect_stdout(io.StringIO()):  # it prints losses
            trainer.train()
    return Measured(
        dtype=piece.dtype,
        epoch_seconds=clock.seconds,
        examples=len(task.train),
        tokens=input_tokens(task),
        peak_memory_mb=peak_mb(device),
        flop=sum(flops.training(b, t, t, peer.lowest_layer) for b, t in shapes.seen),
        losses=trainer.step_losses if piece.losses else [],
    )


@dataclass(frozen=True)
class Peer:
    """The inputs of a trainer.

    Attributes:
        model: The model with a new adapter.
        rows: The training rows.
        collator: Makes batches of the rows.
        trainer: The trainer's class.
        checked: The same class with :class:`LossLog`.
        learning_rate: The adapter's learning rate.
        lowest_layer: The first decoder layer with a trained part.
    """

    model: Any
    rows: list[dict[str, Any]]
    collator: Any
    trainer: Any
    checked: Any
    learning_rate: float
    lowest_layer: int


def _peft(stage: StageSpec, model: Any, tokenizer: Any, task: Task) -> Peer:
    import peft

    (lora,) = stage.adapters
    assert isinstance(lora, LoraSettings)
    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        task_type="CAUSAL_LM",
    )
    return Peer(
        model=peft.get_peft_model(model, config),
        rows=[_row(task, e) for e in task.train],
        collator=DataCollatorForSeq2Seq(tokenizer, model=model, padding="longest"),
        trainer=Trainer,
        checked=CheckedTrainer,
        learning_rate=lora.learning_rate,
        lowest_layer=0,
    )


def _pyreft(stage: StageSpec, model: Any, tokenizer: Any, task: Task) -> Peer:
    return Peer(
        model=_reft_model(stage, model),
        rows=[_reft_row(task, e, stage, model, tokenizer, True) for e in task.train],
        collator=make_data_collator(tokenizer, model),
        trainer=CurrentReftTrainer,
        checked=CheckedReftTrainer,
        learning_rate=_reft(stage).learning_rate,
        lowest_layer=1,
    )


def _arguments(
    stage: StageSpec, learning_rate: float, steps: int, device: torch.device, folder: str
) -> Any:
    training, schedule = stage.training, stage.adapters[0]
    assert training is not None
    return TrainingArguments(
        output_dir=folder,
        num_train_epochs=schedule.epochs,
        per_device_train_batch_size=schedule.batch_size,
        learning_rate=learning_rate,
        weight_decay=0.0,
        lr_scheduler_type=training.lr_scheduler,
        warmup_steps=round(schedule.warmup_ratio * schedule.epochs * steps),
        max_grad_norm=training.max_grad_norm,
        optim="adamw_torch",
        logging_steps=training.log_every_steps,
        save_strategy="no",
        report_to="none",
        remove_unused_columns=False,
        dataloader_pin_memory=device.type == "cuda",
        disable_tqdm=True,
        use_cpu=device.type == "cpu",
        seed=stage.seed,
    )


@torch.no_grad()
def generate(piece: Piece) -> Measured:
    """Evaluate as pyreft's ``examples/loreft/compute_metrics.py`` does: greedy generation.

    The validation split is decoded once, after a warm-up batch.

    Args:
        piece: A piece whose ``work`` is ``generate``.
    """
    quieten()
    stage = composed(piece).last
    device, tokenizer, task, model = _loaded(piece, stage)
    tokenizer.padding_side = "left"
    torch.manual_seed(stage.seed)
    reft_model = _reft_model(stage, model)
    reft_model.eval()
    rows = [_reft_row(task, e, stage, model, tokenizer, False) for e in task.eval]
    collator = make_data_collator(tokenizer, model)
    new_tokens = piece.max_new_tokens or max(map(len, task.choices)) + 1

    def decoded(some: list[dict[str, Any]]) -> list[int]:
        chosen = []
        for inputs in make_dataloader(some, GENERATE_BATCH, collator, shuffle=False):
            inputs = {k: v.to(device) for k, v in inputs.items() if v is not None}
            # The collator's padding comes before the row's own first padding token.
            padding = inputs["attention_mask"].argmax(dim=1) - 1
            places = inputs["intervention_locations"].permute(1, 0, 2) + padding[None, :, None]
            _, output = reft_model.generate(
                base={k: inputs[k] for k in ("input_ids", "attention_mask")},
                unit_locations={"sources->base": (None, places.tolist())},
                intervene_on_prompt=True,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
                max_new_tokens=new_tokens,
                do_sample=False,
            )
            tokenizer.batch_decode(output, skip_special_tokens=True)
            texts = output[:, inputs["input_ids"].shape[1] :].tolist()
            chosen += [_choice(task, text) for text in texts]
        return chosen

    decoded(rows[:GENERATE_BATCH])
    reset_peak(device)
    started = time.perf_counter()
    predictions = decoded(rows)
    seconds = time.perf_counter() - started
    return Measured(
        dtype=piece.dtype,
        epoch_seconds=[seconds],
        examples=len(rows),
        tokens=sum(len(e.prompt) for e in task.eval),
        peak_memory_mb=peak_mb(device),
        predictions=predictions,
        new_tokens=new_tokens,
    )


def _loaded(piece: Piece, stage: StageSpec) -> tuple[torch.device, Any, Task, Any]:
    device = resolve_device(stage.device)
    tokenizer = load_tokenizer(stage.model)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    task = cached_task(stage)
    model = AutoModelForCausalLM.from_pretrained(
        stage.model.id, dtype=getattr(torch, piece.dtype), use_safetensors=True
    )
    return device, tokenizer, task, model.to(device)


def _reft_model(stage: StageSpec, model: Any) -> Any:
    reft = _reft(stage)
    representations = [
        {
            "layer": layer,
            "component": "block_output",
            "low_rank_dimension": reft.rank,
            "intervention": pyreft.LoreftIntervention(
                embed_dim=model.config.hidden_size,
                low_rank_dimension=reft.rank,
                dropout=reft.dropout,
                dtype=model.dtype,
            ),
        }
        for layer in range(model.config.num_hidden_layers)
    ]
    return pyreft.get_reft_model(model, pyreft.ReftConfig(representations=representations))


def _reft(stage: StageSpec) -> ReftSettings:
    (reft,) = stage.adapters
    assert isinstance(reft, ReftSettings)
    return reft


def _row(task: Task, example: Example) -> dict[str, Any]:
    answer = task.choices[example.gold]
    ids = [*example.prompt, *answer]
    labels = [-100] * len(example.prompt) + list(answer)
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}


def _reft_row(
    task: Task, example: Example, stage: StageSpec, model: Any, tokenizer: Any, answered: bool
) -> dict[str, Any]:
    """A row as pyreft's ``ReftRawDataset`` makes it, with one padding token before its prompt."""
    places = get_intervention_locations(
        last_position=len(example.prompt),
        positions=_reft(stage).positions,
        num_interventions=model.config.num_hidden_layers,
        share_weights=True,
        pad_mode="first",
    )
    row = _row(task, example)
    length = len(row["input_ids"]) if answered else len(example.prompt)
    made = {
        "input_ids": [tokenizer.pad_token_id, *row["input_ids"][:length]],
        "attention_mask": [0, *row["attention_mask"][:length]],
        "intervention_locations": [[place + 1 for place in layer] for layer in places],
    }
    return made | ({"labels": [-100, *row["labels"]]} if answered else {})


def _choice(task: Task, text: list[int]) -> int:
    for index, choice in enumerate(task.choices):
        if tuple(text[: len(choice)]) == choice:
            return index
    return -1
