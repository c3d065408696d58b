"""The settings of a task: where its rows are, and how a row becomes a prompt and an answer."""

from dataclasses import dataclass

from omegaconf import MISSING

from heft_pipeline.declare_settings import FrozenDict, Settings, found, setting
from heft_pipeline.errors import UserError


@dataclass(frozen=True)
class DataSettings(Settings):
    """The task. In a stage, planning has resolved ``revision`` and filled in ``name``."""

    id: str | None = setting(None, "a data set on the hub", identity=False)
    path: str | None = setting(
        None,
        "a local folder with a file or folder for each split (JSON lines, CSV, Parquet, ...), or "
        "builtin:demo; used instead of data.id",
        identity=False,
    )
    subset: str | None = setting(
        None, "the hub data set's configuration; of a local folder, the folder in it to read"
    )
    revision: str | None = setting(
        "main", "a branch, tag or commit of the hub data set", identity=False
    )
    name: str | None = setting(
        None, "its name in tables; null: the last part of data.id or data.path", identity=False
    )
    train_split: str = setting("train", "the split that stages are trained on")
    dev_split: str | None = setting(
        None, "the split that the epoch is chosen on; null: held out of the training split"
    )
    eval_split: str = setting("validation", "the split that is reported; read once per stage")
    dev_size: float = setting(
        0.1,
        "how much is held out for dev, with the same share of each answer: a share below 1, or a "
        "number of rows; 0: nothing, with training.selection=last",
        least=0,
    )
    max_train_rows: int | None = setting(
        None, "use only the first rows of the training split", above=0, example=1000
    )
    max_eval_rows: int | None = setting(
        None, "use only the first rows of the reported split", above=0, example=1000
    )
    prompt: str = setting(
        MISSING,
        "the prompt, with {column} for each column's value; white space at its end goes to the "
        "choices",
    )
    chat: bool = setting(
        False, "put the prompt into the tokenizer's chat template, as the user's turn"
    )
    system: str | None = setting(
        None, "with chat=true: the system message", example="Answer with yes or no."
    )
    special_tokens: str = setting(
        "once",
        "those that the tokenizer puts before a text, such as BOS; once: added unless the prompt "
        "begins with them; add: always, so that they can be doubled; as_written: never",
        choices=("once", "add", "as_written"),
    )
    answer_column: str = setting("answer", "the column that holds the label of the right answer")
    # Without types, so that check() and not OmegaConf says what YAML makes of yes, no and numbers.
    choices: dict = setting(
        MISSING,
        "for each label (a value of answer_column), the text that is scored after the prompt",
    )
    id_column: str | None = setting(
        None, "the column that names a row in predictions.parquet; null: split and row number"
    )
    cluster_column: str | None = setting(
        None,
        "the column that reported rows which are not independent have in common, e.g. a passage "
        "with several questions; every interval and test then counts clusters; null: rows are "
        "independent",
        identity=False,
    )
    truncate_column: str | None = setting(
        None, "the column that is cut when a prompt is too long; null: a long prompt is an error"
    )
    max_prompt_tokens: int = setting(512, "the longest prompt, in tokens", above=0)
    allow_overlap: bool = setting(
        False,
        "whether reported rows may also be training or dev rows; the report then counts them",
        identity=False,
    )
    location: str | None = found(
        "The hub data set or the absolute local folder that is read.", identity=False
    )
    content: str | None = found(
        "The content of the rows: sha256:DIGEST of a folder, or hub:ID@COMMIT."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.choices, dict):
            # As str and JSON would write them, and as rows are compared with them: 0, true.
            names = [_written(label) for label in self.choices]
            if len(set(names)) == len(names):
                texts = [str(text) if type(text) is int else text for text in self.choices.values()]
                named = FrozenDict(dict(zip(names, texts, strict=True)))
                object.__setattr__(self, "choices", named)

    @property
    def has_dev(self) -> bool:
        """Whether there are dev rows."""
        return self.dev_split is not None or self.dev_size > 0

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of the choices, in order."""
        return tuple(self.choices)

    def check(self, key: str) -> None:
        """Refuse a task with no source, too few choices, or settings that contradict each other."""
        if self.id is None and self.path is None:
            raise UserError(
                f"{key}.id (a hub data set) or {key}.path (a local folder, used first) must be "
                "given; e.g. data.id=google/boolq, or data=boolq data.path=DIR"
            )
        if self.id is not None and (self.path or "").startswith("builtin:"):
            raise UserError(
                f"{key}.id={self.id} would be ignored because of {key}.path={self.path}; add "
                f"{key}.path=null, or choose the task's own config, e.g. data=boolq"
            )
        if len(self.choices) < 2:
            raise UserError(
                f"{key}.choices={dict(self.choices)} needs two or more answers; add one with, "
                f"e.g., +{key}.choices.maybe=' maybe'"
            )
        if twice := [label for label in self.choices if not isinstance(label, str)]:
            raise UserError(
                f"{key}.choices has the label {_written(twice[0])} twice (without quotes, yes and "
                "no are true and false in YAML); write labels in quotes"
            )
        for label, text in self.choices.items():
            if not isinstance(text, str):
                raise UserError(
                    f"{key}.choices.{label} is {text!r}, which is no text: without quotes, YAML "
                    "takes yes and no for truth values; write it in quotes, e.g. ' yes'"
                )
            if not text.strip():
                raise UserError(
                    f"{key}.choices.{label} is {text!r}: a choice needs text to score, e.g. ' yes'"
                )
        if self.truncate_column and f"{{{self.truncate_column}}}" not in self.prompt:
            raise UserError(
                f"{key}.truncate_column={self.truncate_column} does not occur in {key}.prompt "
                f"({self.prompt!r}); name a column of the prompt, or null"
            )
        if self.system is not None and not self.chat:
            raise UserError(
                f"{key}.system is a part of chat templates; use it with {key}.chat=true, or write "
                f"it into {key}.prompt"
            )
        if 1 < self.dev_size != int(self.dev_size):
            raise UserError(
                f"{key}.dev_size={self.dev_size} must be a share below 1 or a whole number of rows"
            )


def _written(label: object) -> str:
    return str(label).lower() if isinstance(label, bool) else str(label)
