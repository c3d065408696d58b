"""The settings of a task: where its rows are, and how a row becomes a prompt and an answer."""

from dataclasses import dataclass

from omegaconf import MISSING

from heft_pipeline.data.answer_text import check_choice, check_pattern
from heft_pipeline.declare_settings import FrozenDict, Settings, found, setting
from heft_pipeline.errors import UserError

CHOICE_TASK, WRITTEN_TASK = "choice", "answer"
#: What applies only to choices per row, and to written answers.
_OF_ROWS = ("labels_column", "answer_as", "option", "blank", "score")
_OF_WRITTEN = ("extract", "extract_match", "compare")


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
        "the prompt, with {column} for each column's value, and {options} for a list of the row's "
        "choices; white space at its end goes to the choices",
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
    kind: str = setting(
        "choice",
        "choice: the right one of several answers is to be chosen; answer: a short text is to be "
        "written",
        choices=(CHOICE_TASK, WRITTEN_TASK),
        newer=True,
    )
    answer_column: str = setting(
        "answer",
        "the column with the right answer: a label of data.choices; of choices per row, see "
        "data.answer_as; with kind=answer the text to be written, or a list of accepted ones",
    )
    # Without types, so that check() and not OmegaConf says what YAML makes of yes, no and numbers.
    choices: dict = setting(
        {},
        "choices that all rows share: for each label (a value of answer_column), the text that is "
        "scored after the prompt",
    )
    choices_column: str | None = setting(
        None,
        "choices that each row has of its own: the column with the list of them, or a part of one, "
        "e.g. choices[text]",
        example="endings",
        newer=True,
    )
    choices_columns: list[str] | None = setting(
        None,
        "the same where each choice has a column; empty ones at the end are left out",
        example=["sol1", "sol2"],
        newer=True,
    )
    labels_column: str | None = setting(
        None,
        "the column with the labels of a row's choices, one of which answer_column has",
        example="choices[label]",
        newer=True,
    )
    answer_as: str = setting(
        "index",
        "what answer_column says of a row's choices: index (0 is the first), number (1 is the "
        "first), letter (A is the first), or the right one's text",
        choices=("index", "number", "letter", "text"),
        newer=True,
    )
    choice: str = setting(
        " {choice}",
        "how a row's choice, or its written answer, follows the prompt: {choice} is its text, "
        "{letter} its letter (A, B, ...), {number} its number (1, 2, ...)",
        rule=check_choice,
        newer=True,
    )
    option: str = setting(
        "{letter}. {choice}",
        "how a row's choices are listed, a line each, where data.prompt has {options}",
        rule=check_choice,
        newer=True,
    )
    blank: str | None = setting(
        None,
        "text of the prompt that each choice takes the place of; what follows it is scored after "
        "the choice",
        example="_",
        newer=True,
    )
    score: str = setting(
        "all",
        "with data.blank: all: a choice and what follows it are scored; rest: what follows it, as "
        "the choice makes it likely (Trinh and Le 2018, arXiv 1806.02847)",
        choices=("all", "rest"),
        newer=True,
    )
    extract: str | None = setting(
        None,
        "with kind=answer: a regular expression for the part of an answer that counts, its first "
        "group if it has one; null: all of it",
        example="#### (.+)",
        rule=check_pattern,
        newer=True,
    )
    extract_match: str = setting(
        "first", "with kind=answer: which match counts", choices=("first", "last"), newer=True
    )
    compare: str = setting(
        "exact",
        "with kind=answer: exact, but for white space; squad, but for case, punctuation and "
        "articles as well; numbers always count as numbers (1,000 is 1000.0)",
        choices=("exact", "squad"),
        newer=True,
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
        """The labels of the choices that all rows share, in order."""
        return tuple(self.choices)

    @property
    def written(self) -> bool:
        """Whether answers are written, not chosen."""
        return self.kind == WRITTEN_TASK

    @property
    def own_choices(self) -> bool:
        """Whether each row has choices of its own."""
        return self.choices_column is not None or self.choices_columns is not None

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
        self._check_answers(key)
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

    def _check_answers(self, key: str) -> None:
        """Refuse answers that come from nowhere or from two places."""
        sources = [
            f"{key}.{name}={shown}"
            for name, shown in (
                ("choices", dict(self.choices)),
                ("choices_column", self.choices_column),
                ("choices_columns", list(self.choices_columns or ())),
            )
            if shown
        ]
        if self.written and sources:
            raise UserError(
                f"{key}.kind=answer is written, not chosen, so {sources[0]} has no place; take it "
                f"out, or use {key}.kind=choice"
            )
        if len(sources) > 1:
            raise UserError(f"{' and '.join(sources)}: choices can come from one of them only")
        for name in (
            *(() if self.own_choices else _OF_ROWS),
            *(() if self.written else _OF_WRITTEN),
        ):
            if getattr(self, name) != type(self).__dataclass_fields__[name].default:
                only = f"{key}.kind=answer" if name in _OF_WRITTEN else "choices per row"
                raise UserError(f"{key}.{name} has no effect without {only}")
        if self.own_choices:
            self._check_own_choices(key)
        elif not self.written:
            self._check_shared_choices(key)

    def _check_own_choices(self, key: str) -> None:
        if self.choices_columns is not None and len(self.choices_columns) < 2:
            raise UserError(
                f"{key}.choices_columns={list(self.choices_columns)} needs two or more columns; "
                f"one column with a list is {key}.choices_column"
            )
        if self.labels_column is not None and self.answer_as != "index":
            raise UserError(
                f"{key}.answer_as={self.answer_as} and {key}.labels_column={self.labels_column} "
                f"contradict each other: with labels, {key}.answer_column has one of them"
            )
        if self.score != "all" and self.blank is None:
            raise UserError(f"{key}.score={self.score} has no effect without {key}.blank")
        if self.blank is not None and (self.chat or not self.blank.strip()):
            raise UserError(
                f"{key}.blank={self.blank!r} needs some text and {key}.chat=false, because the "
                "rest of the prompt follows each choice"
            )

    def _check_shared_choices(self, key: str) -> None:
        """Refuse too few choices, two that are the same, and what is no text."""
        if len(self.choices) < 2:
            raise UserError(
                f"{key}.choices={dict(self.choices)} needs two or more answers; add one with, "
                f"e.g., +{key}.choices.maybe=' maybe'; or name the column that has each row's "
                f"own, e.g. {key}.choices_column=endings"
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
            if same := next((o for o, t in self.choices.items() if t == text and o != label), ""):
                raise UserError(
                    f"{key}.choices.{label} and {key}.choices.{same} are both {text!r}, so no "
                    "answer could be told from the other; give each a text of its own"
                )


def _written(label: object) -> str:
    return str(label).lower() if isinstance(label, bool) else str(label)
