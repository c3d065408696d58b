"""The settings of evaluation."""

import dataclasses
from dataclasses import dataclass
from typing import Self

from heft_pipeline.data.answer_text import CHOICE, check_template
from heft_pipeline.declare_settings import Settings, setting
from heft_pipeline.errors import UserError

NORMALIZE = ("none", "token", "byte")
_ONLY_GENERATED = ("max_new_tokens", "match", "temperature", "top_p", "top_k")


@dataclass(frozen=True)
class EvaluationSettings(Settings):
    """How answers are scored."""

    mode: str = setting(
        "auto",
        "logprob compares the choices' log-probabilities; generate decodes text and looks for a "
        "choice in it; auto: logprob, and generate where answers are written (data.kind=answer)",
        choices=("auto", "logprob", "generate"),
    )
    normalize: str = setting(
        "none",
        "with logprob: what a choice's log-probability is divided by before choices are compared: "
        "none (lm-evaluation-harness's acc), token (its number of tokens), or byte (the length of "
        "its text in UTF-8; acc_norm)",
        choices=NORMALIZE,
        newer=True,
    )
    answer: str = setting(
        CHOICE,
        "the text whose log-probability is computed, with {choice} for the choice's text",
        rule=check_template,
    )
    max_new_tokens: int | None = setting(
        None,
        "with generate: the most tokens; null: as many as the longest choice has, or the longest "
        "written answer of the training split",
        above=0,
        example=5,
    )
    match: str = setting(
        "begins",
        "with generate: the text begins with the choice, or contains it, where the first of "
        "data.choices that it contains counts",
        choices=("begins", "contains"),
    )
    temperature: float = setting(
        0.0,
        "with generate: 0 decodes greedily; above it, tokens are sampled, with the run's seed",
        least=0,
    )
    top_p: float = setting(
        1.0,
        "with a temperature: sample from the likeliest tokens that together have this probability",
        above=0,
        most=1,
    )
    top_k: int | None = setting(
        None, "with a temperature: sample from so many likeliest tokens", above=0, example=50
    )
    batch_size: int = setting(
        64, "prompts per forward pass; changes only the speed", above=0, identity=False
    )

    def for_task(self, *, written: bool) -> Self:
        """The same settings with the mode that a task needs.

        Args:
            written: Whether the task's answers are written.
        """
        auto = "generate" if written else "logprob"
        return dataclasses.replace(self, mode=auto if self.mode == "auto" else self.mode)

    def check(self, key: str) -> None:
        """Refuse settings that would have no effect; of the mode ``auto``, any may have one."""
        defaults = EvaluationSettings()
        for name in _ONLY_GENERATED if self.mode == "logprob" else ():
            if getattr(self, name) != getattr(defaults, name):
                raise UserError(
                    f"{key}.{name} has no effect with {key}.mode=logprob; use {key}.mode=generate"
                )
        if self.mode == "generate" and self.normalize != defaults.normalize:
            raise UserError(
                f"{key}.normalize has no effect with {key}.mode=generate, where no "
                f"log-probabilities are compared; use {key}.normalize=none"
            )
        for name in ("top_p", "top_k") if not self.temperature else ():
            if getattr(self, name) != getattr(defaults, name):
                raise UserError(
                    f"{key}.{name} has no effect on greedy decoding; give {key}.temperature"
                )
