"""What the rest of the code knows about a kind of adapter: its settings and what follows from them.

A kind is a folder beside this file. Its ``__init__`` exports its settings class, which derives
from :class:`AdapterSettings`, as ``SETTINGS``; importing it does not need torch. The part that
needs torch is an ``Adapter`` class, which the kind's ``adapter.py`` exports as ``ADAPTER``.
"""

import dataclasses
import functools
import importlib
import pkgutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from heft_pipeline.data.answer_text import CHOICE, AnswerText, check_template
from heft_pipeline.declare_settings import Settings, comparable, found, refuse_joined, setting
from heft_pipeline.errors import UserError

#: More are a slip of the keyboard, and would never end.
MOST_EPOCHS = 100_000
#: Names from before a stage could train any several adapters.
_FORMER = {"joint": "lora+reft"}


@dataclass(frozen=True)
class Reach:
    """The part of the forward pass that training an adapter can change.

    Attributes:
        first_layer: The first decoder layer whose computation it can change; earlier layers compute
            the same in every epoch.
        last_positions: How many of a prompt's last positions it can change directly; None if it can
            change any position.
        what: Where the adapter acts, for people, e.g. ``f7+l7``.
    """

    first_layer: int
    last_positions: int | None
    what: str


@dataclass(frozen=True)
class Schedule(Settings):
    """What a stage is trained on, how long, and the size and warm-up of its steps."""

    epochs: int = setting(
        "${epochs}", "passes over the training split", least=1, most=MOST_EPOCHS, example=3
    )
    batch_size: int = setting(
        32, "examples per optimiser step, however many fit into memory at once", above=0
    )
    warmup_ratio: float = setting(
        0.1, "the share of all steps over which the learning rate rises from 0", least=0, most=1
    )
    loss: str = setting(
        "answer",
        "the tokens whose cross-entropy is minimised: the answer's, or those of the whole "
        "sequence of prompt and answer",
        choices=("answer", "sequence"),
    )
    answer: str = setting(
        CHOICE,
        "the answer's text, with {choice} for the choice's text in data.choices",
        rule=check_template,
    )
    end_token: bool = setting(False, "whether the tokenizer's end token follows the answer")

    @property
    def answer_text(self) -> AnswerText:
        """How the answers are written that are trained on."""
        return AnswerText(self.answer, self.end_token)


@dataclass(frozen=True)
class AdapterSettings(Schedule):
    """The settings that every kind of adapter has; a kind derives from this class and adds its own.

    Attributes:
        kind: The kind's name in ``method.stages``; its folder and its section have the same name.
        title: Its name for people.
        init_files: The names of the files that are read from ``init_from``.
        at_positions: Whether it edits certain positions of a batch, which must be announced to it;
            otherwise it acts on every position at any time.
        edits: Whether it edits hidden states; otherwise it changes weights.
    """

    kind: ClassVar[str]
    title: ClassVar[str]
    init_files: ClassVar[tuple[str, ...]] = ()
    edits: ClassVar[bool] = False
    at_positions: ClassVar[bool] = False

    learning_rate: float = setting(1e-3, "the highest learning rate", above=0)
    weight_decay: float = setting(0.0, "AdamW's weight decay", least=0, example=0.01)
    init_from: str | None = setting(
        None, "a folder with a saved adapter that training starts from", identity=False
    )
    init_content: str | None = found("The content of init_from: sha256:DIGEST.")

    @property
    def low_rank(self) -> int | None:
        """The adapter's rank; None for a kind without one."""
        return getattr(self, "rank", None)

    def resolved(self) -> Self:
        """The same settings, with every default that depends on another setting filled in.

        Two ways of asking for the same adapter must resolve to equal settings, so that they share a
        fingerprint.
        """
        return self

    def reach(self) -> Reach:
        """The part of the forward pass that training this adapter can change."""
        return Reach(0, None, f"{self.title} changes every position's activations")

    def parameters_on(self, hidden_size: int, num_layers: int) -> int | None:
        """How many parameters it trains on a model.

        Args:
            hidden_size: The width of the residual stream.
            num_layers: How many decoder layers there are.

        Returns:
            The number; None if it takes the model's modules to know.
        """
        return None

    @property
    def merges_parents(self) -> bool:
        """Whether the parents' weight-space adapters are added to the frozen weights."""
        return False

    @property
    def reuse_bytes(self) -> float | None:
        """The most bytes of activations to keep for reuse; None to keep none."""
        return None

    @property
    def own_engine(self) -> str:
        """The name of the kind's own forward pass, which runs whole prompts; empty for none."""
        return ""

    @property
    def tokens_needed(self) -> int:
        """How many tokens a prompt needs to be edited at all positions; a shorter one has fewer."""
        return 0

    @property
    def mergeable(self) -> bool:
        """Whether the finished adapter can be added to the frozen weights."""
        return False

    def start_files(self, folder: Path) -> Sequence[str]:
        """The names of the files that are read if training starts from a folder.

        The fingerprint covers these files of ``init_from`` and no others.

        Args:
            folder: The value of ``init_from``.

        Raises:
            UserError: The folder does not say which files belong to it.
        """
        return self.init_files

    def check_mode(self, mode: str) -> None:
        """Refuse an evaluation mode that the adapter does not support.

        Args:
            mode: The value of ``evaluation.mode``.

        Raises:
            UserError: The message names both settings.
        """

    def describe(self) -> str:
        """What was trained, in one phrase for the report."""
        return f"{self.title}: learning rate {self.learning_rate:g}"

    def compared(self) -> dict[str, str]:
        """The settings in which adapters of this kind can differ, by key.

        Rank and epochs are left out, because the report has columns for them.
        """
        own = {key: repr(value) for key, value in comparable(self).items()}
        return {key: value for key, value in own.items() if key not in ("rank", "epochs")}


def check_layers(key: str, value: Any) -> None:
    """Refuse anything but ``all`` or a list of distinct layer numbers.

    Args:
        key: The setting's key, for the message.
        value: Its value.

    Raises:
        UserError: The value is anything else.
    """
    if value == "all":
        return
    refuse_joined(key, value)
    whole = isinstance(value, list | tuple) and all(
        isinstance(n, int) and not isinstance(n, bool) for n in value
    )
    if not whole:
        raise UserError(
            f"{key}={value} must be all or a list of layer numbers, e.g. {key}=[0,5,10]"
        )
    if not value or len(set(value)) != len(value):
        raise UserError(f"{key}={list(value)} must name at least one layer, and each layer once")


@dataclass(frozen=True)
class EditSettings(AdapterSettings):
    """The settings that all kinds that edit hidden states have in common."""

    edits: ClassVar[bool] = True

    layers: Any = setting(
        "all", "the decoder layers that are edited: all, or a list", rule=check_layers
    )
    reuse: str = setting(
        "auto",
        "auto: activations that training cannot change are computed once per prompt; off: every "
        "time",
        choices=("auto", "off"),
    )
    reuse_budget_gib: float = setting(
        16.0, "the most activations to keep, in GPU memory, then RAM, then a file", above=0
    )
    merge_parent: bool = setting(
        False,
        "add the parents' weight-space adapters to the frozen weights; result.json has the error",
    )

    def resolved(self) -> Self:
        """The same settings with the layers in one order."""
        layers = self.layers
        return dataclasses.replace(
            self, layers=layers if isinstance(layers, str) else tuple(sorted(layers))
        )

    @property
    def merges_parents(self) -> bool:
        """Whether the parents' weight-space adapters are added to the frozen weights."""
        return self.merge_parent

    @property
    def reuse_bytes(self) -> float | None:
        """The most bytes of activations to keep for reuse; None to keep none."""
        return self.reuse_budget_gib * 2**30 if self.reuse == "auto" else None


@functools.cache
def kinds() -> dict[str, type[AdapterSettings]]:
    """All kinds of adapter by name, in the order in which a stage with several kinds holds them."""
    folder = str(Path(__file__).parent)
    names = sorted(module.name for module in pkgutil.iter_modules([folder]) if module.ispkg)
    return {
        name: importlib.import_module(f"heft_pipeline.adapters.{name}").SETTINGS for name in names
    }


def kinds_of(stage: str) -> tuple[str, ...]:
    """The kinds of adapter that a stage trains, in the order of :func:`kinds`.

    Args:
        stage: An entry of ``method.stages``: a kind, or several kinds joined with ``+``.

    Raises:
        UserError: A kind is unknown or is named twice.
    """
    known, asked = kinds(), _FORMER.get(stage, stage).split("+")
    for name in asked:
        if name not in known:
            raise UserError(
                f"method.stages={stage} is not one of {', '.join(known)}, or several of them "
                "joined with + to train them at once, e.g. method.stages=[lora+reft]"
            )
    if len(set(asked)) < len(asked):
        raise UserError(f"method.stages={stage} names a kind of adapter twice; name each once")
    return tuple(name for name in known if name in asked)


def joined(stages: Iterable[str]) -> tuple[str, ...]:
    """Entries of ``method.stages`` with their kinds in the order of :func:`kinds`."""
    return tuple("+".join(kinds_of(stage)) for stage in stages)


def adapter_folder(
    folder: Path, settings: AdapterSettings, stage: Sequence[AdapterSettings]
) -> Path:
    """The folder of one of a stage's adapters.

    Args:
        folder: The stage's adapter folder.
        settings: The adapter's settings.
        stage: The settings of all the stage's adapters.

    Returns:
        ``folder`` itself for a stage with one adapter, else a subfolder named after the kind.
    """
    return folder / settings.kind if len(stage) > 1 else folder
