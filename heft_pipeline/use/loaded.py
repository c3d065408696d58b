"""A base model with everything on it that a stage and those below it have trained."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, overload

from heft_pipeline.errors import UserError
from heft_pipeline.plan.stage_spec import StageSpec
from heft_pipeline.use.saved import SavedAdapter, find_adapter

if TYPE_CHECKING:  # this module is imported without torch
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from heft_pipeline.adapters.adapted import AdaptedModel
    from heft_pipeline.models.base_model import Base
    from heft_pipeline.use.predictions import Prediction

#: Prompts per forward pass.
BATCH_SIZE = 32


def load(
    adapter: str | Path,
    *,
    model: str | None = None,
    device: str = "auto",
    dtype: str | None = None,
    output_dir: str | Path = "outputs",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> "HeftModel":
    """Load what was trained: a base model with a stage's adapters and those of all stages below it.

    Args:
        adapter: A stage's folder, or one that ``heft export`` wrote; the first digits of a stage's
            fingerprint, or ``SWEEP/RUN``; or a hub repository that ``heft push`` made.
        model: The base model, where it is not where it was trained: a hub repository, a local
            folder, or ``builtin:tiny``.
        device: ``auto`` (CUDA if there is a GPU), ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        dtype: The dtype of the base's weights: ``auto``, ``float32`` or ``bfloat16``; None for the
            one that it was trained with. Adapters are float32.
        output_dir: Where fingerprints and sweeps are looked for.
        revision: A branch, tag or commit of a hub repository.
        trust_remote_code: Whether the base model's own code may run.

    Returns:
        The model, in eval mode.

    Raises:
        UserError: The adapter or its base model is not there, is damaged, or does not fit.
    """
    found = find_adapter(
        adapter,
        output_dir=Path(output_dir),
        revision=revision,
        model=model,
        trust_remote_code=trust_remote_code,
    )
    return put_on_base(found, device=device, dtype=dtype)


def put_on_base(
    found: SavedAdapter, *, device: str = "auto", dtype: str | None = None
) -> "HeftModel":
    """Load a base model, and put a saved adapter on it; see :func:`load`."""
    return put_on(found, base_of(found, device=device, dtype=dtype))


def base_of(found: SavedAdapter, *, device: str = "auto", dtype: str | None = None) -> "Base":
    """The base model of a saved adapter, tried and without the adapter; see :func:`load`."""
    from heft_pipeline.devices.resolve import resolve_device
    from heft_pipeline.models.base_model import load_base, quieten
    from heft_pipeline.stage.probe import probe_base

    quieten()
    settings = found.stage.model
    if dtype is not None:
        settings = replace(settings, dtype=dtype)
    base = load_base(settings, resolve_device(device))
    return probe_base(base, f"the base model {settings.name}")


def put_on(found: SavedAdapter, base: "Base") -> "HeftModel":
    """Put a saved adapter on its base model, which is changed in place."""
    from heft_pipeline.adapters.adapted import adapted
    from heft_pipeline.use.measured import answer_tokens

    opened, stage = ExitStack(), found.stage
    if stage.evaluation.mode == "generate":
        limited = replace(stage.evaluation, max_new_tokens=answer_tokens(found))
        stage = replace(stage, evaluation=limited)
    return HeftModel(stage, opened.enter_context(adapted(base, found.adapters)), opened)


class HeftModel:
    """A causal language model that carries all of a run's stages; made by :func:`load`.

    Weight-space adapters (LoRA) act on every token. Representation-space ones (ReFT) edit hidden
    states at positions of the prompt only, never those of what follows it, as in training.

    Args:
        stage: The last stage.
        adapted: The base model with the adapters on it.
        opened: What takes the adapters off the base model again.

    Attributes:
        stage: The last stage: its task, its settings, and those of the stages below it.
    """

    def __init__(self, stage: StageSpec, adapted: "AdaptedModel", opened: ExitStack) -> None:
        self.stage, self._on_base, self._opened = stage, adapted, opened
        self._merged = self._closed = False

    @property
    def tokenizer(self) -> Any:
        """The base model's transformers tokenizer."""
        return self._on_base.base.tokenizer

    @property
    def model(self) -> Any:
        """The transformers model below. Called by itself, it makes no edits of ReFT."""
        return self._on_base.base.model

    @property
    def adapted(self) -> "AdaptedModel":
        """The model as the pipeline evaluates it.

        Raises:
            UserError: The model has been closed, so that its adapters are gone.
        """
        if self._closed:
            raise UserError(f"{self!r} has been closed; load it again")
        return self._on_base

    @property
    def device(self) -> "torch.device":
        """Where the model is."""
        return self.adapted.base.device

    def __repr__(self) -> str:
        return f"HeftModel({self.stage.label} on {self.stage.model.name})"

    def forward(
        self,
        input_ids: "torch.Tensor",
        attention_mask: "torch.Tensor | None" = None,
        *,
        prompt_tokens: "torch.Tensor | Sequence[int] | None" = None,
        **arguments: Any,
    ) -> Any:
        """Run the model over whole sequences.

        Args:
            input_ids: [B, T] int64, padded on the left or on the right.
            attention_mask: [B, T], 0 on padding; None for no padding.
            prompt_tokens: B numbers: how many of each sequence's tokens are its prompt, which ReFT
                edits; None if all are.
            **arguments: Passed on to transformers' ``forward``, e.g. ``labels``.

        Returns:
            transformers' output; its ``logits`` are [B, T, V].

        Raises:
            UserError: The model cannot run padded sequences, and these are.
        """
        from heft_pipeline.use.generating import forward

        return forward(self.adapted, input_ids, attention_mask, prompt_tokens, arguments)

    __call__ = forward

    @overload
    def generate(self, prompts: str, **sampling: Any) -> str: ...

    @overload
    def generate(self, prompts: Sequence[str], **sampling: Any) -> list[str]: ...

    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        batch_size: int = BATCH_SIZE,
        max_new_tokens: int = 128,
        **sampling: Any,
    ) -> str | list[str]:
        """Continue prompts.

        Prompts of similar length are padded on the left and run together, and keys and values are
        kept; ReFT edits the prompts while they are read.

        Args:
            prompts: A text, or several, such as :meth:`prompt` makes from rows of the task. White
                space at the end of one is left to what is written, as in training, unless the task
                has a chat template. Special tokens are put first as ``data.special_tokens`` says.
            batch_size: The most prompts that are run together.
            max_new_tokens: The most tokens that are written after each.
            **sampling: transformers' arguments of ``generate``, e.g. ``do_sample=True``,
                ``temperature``, ``top_p``, ``top_k``, ``num_beams``, ``repetition_penalty``,
                ``num_return_sequences``, ``stop_strings``, ``streamer``. Without any, the likeliest
                token is taken each time, whatever the model's own ``generation_config.json`` says.

        Returns:
            What was written, without special tokens: a text for a text, and a list for several,
            with each prompt's ``num_return_sequences`` texts one after another.

        Raises:
            UserError: An argument has no meaning here.
        """
        from heft_pipeline.use.generating import generate

        several = [prompts] if isinstance(prompts, str) else list(prompts)
        data = self.stage.data
        if not data.chat:
            several = [prompt.rstrip() for prompt in several]
        texts = generate(
            self.adapted, several, batch_size, max_new_tokens, sampling, data.special_tokens
        )
        return texts[0] if isinstance(prompts, str) and len(texts) == 1 else texts

    def score(
        self,
        prompts: str | Sequence[str],
        choices: Sequence[str] | Sequence[Sequence[str]],
        *,
        batch_size: int = BATCH_SIZE,
    ) -> "NDArray[np.float32]":
        """The log-probability of each choice after each prompt.

        Args:
            prompts: N texts. White space at the end of one goes to its choices, unless the task has
                a chat template. Special tokens are put first as ``data.special_tokens`` says.
            choices: Texts for all prompts, or a list of texts for each.
            batch_size: Prompts per forward pass.

        Returns:
            [N, C] natural logarithms, summed over a choice's tokens; -inf where a prompt has fewer
            choices than another.

        Raises:
            UserError: There are no choices, or one has no tokens.
        """
        from heft_pipeline.use.predictions import choice_scores

        several = [prompts] if isinstance(prompts, str) else list(prompts)
        return choice_scores(self.stage.data, self.adapted, several, choices, batch_size)

    def prompt(self, row: Mapping[str, Any]) -> str:
        """The prompt that the task makes of a row, its chat template included.

        Args:
            row: Values for the columns that ``data.prompt`` names.

        Raises:
            UserError: A column is missing.
        """
        from heft_pipeline.use.predictions import prompt_text

        return prompt_text(self.stage, self.tokenizer, row)

    def predict(
        self, rows: Sequence[Mapping[str, Any]], *, batch_size: int | None = None
    ) -> "list[Prediction]":
        """Answer rows of the task that the model was trained on.

        Args:
            rows: Rows with the task's columns; the column with the right answer is not looked at.
            batch_size: Rows per forward pass; None for the one of the evaluation.

        Returns:
            An answer for each row, as the evaluation would read it.

        Raises:
            UserError: A column is missing, or a prompt is too long.
        """
        from heft_pipeline.use.predictions import predict

        return predict(self.stage, self.adapted, rows, batch_size)

    def merge(self) -> tuple[str, ...]:
        """Add the weight-space adapters to the base's weights, so that they cost nothing any more.

        Sums are rounded once, to the weights' dtype. Edits of hidden states depend on a prompt's
        positions, so they stay beside the weights and go on working.

        Returns:
            The kinds of the adapters that stay beside the weights.

        Raises:
            UserError: Nothing can be merged, or not into these weights (DoRA, 4 bits).
        """
        kinds = dict.fromkeys(type(a) for a in self.adapted.adapters if not a.settings.edits)
        if not kinds:
            raise UserError(
                f"{self.stage.label} has no adapter of weights: edits of hidden states depend on "
                "the prompt's positions, and no weights can do that"
            )
        if not self._merged:
            try:
                for kind in kinds:
                    self._opened.enter_context(kind.merged(self.model))
            except UserError as error:  # in the words of a setting that nobody gave here
                raise UserError(
                    f"{self.stage.label} cannot be merged while it is loaded (DoRA, weights in 4 "
                    "bits, or edits of the same modules); heft export --merge can write DoRA"
                ) from error
            self._merged = True
        return tuple(a.settings.kind for a in self.adapted.adapters if a.settings.edits)

    def close(self) -> None:
        """Take the adapters off the base model, as it also happens at the end of a ``with``."""
        self._closed = True
        self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
