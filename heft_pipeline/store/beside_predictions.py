"""What stages' files hold beside accuracy: the choices' probabilities, and losses on other text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from heft_pipeline.data.other_text import chosen_text
from heft_pipeline.data.row_choices import letter
from heft_pipeline.plan.graph import untouched_model
from heft_pipeline.plan.stage_spec import StageSpec
from heft_pipeline.store.stage_folders import Store

#: What the columns of choices that all rows share begin with.
LOGPROB_PREFIX = "logprob_"
#: The lists of choices that rows have of their own, and a written answer's log-probability.
OWN_LOGPROBS, WRITTEN_LOGPROB = "logprobs", "logprob"


@dataclass(frozen=True)
class ChoiceTable:
    """The scored choices of N examples.

    Attributes:
        log_probabilities: [N, C], of each of C choices given the prompt; -inf where an example has
            fewer.
        gold: [N], the right choice.
    """

    log_probabilities: NDArray[np.float64]
    gold: NDArray[np.int64]

    @property
    def right(self) -> NDArray[np.float64]:
        """[N], the log-probability of the right choice."""
        return self.log_probabilities[np.arange(len(self.gold)), self.gold]


def choice_table(predictions: pd.DataFrame) -> ChoiceTable | None:
    """Read the choices of a ``predictions.parquet``.

    Args:
        predictions: The file's table.

    Returns:
        The choices in the table's order; None if it has no choices' log-probabilities.
    """
    if OWN_LOGPROBS in predictions.columns:
        return _own_choices(predictions)
    columns = [name for name in predictions.columns if name.startswith(LOGPROB_PREFIX)]
    labels = [name.removeprefix(LOGPROB_PREFIX) for name in columns]
    gold = _codes(predictions.gold, labels)
    if not columns or (gold < 0).any():
        return None
    return ChoiceTable(predictions[columns].to_numpy(dtype=np.float64), gold)


def _own_choices(predictions: pd.DataFrame) -> ChoiceTable | None:
    lists = [np.asarray(own, dtype=np.float64) for own in predictions[OWN_LOGPROBS]]
    counts = np.array([len(own) for own in lists])
    table = np.full((len(lists), counts.max()), -np.inf)
    for row, own in zip(table, lists, strict=True):
        row[: len(own)] = own
    gold = _codes(predictions.gold, [letter(index) for index in range(table.shape[1])])
    return None if ((gold < 0) | (gold >= counts)).any() else ChoiceTable(table, gold)


def _codes(values: pd.Series, names: Sequence[str]) -> NDArray[np.int64]:
    return pd.Index(names).get_indexer(pd.Index(values.astype(str))).astype(np.int64)


def right_logprobs(predictions: pd.DataFrame) -> NDArray[np.float64] | None:
    """The log-probability of each right answer of a ``predictions.parquet``.

    Args:
        predictions: The file's table.

    Returns:
        [N], in nats, of the right choice or of the accepted written answer; None where a finite
        one is missing.
    """
    table = choice_table(predictions)
    if table is not None:
        found = table.right
    elif WRITTEN_LOGPROB in predictions.columns:
        found = predictions[WRITTEN_LOGPROB].to_numpy(dtype=np.float64)
    else:
        return None
    return found if np.isfinite(found).all() else None


def chance_accuracy(predictions: pd.DataFrame) -> float | None:
    """What choosing at random would give; None where examples have no choices of their own.

    Args:
        predictions: A table of ``predictions.parquet``.
    """
    if OWN_LOGPROBS not in predictions.columns:
        return None
    return float(np.mean([1 / len(own) for own in predictions[OWN_LOGPROBS]]))


def given_answers(several: Sequence[pd.DataFrame]) -> NDArray[np.int64]:
    """What several runs answered, as numbers that are equal where answers are.

    Args:
        several: R tables of ``predictions.parquet`` with the same N examples in the same order.

    Returns:
        [R, N]; -1 where a run gave no answer.
    """
    answers = np.stack([table.prediction.to_numpy(dtype=object) for table in several])
    codes, _ = pd.factorize(answers.ravel())
    return codes.reshape(answers.shape).astype(np.int64)


@dataclass(frozen=True)
class TextLosses:
    """The losses of a run's models on a text that its task does not touch.

    Attributes:
        text: The text's name.
        digest: What identifies it.
        losses: The mean loss per token of each window, in nats: first those of the untouched
            model, then those of each stage of the run; None where they are not known.
        why: Why some are not known; empty if all are.
    """

    text: str
    digest: str
    losses: tuple[NDArray[np.float64] | None, ...]
    why: str

    @property
    def rise(self) -> float | None:
        """The mean loss after the last stage less that of the untouched model; None if unknown."""
        first, last = self.losses[0], self.losses[-1]
        return None if first is None or last is None else float((last - first).mean())


def read_text_losses(
    store: Store, note: Mapping[str, Any] | None, stages: Sequence[StageSpec]
) -> TextLosses | None:
    """Read what a run's models lose on the text that its sweep asks for.

    Args:
        store: Where stages are.
        note: What the sweep's ``plan.json`` says about the text.
        stages: The run's stages in training order.

    Returns:
        The losses; None if the sweep asks for no text.

    Raises:
        UserError: A text that ships with the package is not there.
    """
    text = chosen_text(note, stages[0].model.id)
    if text is None:
        return None
    trained = [stage for stage in stages if stage.adapters]
    found: list[NDArray[np.float64] | None] = []
    reasons = []
    for stage in (untouched_model(stages[0]), *trained):
        key = stage.fingerprint
        entry = store.text_losses(key).get(text.digest, {})
        losses = entry.get("losses")
        found.append(np.array(losses, dtype=np.float64) if losses else None)
        if not losses:
            nothing = "the untouched model has not been evaluated (report.base_model=false)"
            later = "not measured yet (python -m launch forgetting SWEEP measures it)"
            unknown = later if store.is_complete(key) else nothing
            reasons.append(entry.get("why") or unknown)
    if len({len(one) for one in found if one is not None}) > 1:
        found, reasons = [None] * len(found), ["its stages were measured on different windows"]
    return TextLosses(text.name, text.digest, tuple(found), reasons[0] if reasons else "")
