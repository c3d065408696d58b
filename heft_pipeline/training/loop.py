"""The training loop of one stage."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from heft_pipeline.data.batches import AnsweredPrompt, Batch, epoch_batches
from heft_pipeline.data.prompts import Example, Task
from heft_pipeline.errors import Interrupted, NonFiniteLoss
from heft_pipeline.evaluation import score
from heft_pipeline.memory import peak_mb
from heft_pipeline.metrics import MetricsLog
from heft_pipeline.models.adapted import AdaptedModel
from heft_pipeline.parallel import Ranks
from heft_pipeline.spec import StageSpec
from heft_pipeline.training import checkpoint
from heft_pipeline.training.accumulate import accumulate
from heft_pipeline.training.flops import FlopCounter

log = logging.getLogger(__name__)
LAST, BEST, CONSTANTS = "last.safetensors", "best.safetensors", "constants.safetensors"


class Progress(Protocol):
    """Told how far a stage is."""

    def __call__(self, phase: str, done: int, total: int, note: str = "") -> None:
        """Take a state.

        Args:
            phase: ``train``, ``dev`` or ``eval``.
            done: Steps (``train``) or examples done.
            total: Of how many.
            note: The last loss or accuracy, for people.
        """


@dataclass
class Counters:
    """How far training is and what it has cost; all of it survives a resume.

    Attributes:
        step: Optimiser steps done.
        epoch: Whole epochs done.
        best_accuracy: The highest dev accuracy so far; -1 before the first.
        best_epoch: Its epoch, from 1.
        train_seconds: Wall time of optimiser steps.
        dev_seconds: Wall time of dev evaluations.
        train_flop: Floating-point operations of training.
        examples: Examples trained on.
        epoch_loss: Summed loss of this epoch's examples so far.
        epoch_examples: Their number.
        resumes: How often training went on from a checkpoint.
        micro_batch_tokens: Most padded tokens a pass, as it turned out; 0 for whole batches.
        reuse_seconds: Of ``train_seconds``, what computing reused activations took.
    """

    step: int = 0
    epoch: int = 0
    best_accuracy: float = -1.0
    best_epoch: int = 0
    train_seconds: float = 0.0
    dev_seconds: float = 0.0
    train_flop: float = 0.0
    examples: int = 0
    epoch_loss: float = 0.0
    epoch_examples: int = 0
    resumes: int = 0
    reuse_seconds: float = 0.0
    micro_batch_tokens: int = 0


class Trainer:
    """Trains a stage's adapter; see :meth:`run`.

    Args:
        stage: The stage; not ``base``.
        model: The model with the stage's adapter on it.
        task: The tokenised task.
        flops: Counts operations; made before adapters were put on.
        folder: The stage's folder: ``checkpoint/`` and ``metrics.jsonl`` go there.
        should_stop: Asked before each step; true makes the loop write a checkpoint and raise.
        progress: Told about each step.
        ranks: The processes that train the stage together; each takes its part of every batch.
    """

    def __init__(
        self,
        stage: StageSpec,
        model: AdaptedModel,
        task: Task,
        flops: FlopCounter,
        folder: Path,
        should_stop: Callable[[], bool],
        progress: Progress,
        ranks: Ranks,
    ) -> None:
        if stage.training is None:
            raise ValueError(f"a stage of kind {stage.kind} has nothing to train")
        self._stage, self._spec, self._model, self._task = stage, stage.training, model, task
        self._flops, self._folder = flops, folder / "checkpoint"
        self._should_stop, self._progress, self._ranks = should_stop, progress, ranks
        self._device = model.base.device
        self._named = {
            f"{group}/{name}": parameter
            for group, parameters in model.parameters().items()
            for name, parameter in parameters.items()
        }
        self._names: dict[torch.Tensor, str] = {p: name for name, p in self._named.items()}
        self._optimizer = self._new_optimizer()
        self._steps_per_epoch = len(self._batches(0))
        self._total_steps = self._steps_per_epoch * self._spec.epochs
        self._scheduler = self._new_scheduler()
        self._trained_layers = _trained_layers(stage, model, list(self._named))
        asked = self._spec.micro_batch_tokens
        self._counters = Counters(micro_batch_tokens=0 if isinstance(asked, str) else asked)
        # Kept on the device: reading them at each step would stall a GPU.
        self._healthy = torch.ones((), dtype=torch.bool, device=self._device)
        self._epoch_loss = torch.zeros((), dtype=torch.float64, device=self._device)
        if ranks.world > 1:  # equal initial weights, but dropout masks of each process's own
            torch.manual_seed(stage.seed * ranks.world + ranks.rank + 1)
        self.reuse, self._scoring = "", False
        self._resume()
        self._stop = False
        if ranks.first:
            self._metrics = MetricsLog(folder / "metrics.jsonl", keep_steps=self._counters.step)
        self._saved_at = time.monotonic()

    def run(self) -> Counters:
        """Train to the end, from the last checkpoint where there is one.

        AdamW with a linear warm-up and the configured decay. The loss of a batch is the mean
        cross-entropy of its answer tokens, however it is split into micro-batches. After each
        epoch the dev split is scored; with ``selection=best`` the adapter of the best epoch
        (the first of equals) is the model's at the end.

        Returns:
            What was done.

        Raises:
            NonFiniteLoss: A loss or gradient was NaN or infinite.
            Interrupted: ``should_stop`` said so; a checkpoint was written.
        """
        spec = self._spec
        self._reuse()
        while self._counters.epoch < spec.epochs and not self._out_of_patience():
            self._run_epoch()
        if spec.selection == "best":
            self._ranks.gather(None)  # process 0 has written it
            tensors, _ = checkpoint.read(self._folder / BEST)
            self._load_parameters(tensors)
        self._counters.train_flop = sum(self._ranks.gather(self._counters.train_flop))
        return self._counters

    def _reuse(self) -> None:
        """Compute once what no epoch changes; its time and operations are training's.

        A resumed stage does it again, which, like other work that was lost, is not counted.
        """
        counted = self._counters.resumes == 0

        def count(rows: int, tokens: int, layers: int) -> None:
            if counted and not self._scoring:
                share = layers / len(self._model.base.layers)
                self._counters.train_flop += share * self._flops.forward(rows, tokens, 1)

        started = time.perf_counter()
        trained = [AnsweredPrompt(e.prompt, self._task.choices[e.gold]) for e in self._task.train]
        dev = [AnsweredPrompt(e.prompt, (0,)) for e in self._task.dev]  # no answer is read
        self.reuse = self._model.reuse(
            self._stage,
            [*trained, *dev],
            self._folder,
            advance=lambda done, total: self._progress("reuse", done, total),
            on_pass=count,
        )
        if counted:
            self._counters.reuse_seconds = time.perf_counter() - started
            self._counters.train_seconds += self._counters.reuse_seconds
        counted = True  # what finds no room is computed at each use
        log.info("%s: %s", self._stage.label, self.reuse)

    def _run_epoch(self) -> None:
        counters = self._counters
        batches = self._batches(counters.epoch)
        first = counters.step - counters.epoch * self._steps_per_epoch
        for indices in batches[first:]:
            if self._stop or (self._ranks.world == 1 and self._should_stop()):
                self._check_health()
                self._save()
                raise Interrupted(f"{self._stage.label} stopped at step {counters.step}")
            self._step([self._task.train[i] for i in indices])
            if self._checkpoint_is_due():
                self._check_health()
                self._save()
        self._check_health()
        self._end_epoch()

    def _step(self, examples: Sequence[Example]) -> None:
        started = time.perf_counter()
        self._model.training(True)
        answers = [self._task.choices[e.gold] for e in examples]
        answer_tokens = sum(map(len, answers))
        pairs = zip(examples, answers, strict=True)
        sequences = self._ranks.share([AnsweredPrompt(e.prompt, answer) for e, answer in pairs])
        total, self._counters.micro_batch_tokens = accumulate(
            self._model,
            sequences,
            answer_tokens,
            self._counters.micro_batch_tokens,
            self._named.values(),
            self._count,
        )
        self._sum_over_ranks(total)
        norm = torch.nn.utils.clip_grad_norm_(self._named.values(), self._spec.max_grad_norm)
        self._healthy &= torch.isfinite(total) & torch.isfinite(norm)
        learning_rates = self._scheduler.get_last_lr()
        self._optimizer.step()
        self._scheduler.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._finish_step(len(examples), total, norm, learning_rates[0], started)

    def _sum_over_ranks(self, loss: torch.Tensor) -> None:
        """Add up gradients and the loss, and agree on whether to stop."""
        if self._ranks.world > 1:
            stop = torch.tensor(float(self._should_stop()), device=self._device)
            self._ranks.sum_gradients(self._named.values(), loss, stop)
            self._stop = bool(stop.item())

    def _checkpoint_is_due(self) -> bool:
        """Whether the last one is old; process 0's clock decides, looked at every few steps."""
        if self._ranks.world > 1 and self._counters.step % self._spec.log_every_steps:
            return False
        due = time.monotonic() - self._saved_at > self._spec.checkpoint_every_seconds
        return bool(self._ranks.from_first(due))

    def _finish_step(
        self, examples: int, loss: torch.Tensor, norm: torch.Tensor, rate: float, started: float
    ) -> None:
        counters = self._counters
        counters.step += 1
        counters.examples += examples
        counters.epoch_examples += examples
        note = ""
        if self._device.type == "cpu" or counters.step % self._spec.log_every_steps == 0:
            self._check_health()
            note = f"loss {loss.item():.3f}"
        self._epoch_loss += loss.double() * examples
        seconds = time.perf_counter() - started
        counters.train_seconds += seconds
        if counters.step % self._spec.log_every_steps == 0 and self._ranks.first:
            self._metrics.write(
                "step",
                counters.step,
                counters.epoch + 1,
                loss=loss.item(),
                learning_rate=rate,
                grad_norm=norm.item(),
                examples_per_second=examples / seconds,
            )
        self._progress("train", counters.step, self._total_steps, note)

    def _end_epoch(self) -> None:
        counters = self._counters
        started = time.perf_counter()
        self._model.training(False)
        self._scoring = True
        with self._model.rotations():
            dev = score(
                self._model,
                self._task.dev,
                self._task.choices,
                batch_size=self._stage.evaluation.batch_size,
                mode=self._stage.evaluation.mode,
                ranks=self._ranks,
            )
        self._scoring = False
        counters.dev_seconds += time.perf_counter() - started
        counters.epoch += 1
        if dev.accuracy > counters.best_accuracy:
            counters.best_accuracy, counters.best_epoch = dev.accuracy, counters.epoch
            if self._spec.selection == "best" and self._ranks.first:
                checkpoint.write(self._folder / BEST, self._named, {"epoch": counters.epoch})
        if self._ranks.first:
            self._metrics.write(
                "epoch",
                counters.step,
                counters.epoch,
                train_loss=self._epoch_loss.item() / max(1, counters.epoch_examples),
                dev_accuracy=dev.accuracy,
                dev_loss=dev.loss,
                train_seconds=counters.train_seconds,
                peak_memory_mb=peak_mb(self._device),
            )
        self._epoch_loss.zero_()
        counters.epoch_examples = 0
        self._save()
        note = f"dev {dev.accuracy:.1%}"
        self._progress("train", counters.step, self._total_steps, note)

    def _out_of_patience(self) -> bool:
        patience, counters = self._spec.early_stopping_patience, self._counters
        return patience is not None and counters.epoch - counters.best_epoch >= patience

    def _check_health(self) -> None:
        if self._healthy.item():
            return
        rates = " and ".join(
            f"{name}.learning_rate={adapter.learning_rate:g}"
            for name, adapter in (("lora", self._stage.lora), ("reft", self._stage.reft))
            if adapter
        )
        kept = self._folder / LAST
        raise NonFiniteLoss(
            f"{self._stage.label}: the loss or its gradient was NaN or infinite by step "
            f"{self._counters.step} (epoch {self._counters.epoch + 1}); lower {rates}. "
            + (f"The last good checkpoint is kept: {kept}" if kept.is_file() else "")
        )

    def _batches(self, epoch: int) -> list[list[int]]:
        return epoch_batches(self._task.train, self._spec.batch_size, self._stage.seed, epoch)

    def _new_optimizer(self) -> torch.optim.Optimizer:
        groups = []
        for prefix, adapter in (("lora", self._stage.lora), ("reft", self._stage.reft)):
            if adapter is None:
                continue
            own = {k: v for k, v in self._named.items() if k.startswith(f"{prefix}/")}
            # Weight decay would pull the parametrisation of an orthonormal R off its
            # unit diagonal, which torch rounds to integers: R would become 0.
            rotations = [v for k, v in own.items() if "parametrizations" in k]
            others = [v for k, v in own.items() if "parametrizations" not in k]
            rate = adapter.learning_rate
            groups.append({"params": others, "lr": rate, "weight_decay": adapter.weight_decay})
            if rotations:
                groups.append({"params": rotations, "lr": rate, "weight_decay": 0.0})
        return torch.optim.AdamW(groups, fused=self._device.type == "cuda")

    def _new_scheduler(self) -> Any:
        from transformers import get_scheduler

        spec = self._spec
        name = "constant_with_warmup" if spec.lr_scheduler == "constant" else spec.lr_scheduler
        warmup = round(spec.warmup_ratio * self._total_steps)
        return get_scheduler(name, self._optimizer, warmup, self._total_steps)

    def _count(self, batch: Batch) -> None:
        rows, tokens = batch.input_ids.shape
        computed = tokens
        if (suffix := self._model.reused_tokens) is not None:
            computed = suffix + batch.answer_tokens - 1
        self._counters.train_flop += self._flops.training(
            rows,
            computed,
            batch.answer_tokens,
            self._trained_layers,
            reused=tokens - computed,
            skipped=self._model.skipped_layers,
        )

    def _save(self) -> None:
        self._saved_at = time.monotonic()
        own = [checkpoint.random_tensors(self._device), self._counters.train_flop]
        of_ranks = self._ranks.gather(own)
        if not self._ranks.first:
            return
        if not (self._folder / CONSTANTS).is_file():
            checkpoint.write(self._folder / CONSTANTS, self._model.constants(), {})
        self._counters.epoch_loss = self._epoch_loss.item()
        tensors = (
            self._named
            | checkpoint.optimizer_tensors(self._optimizer, self._names)
            | {
                f"{rank}/{name}": state
                for rank, (states, _) in enumerate(of_ranks)
                for name, state in states.items()
            }
        )
        meta = {
            "counters": asdict(self._counters),
            "flop_of_ranks": [flop for _, flop in of_ranks],
            "scheduler": self._scheduler.state_dict(),
        }
        checkpoint.write(self._folder / LAST, tensors, meta)

    def _resume(self) -> None:
        if not (self._folder / LAST).is_file():
            return
        constants, _ = checkpoint.read(self._folder / CONSTANTS)
        for name, tensor in self._model.constants().items():
            tensor.copy_(constants[name])
        tensors, meta = checkpoint.read(self._folder / LAST)
        self._load_parameters(tensors)
        checkpoint.load_optimizer(self._optimizer, self._names, tensors)
        checkpoint.load_random(tensors, self._device, f"{self._ranks.rank}/")
        self._scheduler.load_state_dict(meta["scheduler"])
        for group, rate in zip(
            self._optimizer.param_groups, meta["scheduler"]["_last_lr"], strict=True
        ):
            group["lr"] = rate
        self._counters = Counters(**meta["counters"])
        self._counters.resumes += 1
        flops = meta["flop_of_ranks"]
        same = len(flops) == self._ranks.world
        self._counters.train_flop = (
            flops[self._ranks.rank] if same else (sum(flops) if self._ranks.first else 0.0)
        )
        self._epoch_loss.fill_(self._counters.epoch_loss)

    @torch.no_grad()
    def _load_parameters(self, tensors: dict[str, torch.Tensor]) -> None:
        for name, parameter in self._named.items():
            parameter.copy_(tensors[name])


def _trained_layers(stage: StageSpec, model: AdaptedModel, names: Sequence[str]) -> set[int]:
    """The decoder layers that hold a trained part."""
    path = f".{model.base.layers_path}."
    trained = {
        int(name.split(path, 1)[1].split(".", 1)[0])
        for name in (f".{n.removeprefix('lora/')}" for n in names if n.startswith("lora/"))
        if path in name
    }
    if stage.reft:
        # An edit of a layer's output leaves that layer itself without a gradient.
        chosen = stage.reft.layers
        trained |= {n + 1 for n in ([0] if isinstance(chosen, str) else chosen)}
    return trained
