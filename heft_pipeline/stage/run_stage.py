"""One stage from start to end: its parents, training, evaluation, and what is saved."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from heft_pipeline.adapters.adapted import AdaptedModel, adapted
from heft_pipeline.data.other_text import OtherText
from heft_pipeline.data.prompts import Task
from heft_pipeline.devices.memory import peak_mb, reset_peak
from heft_pipeline.devices.processes import start_ranks
from heft_pipeline.devices.resolve import resolve_device
from heft_pipeline.models.layers import compiled_layers, recomputed_layers
from heft_pipeline.plan.stage_spec import StageSpec
from heft_pipeline.scoring.score import Scores, scorer
from heft_pipeline.stage.cached_inputs import cached_base, cached_probe, cached_task
from heft_pipeline.stage.forgetting import measure_forgetting
from heft_pipeline.stage.frozen_parents import finished_adapters, merged_if_asked, saved_adapters
from heft_pipeline.stage.machine_record import machine
from heft_pipeline.stage.mending import Found, find_result
from heft_pipeline.stage.outputs import write_edit_sizes, write_predictions
from heft_pipeline.store.stage_folders import Store
from heft_pipeline.training.flops import FlopCounter
from heft_pipeline.training.loop import Control, Counters, Progress, Recipe, Trainer

log = logging.getLogger(__name__)

#: What nobody knows of an adapter that was trained elsewhere.
_UNKNOWN_ELSEWHERE = (
    "best_epoch", "best_dev_accuracy", "epochs_trained", "steps", "train_seconds", "reuse_seconds",
    "dev_seconds", "train_tflop", "train_examples", "micro_batch_tokens", "peak_memory_mb",
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What running a stage came to.

    Attributes:
        result: The content of the stage's ``result.json``.
        reused: Whether the stage was complete already, so that nothing was trained.
    """

    result: dict[str, Any]
    reused: bool


def run_stage(
    stage: StageSpec,
    store: Store,
    *,
    upcoming: Sequence[StageSpec] = (),
    text: OtherText | None = None,
    trained_in: Path | None = None,
    progress: Progress = lambda *_, **__: None,
    should_stop: Callable[[], bool] = lambda: False,
    on_wait: Callable[[str], None] = lambda _: None,
) -> Outcome:
    """Complete a stage: reuse it, resume it, or train it from the start.

    Args:
        stage: The stage; its parents must be complete.
        store: The store of stages.
        upcoming: Stages that will be trained on this one. Whether their adapters work on the
            model is tried before this one is trained.
        text: A text that forgetting is measured on after the evaluation; None to measure nothing.
        trained_in: The folder of an adapter that was trained elsewhere; the stage gets that one
            instead of training one, and its costs are not known. None to train.
        progress: Called with the stage's progress.
        should_stop: Called before each step; if it returns true, training ends with a checkpoint.
        on_wait: Called with the lock's holder if another process is training this stage.

    Raises:
        UserError: The model, the data or an adapter cannot be loaded as asked.
        NonFiniteLoss: Training diverged.
        Interrupted: ``should_stop`` returned true.
        LeaseLost: Another process has taken the stage over, because this one was silent too long.
    """
    fingerprint = stage.fingerprint
    ranks = start_ranks(resolve_device(stage.device))
    with store.lock(fingerprint, on_wait) if ranks.first else nullcontext() as lock:
        found: Found = ranks.from_first(find_result(stage, store) if ranks.first else None)
        if found.result is not None and found.whole:
            return Outcome(found.result, reused=True)
        if ranks.first:
            if found.result is None:
                store.begin(stage)
            store.forget_failure(fingerprint)

        def stop() -> bool:
            if lock is not None:
                lock.check()  # nothing is written any more if another process has taken over
            return should_stop()

        control = Control(progress, stop, ranks)
        made = _Made(found.result, trained_in)
        result = _train_and_evaluate(stage, upcoming, store, control, text, made)
        if lock is not None:
            lock.check()
            store.complete(fingerprint, result)
        return Outcome(result, reused=False)


@dataclass(frozen=True)
class _Made:
    """What a stage has instead of training.

    Attributes:
        kept: Its result, where its adapters are trained and only its answers are lost.
        elsewhere: The folder of an adapter that was trained elsewhere.
    """

    kept: Mapping[str, Any] | None
    elsewhere: Path | None


@dataclass(frozen=True)
class Trained:
    """The outcome of training.

    Attributes:
        counters: What was done and what it cost.
        parameters: The number of trained parameters.
        reuse: What was reused, or why nothing was; empty if nothing was trained.
        notes: What was decided for this model beyond the settings.
    """

    counters: Counters
    parameters: int = 0
    reuse: str = ""
    notes: Sequence[str] = ()


def _train_and_evaluate(
    stage: StageSpec,
    upcoming: Sequence[StageSpec],
    store: Store,
    control: Control,
    text: OtherText | None,
    made: _Made,
) -> dict[str, Any]:
    """Train a stage, or load its adapters if they are ``made`` already, and evaluate it."""
    started, ranks = time.perf_counter(), control.ranks
    folder, device = store.folder(stage.fingerprint), ranks.device
    reset_peak(device)
    task = cached_task(stage, store.tokenized)
    base = cached_base(stage.model, device)
    notes = [cached_probe(one, device) for one in (stage, *upcoming)]
    flops = FlopCounter(base.model, base.layers)
    with (
        adapted(base, finished_adapters(stage.chain[:-1], store)) as model,
        merged_if_asked(stage, model, lambda: task) as merge_error,
        ExitStack() as until_evaluated,
    ):
        trained = Trained(Counters())
        if made.kept is not None:
            model.load_trained(saved_adapters(stage, store))
            compute_as_trained(stage, model, until_evaluated)
        elif made.elsewhere is not None:
            trained = _adopt(stage, model, made.elsewhere, folder, until_evaluated)
        elif stage.training is not None:
            trained = _train(stage, model, task, flops, folder, control, until_evaluated)
        evaluated = time.perf_counter()
        scores = _evaluate(stage, model, task, control)
        eval_seconds = time.perf_counter() - evaluated
        if ranks.first:
            write_edit_sizes(folder, model, task, stage.evaluation.batch_size)
            write_predictions(folder / "predictions.parquet", stage.data, task, scores)
        seconds = {"eval_seconds": eval_seconds, "wall_seconds": time.perf_counter() - started}
        peak_memory_mb = peak_mb(device)
        until_evaluated.close()
        if ranks.first and text is not None:
            # After the costs are taken, because this is not part of what the method costs.
            measure_forgetting(stage, store, model, text)
    answers = _answers(stage, task, scores)
    if made.kept is not None:
        again = {"finished": _now(), "machine": machine(device), "seconds": eval_seconds}
        return {**made.kept, **answers, "scored_again": again}
    return {
        **answers,
        **_training(trained),
        "notes": [*task.notes, *filter(None, [base.no_padding]), *trained.notes, *notes[0]],
        "padding": base.no_padding,
        "merge_error": merge_error,
        **seconds,
        "peak_memory_mb": peak_memory_mb,
        "processes": ranks.world,
        "dtype": ", then ".join(trained.counters.dtypes) or base.dtype,
        "finished": _now(),
        "machine": machine(device),
        **_unknown(made.elsewhere),
    }


def _train(
    stage: StageSpec,
    model: AdaptedModel,
    task: Task,
    flops: FlopCounter,
    folder: Path,
    control: Control,
    until_evaluated: ExitStack,
) -> Trained:
    """Put a stage's own adapters on the model, train them and save them."""
    training = stage.training
    assert training is not None
    torch.manual_seed(stage.seed)
    model.add(stage.adapters)
    parameters = model.count()
    score = scorer(task, stage.data, stage.evaluation, stage.seed)
    recipe = Recipe(stage.label, stage.seed, stage.adapters[0], training, score)
    compute_as_trained(stage, model, until_evaluated)
    trainer = Trainer(recipe, model, task, flops, folder, control)
    counters = trainer.run()
    model.finish()
    if control.ranks.first:
        model.save(folder / "adapter")
    return Trained(counters, parameters, trainer.reuse, model.notes())


def _adopt(
    stage: StageSpec, model: AdaptedModel, saved: Path, folder: Path, until_evaluated: ExitStack
) -> Trained:
    """Put an adapter that was trained elsewhere on the model, and save it as the stage's own."""
    model.add(started_from(stage, saved).adapters)
    compute_as_trained(stage, model, until_evaluated)
    model.finish()
    model.save(folder / "adapter")
    return Trained(Counters(), model.count(), notes=model.notes())


def started_from(stage: StageSpec, saved: Path) -> StageSpec:
    """A stage with one adapter, as it would be if its training started from a saved one.

    Args:
        stage: The stage.
        saved: The folder of the saved adapter.
    """
    (adapter,) = stage.adapters
    return replace(stage, adapters=(replace(adapter, init_from=str(saved)),))


def compute_as_trained(stage: StageSpec, model: AdaptedModel, until_evaluated: ExitStack) -> None:
    """Change how the layers are computed as a stage's settings ask for.

    Args:
        stage: The stage.
        model: The model with the stage's adapters on it.
        until_evaluated: What undoes it.
    """
    if stage.training is not None and stage.training.compile:
        until_evaluated.enter_context(compiled_layers(model.base))
    if stage.training is not None and stage.training.gradient_checkpointing:
        until_evaluated.enter_context(recomputed_layers(model.base))


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def _evaluate(stage: StageSpec, model: AdaptedModel, task: Task, control: Control) -> Scores:
    """Score the reported split; this is the only time that a stage reads it."""
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        control.progress("eval", done, len(control.ranks.share(task.eval)))

    score = scorer(task, stage.data, stage.evaluation, stage.seed)
    return score(model, task.eval, advance=advance, ranks=control.ranks)


def _majority(task: Task) -> float:
    """The accuracy of always giving the most frequent answer."""
    golds = Counter(e.texts[0] if not task.labels else e.gold for e in task.eval)
    return max(golds.values()) / len(task.eval)


def _answers(stage: StageSpec, task: Task, scores: Scores) -> dict[str, Any]:
    """The part of ``result.json`` that is about the stage, its task and the answers."""
    needed = max((adapter.tokens_needed for adapter in stage.adapters), default=0)
    return {
        "fingerprint": stage.fingerprint,
        "kind": stage.kind,
        "label": stage.label,
        "accuracy": scores.accuracy,
        "logprob_accuracy": scores.logprob_accuracy,
        "written": stage.data.written,
        "normalize": scores.normalize,
        "accuracies": scores.accuracies,
        "eval_loss": scores.loss,
        "n_eval": len(task.eval),
        "n_train": len(task.train),
        "n_dev": len(task.dev),
        "truncated_prompts": task.truncated,
        "short_prompts": sum(length < needed for length in task.prompt_lengths),
        "tied_rows": scores.tied,
        "unmatched_rows": scores.unmatched,
        "overlapping_rows": len(task.overlap),
        "repeated_rows": task.repeated,
        "majority_accuracy": _majority(task),
        "chance_accuracy": sum(1 / len(e.choices) for e in task.eval) / len(task.eval),
    }


def _training(trained: Trained) -> dict[str, Any]:
    """The part of ``result.json`` that is about what was trained."""
    counters = trained.counters
    return {
        "best_epoch": counters.best_epoch or None,
        "best_dev_accuracy": counters.best_accuracy if counters.best_epoch else None,
        "epochs_trained": counters.epoch,
        "steps": counters.step,
        "trainable_params": trained.parameters,
        "train_seconds": counters.train_seconds,
        "reuse_seconds": counters.reuse_seconds,
        "reuse": trained.reuse,
        "dev_seconds": counters.dev_seconds,
        "train_tflop": counters.train_flop / 1e12,
        "train_examples": counters.examples,
        "resumes": counters.resumes,
        "micro_batch_tokens": counters.micro_batch_tokens,
    }


def _unknown(elsewhere: Path | None) -> dict[str, Any]:
    """What ``result.json`` says of training that was done elsewhere; nothing for any other."""
    if elsewhere is None:
        return {}
    return dict.fromkeys(_UNKNOWN_ELSEWHERE) | {"trained_elsewhere": str(elsewhere)}
