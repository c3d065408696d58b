"""The loss of a stage's model on text that its task does not touch."""

import contextlib
import functools
import traceback
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from heft_pipeline.adapters.adapted import AdaptedModel, adapted
from heft_pipeline.command_line.secrets_kept import masked
from heft_pipeline.data.batches import AnsweredPrompt, collate
from heft_pipeline.data.other_text import OtherText
from heft_pipeline.data.text_windows import text_windows
from heft_pipeline.devices.memory import in_parts
from heft_pipeline.devices.resolve import resolve_device
from heft_pipeline.errors import UserError
from heft_pipeline.models.base_model import load_config, load_tokenizer, quieten
from heft_pipeline.models.settings import ModelSettings
from heft_pipeline.plan.stage_spec import StageSpec
from heft_pipeline.stage.cached_inputs import cached_base, cached_task
from heft_pipeline.stage.frozen_parents import finished_adapters, merged_if_asked, saved_adapters
from heft_pipeline.store.stage_folders import Store

#: Windows per forward pass: few, because each has half a window of logits.
_AT_ONCE = 8
_BEGUN = "the process that measured it ended before it was done"


def window_losses(model: AdaptedModel, windows: Sequence[AnsweredPrompt]) -> list[float]:
    """The mean negative log-probability per token of each window's second half.

    The first half is the prompt, so adapters that edit prompts act as they do on the task.

    Args:
        model: The model with its adapters; they must not be in training mode.
        windows: The windows, all with as many scored tokens.

    Returns:
        Nats per token, for each window.
    """

    def loss(some: Sequence[AnsweredPrompt]) -> torch.Tensor:
        batch = collate(some, model.base.pad_token_id).to(model.base.device)
        logits = model.logits(batch).float()
        return cross_entropy(logits.transpose(1, 2), batch.labels, reduction="none").mean(1).cpu()

    with torch.no_grad():
        parts = [
            torch.cat(in_parts(loss, windows[start : start + _AT_ONCE], model.base.device))
            for start in range(0, len(windows), _AT_ONCE)
        ]
    return [float(one) for one in torch.cat(parts)]


def measure_forgetting(
    stage: StageSpec, store: Store, model: AdaptedModel, text: OtherText, *, again: bool = False
) -> None:
    """Note a stage's losses on a text in the store, or why there are none; nothing is raised.

    Whatever goes wrong here must not cost a stage that is trained and evaluated. The reason is
    also written to ``stage.log``. If a process ends while it measures, the stage is not measured
    again unless somebody asks for that, so that a text that breaks a process cannot break it
    forever.

    Args:
        stage: The stage; the caller holds its lock.
        store: The store.
        model: The stage's model with all its adapters.
        text: The text.
        again: Whether to measure even if a process has ended while it measured.
    """
    key, entry = stage.fingerprint, {"text": text.name}
    try:
        if not again and store.text_losses(key).get(text.digest, {}).get("why") == _BEGUN:
            return
        store.note_text_losses(key, text.digest, entry | {"why": _BEGUN})
        windows = _windows(text, stage.model)
        losses = window_losses(model, windows)
        if not all(torch.tensor(losses).isfinite()):
            raise UserError("the model's loss on it is not a finite number")
        tokens = sum(len(window.answer) for window in windows)
        measured = {"windows": len(windows), "tokens": tokens, "losses": losses}
        store.note_text_losses(key, text.digest, entry | measured)
    except Exception as error:
        # A full or read-only disk must not fail the stage either.
        with contextlib.suppress(OSError):
            _write_log(store.folder(key), text, error)
            why = (_reason(error).splitlines() or ["?"])[0]
            store.note_text_losses(key, text.digest, entry | {"why": why})


def measure_finished(stage: StageSpec, store: Store, text: OtherText) -> str:
    """Measure a finished stage on a text; nothing else of the stage changes.

    Args:
        stage: The stage; it and its parents are complete.
        store: The store.
        text: The text.

    Returns:
        Why it could not be measured; empty if it was.
    """
    key = stage.fingerprint
    try:
        with store.lock(key, lambda _: None):
            base = cached_base(stage.model, resolve_device(stage.device))
            with (
                adapted(base, finished_adapters(stage.chain[:-1], store)) as model,
                merged_if_asked(stage, model, lambda: cached_task(stage, store.tokenized)),
            ):
                store.require_whole(stage)
                for settings, folder in saved_adapters(stage, store):
                    model.load(settings, folder)
                measure_forgetting(stage, store, model, text, again=True)
        return str(store.text_losses(key).get(text.digest, {}).get("why", ""))
    except Exception as error:
        with contextlib.suppress(OSError):
            _write_log(store.folder(key), text, error)
        return _reason(error)


def _reason(error: Exception) -> str:
    said = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    return masked(said)


def _write_log(folder: Path, text: OtherText, error: Exception) -> None:
    """Say in a stage's log why it was not measured, and where that happened if it is a surprise."""
    detail = "" if isinstance(error, UserError) else "".join(traceback.format_exception(error))
    with (folder / "stage.log").open("a", encoding="utf-8", errors="backslashreplace") as log:
        log.write(masked(f"forgetting on {text.name} was not measured: {error}\n{detail}"))


def check_text(text: OtherText, model: ModelSettings) -> None:
    """Refuse a text that a model cannot be measured on; no weights are read.

    Args:
        text: The text.
        model: The model.

    Raises:
        UserError: It is too short, or the model cannot read it.
    """
    quieten()
    _windows(text, model)


@functools.lru_cache(maxsize=4)
def _windows(text: OtherText, model: ModelSettings) -> list[AnsweredPrompt]:
    """A text's windows, kept for the next stage in the same process."""
    config = load_config(model).get_text_config()
    longest = getattr(config, "max_position_embeddings", None)
    return text_windows(text, load_tokenizer(model), config.vocab_size, longest)
