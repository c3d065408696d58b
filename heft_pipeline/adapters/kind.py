"""What the rest of the code knows of a kind of adapter: its settings and what they say of it.

A kind is a folder beside this file. Its ``__init__`` names its settings' class as ``SETTINGS``,
which derives from :class:`AdapterSettings`; importing it needs no torch. The half that needs
torch is an ``Adapter``, which the kind's ``adapter.py`` names as ``ADAPTER``.
"""

import functools
import importlib
import pkgutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from heft_pipeline.declare import Settings, found, identity, setting
from heft_pipeline.errors import UserError


@dataclass(frozen=True)
class Reach:
    """What of the forward pass training an adapter can change.

    Attributes:
        first_layer: The first decoder layer whose computation it can change; what comes before
            is the same in every epoch.
        last_positions: How many of a prompt's last positions it can change directly; None where
            it can change any position.
        what: Where it acts, for people, e.g. ``f7+l7``.
    """

    first_layer: int
    last_positions: int | None
    what: str


@dataclass(frozen=True)
class Schedule(Settings):
    """How long a stage is trained, and in which steps."""

    epochs: int = setting("${epochs}", "passes over the training split", above=0, example=3)
    batch_size: int = setting(
        32, "examples in an optimiser step, whatever fits into memory at once", above=0
    )
    warmup_ratio: float = setting(
        0.1, "the share of all steps over which the learning rate rises from 0", least=0, most=1
    )


@dataclass(frozen=True)
class AdapterSettings(Schedule):
    """The settings of one kind of adapter; a kind derives from this and adds its own.

    Attributes:
        kind: The kind's name in ``method.stages``; its folder and its section have it too.
        title: What people call it.
        edits: Whether it edits hidden states; otherwise it changes weights.
    """

    kind: ClassVar[str]
    title: ClassVar[str]
    edits: ClassVar[bool] = False

    learning_rate: float = setting(1e-3, "the highest learning rate", above=0)
    weight_decay: float = setting(0.0, "AdamW's weight decay", least=0, example=0.01)
    init_from: str | None = setting(
        None, "a folder with a saved adapter that training starts from", identity=False
    )
    init_content: str | None = found("What init_from holds: sha256:DIGEST.")

    @property
    def low_rank(self) -> int | None:
        """The adapter's rank; None for a kind without one."""
        return getattr(self, "rank", None)

    def resolved(self) -> Self:
        """The same settings with every default that depends on another setting filled in.

        Two ways of asking for the same adapter must become equal, and share a fingerprint.
        """
        return self

    def reach(self) -> Reach:
        """What of the forward pass training this adapter can change."""
        return Reach(0, None, f"{self.title} changes every position's activations")

    @property
    def merges_parents(self) -> bool:
        """Whether the finished weight-space adapters below are added to the frozen weights."""
        return False

    @property
    def reuse_bytes(self) -> float | None:
        """How many bytes of activations may be kept for reuse; None to keep none."""
        return None

    @property
    def own_engine(self) -> str:
        """The name of the kind's own forward pass, which runs whole prompts; empty for none."""
        return ""

    def check_mode(self, mode: str) -> None:
        """Refuse an evaluation mode that the adapter cannot be used with.

        Args:
            mode: ``evaluation.mode``.

        Raises:
            UserError: The message names both settings.
        """

    def describe(self) -> str:
        """What was trained, in one phrase for the report."""
        return f"{self.title}: learning rate {self.learning_rate:g}"

    def compared(self) -> dict[str, str]:
        """What tells two adapters of the kind apart, by key; rank and epochs are columns."""
        own = {key: repr(value) for key, value in identity(self).items()}
        return {key: value for key, value in own.items() if key not in ("rank", "epochs")}


@dataclass(frozen=True)
class EditSettings(AdapterSettings):
    """The settings that all kinds which edit hidden states have in common."""

    edits: ClassVar[bool] = True

    reuse: str = setting(
        "auto",
        "auto: what no trained parameter can change is computed once for each prompt; off: each "
        "time",
        choices=("auto", "off"),
    )
    reuse_budget_gib: float = setting(
        16.0, "most of it that is kept: in GPU memory, then RAM, then a file", above=0
    )
    merge_parent: bool = setting(
        False,
        "add the weight-space stages below to the frozen weights; result.json has the error",
    )

    @property
    def merges_parents(self) -> bool:
        """Whether the finished weight-space adapters below are added to the frozen weights."""
        return self.merge_parent

    @property
    def reuse_bytes(self) -> float | None:
        """How many bytes of activations may be kept for reuse; None to keep none."""
        return self.reuse_budget_gib * 2**30 if self.reuse == "auto" else None


def check_layers(key: str, value: Any) -> None:
    """Refuse what is neither ``all`` nor a list of different layer numbers.

    Args:
        key: The setting's key.
        value: Its value.

    Raises:
        UserError: The message has an example.
    """
    if value == "all":
        return
    whole = isinstance(value, list | tuple) and all(
        isinstance(n, int) and not isinstance(n, bool) for n in value
    )
    if not whole:
        raise UserError(
            f"{key}={value} must be all or a list of layer numbers, e.g. {key}=[0,5,10]"
        )
    if not value or len(set(value)) != len(value):
        raise UserError(f"{key}={list(value)} must name each layer once, and at least one")


@functools.cache
def kinds() -> dict[str, type[AdapterSettings]]:
    """All kinds of adapter, by name, in the order in which a stage with several holds them."""
    folder = str(Path(__file__).parent)
    names = sorted(module.name for module in pkgutil.iter_modules([folder]) if module.ispkg)
    return {
        name: importlib.import_module(f"heft_pipeline.adapters.{name}").SETTINGS for name in names
    }


def kinds_of(stage: str) -> tuple[str, ...]:
    """The kinds of adapter that a stage trains.

    Args:
        stage: An entry of ``method.stages``: a kind, or several joined with ``+``.

    Returns:
        The kinds in the order of :func:`kinds`.

    Raises:
        UserError: A kind is unknown or is named twice.
    """
    known, asked = kinds(), stage.split("+")
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
    """Entries of ``method.stages`` as :func:`kinds_of` orders them, e.g. ``lora+reft``."""
    return tuple("+".join(kinds_of(stage)) for stage in stages)
