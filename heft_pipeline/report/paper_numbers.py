"""The HEFT paper's own numbers, for runs of its model, data and recipe, and what they can support.

The recipe is what ``conf/experiment/heft_paper.yaml`` says, and is said nowhere else.
"""

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from heft_pipeline.data.settings import DataSettings
from heft_pipeline.declare_settings import Settings, identity
from heft_pipeline.evidence.comparison import ALPHA, least_p_value
from heft_pipeline.plan.graph import Run
from heft_pipeline.plan.stage_spec import StageSpec
from heft_pipeline.report import words
from heft_pipeline.report.sections import Section, Setting
from heft_pipeline.settings.schema import config_dir

SOURCE = "arXiv 2509.09801"
_MODEL, _DATA, _TRAINED, _REPORTED = "llama-2-7b-chat-hf", "boolq", 9427, 3270
#: Settings that leave what is computed as it is, but for rounding.
_HOW_FAST = {
    "micro_batch_tokens", "gradient_checkpointing", "compile", "engine", "reuse",
    "reuse_budget_gib",
}  # fmt: skip
#: Those of a task that its rows' number and what was read of them do not show.
_TASK = (
    "prompt", "chat", "system", "special_tokens", "answer_column", "choices", "dev_size",
    "dev_split", "max_train_rows", "max_eval_rows",
)  # fmt: skip
#: What the script's generation samples with: the generation config of the chat model.
_SAMPLED = {"temperature": 0.6, "top_p": 0.9, "top_k": 50}


@dataclass(frozen=True)
class PaperRow:
    """A row of the paper's table 1.

    Attributes:
        name: The row's name, e.g. ``HEFT 3+3``.
        accuracy: On BoolQ's validation split, a share.
        seconds: The training time.
    """

    name: str
    accuracy: float
    seconds: int

    @property
    def correct(self) -> int:
        """How many of the 3,270 answers are right."""
        return round(self.accuracy * _REPORTED)


#: By method and the epochs of its stages.
_TABLE = {
    ("reft", (20,)): PaperRow("ReFT 20", 0.8336, (2 * 60 + 19) * 60),
    ("lora", (20,)): PaperRow("LoRA 20", 0.8505, (6 * 60 + 52) * 60),
    ("heft", (3, 3)): PaperRow("HEFT 3+3", 0.8517, (1 * 60 + 23) * 60),
    ("heft", (20, 20)): PaperRow("HEFT 20+20", 0.8547, (9 * 60 + 11) * 60),
}


def paper_row(section: Section, setting: Setting) -> PaperRow | None:
    """What the paper reports for a setting.

    Args:
        section: The section that the setting belongs to.
        setting: The setting.

    Returns:
        The row; None where the model, the data or a setting is not the paper's.
    """
    run = setting.runs[0]
    last = run.results[-1]
    same = (
        len(section.ids) == _REPORTED
        and last.get("n_train") == _TRAINED
        and not last.get("truncated_prompts")
        and all(result.get("dtype") == "bfloat16" for result in run.results)
    )
    return planned_row(run.run) if same else None


def planned_row(run: Run) -> PaperRow | None:
    """The paper's row of a run that is still to be trained, if it has one; see :func:`paper_row`.

    Its model and data go by their names.
    """
    stage = run.last
    same = (
        Path(stage.model.id).name.lower() == _MODEL
        and Path(str(stage.data.location)).name.lower() == _DATA
        and stage.model.quantization == "none"
        and stage.model.dtype != "float32"
        and all(map(_is_of_the_recipe, run.stages))
    )
    epochs = tuple(stage.epochs for stage in run.stages)
    return _TABLE.get((run.method, epochs)) if same else None


def _is_of_the_recipe(stage: StageSpec) -> bool:
    """Whether a stage's settings are the paper's, in all that can change what it computes."""
    recipe = _recipe()
    evaluation = recipe["evaluation"]
    return (
        all(
            _fits(adapter, recipe.get(adapter.kind), kept=("epochs",)) for adapter in stage.adapters
        )
        and (stage.training is None or _fits(stage.training, recipe["training"]))
        and any(_fits(stage.evaluation, one) for one in (evaluation, evaluation | _SAMPLED))
        and all(getattr(stage.data, key) == _task_default(recipe["data"], key) for key in _TASK)
    )


def _fits(settings: Settings, recipe: dict[str, Any] | None, kept: Sequence[str] = ()) -> bool:
    """Whether settings are the declared defaults with a recipe's values put in."""
    if recipe is None:
        return False
    own = {key: getattr(settings, key) for key in kept}
    expected: Any = type(settings)(**(recipe | own))
    expected = expected.resolved() if hasattr(expected, "resolved") else expected
    one, other = (
        {key: value for key, value in identity(each).items() if key not in _HOW_FAST}
        for each in (settings, expected)
    )
    return one == other


def _task_default(recipe: dict[str, Any], key: str) -> Any:
    default = {field.name: field.default for field in dataclasses.fields(DataSettings)}[key]
    return recipe.get(key, default)


@functools.cache
def _recipe() -> dict[str, Any]:
    """The sections of the paper's experiment."""
    path = config_dir() / "experiment" / "heft_paper.yaml"
    found = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}


def what_it_supports(rows: Iterable[PaperRow]) -> list[str]:
    """What the paper's own numbers can support: one seed a row, and no answers published.

    Args:
        rows: Rows of the table.

    Returns:
        A sentence for each two rows whose difference no pairing of the answers would make
        significant.
    """
    found = []
    for one, other in combinations(sorted(set(rows), key=lambda row: -row.correct), 2):
        more = one.correct - other.correct
        least = least_p_value(more)
        if least >= ALPHA:
            found.append(
                f"The paper's {words.percent(one.accuracy)} for {one.name} against "
                f"{words.percent(other.accuracy)} for {other.name} is {more} of {_REPORTED:,} "
                f"answers. However the two models' answers are paired, p is at least "
                f"{words.number(least)} ({more} to 0), so its table cannot tell them apart."
            )
    return found
