"""How a setting is declared: once, as a field of a dataclass.

A section of the config is a frozen dataclass that derives from :class:`Settings`; each of its
fields is a :func:`setting`. Hydra's schema, the checks and their messages, a stage's fingerprint
and ``docs/configuration.md`` are all made from these declarations.
"""

import dataclasses
import inspect
import math
import re
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING, SI

from heft_pipeline.command_line.secrets_kept import refuse_secret
from heft_pipeline.errors import UserError

#: A check that no bound can express; called with the setting's key and its value.
Rule = Callable[[str, Any], None]
Number = int | float
#: What every library takes for a whole number.
_LARGEST = 2**31 - 1


class FrozenDict(dict[str, str]):
    """A mapping that cannot be changed and keeps the order in which it was written."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(self.items()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, dict) and list(self.items()) == list(other.items())

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __reduce__(self) -> tuple[Any, ...]:
        return FrozenDict, (dict(self),)  # unpickling a dict calls __setitem__

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise TypeError("settings cannot be changed; use dataclasses.replace")

    __setitem__ = __delitem__ = __ior__ = update = pop = clear = setdefault = popitem = _refuse


@dataclass(frozen=True)
class Bounds:
    """The values that a setting may have.

    Attributes:
        above: The value must be greater than this.
        least: The smallest allowed value.
        most: The largest allowed value.
        whole: Whether numbers must be whole.
        choices: The allowed words. If there are numeric bounds too, numbers are allowed as well.
        rule: A further check.
    """

    above: Number | None = None
    least: Number | None = None
    most: Number | None = None
    whole: bool = False
    choices: tuple[str, ...] = ()
    rule: Rule | None = None

    @property
    def numeric(self) -> bool:
        """Whether there is a numeric bound."""
        return any(bound is not None for bound in (self.above, self.least, self.most))

    def describe(self) -> str:
        """The bounds in words, e.g. ``greater than 0``; empty if there are none."""
        words = " or ".join(self.choices)
        if not self.numeric:
            return " | ".join(self.choices)
        if self.above is not None:
            numbers = f"greater than {self.above:g}"
        elif self.most is None:
            numbers = f"{self.least:g} or more"
        else:
            # Without :g, which would write 2147483647 as 2.14748e+09.
            numbers = f"from {self.least} to {self.most}"
        numbers = f"a whole number {numbers}" if self.whole else numbers
        return f"{numbers}, or {words}" if words else numbers

    def check(self, key: str, value: Any, example: Any) -> None:
        """Refuse a value outside the bounds.

        Args:
            key: The setting's key, e.g. ``lora.rank``.
            value: The value.
            example: A valid value, for the message.

        Raises:
            UserError: The message names the key, the value, what is allowed, and an example.
        """
        if self.choices and value in self.choices:
            return
        if self.choices and not self.numeric:
            raise UserError(f"{key}={value} is not one of {', '.join(self.choices)}")
        if self.numeric and not self._holds(value):
            raise UserError(f"{key}={value} must be {self.describe()}, e.g. {key}={example}")
        if self.rule is not None:
            self.rule(key, value)

    def _holds(self, value: Any) -> bool:
        allowed = int if self.whole else int | float
        if isinstance(value, bool) or not isinstance(value, allowed):
            return False
        return (
            math.isfinite(value)
            and (self.above is None or value > self.above)
            and (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
        )


def setting(
    default: Any,
    help: str,
    *,
    above: Number | None = None,
    least: Number | None = None,
    most: Number | None = None,
    whole: bool = False,
    choices: Sequence[str] = (),
    rule: Rule | None = None,
    example: Any = None,
    identity: bool = True,
    newer: bool = False,
) -> Any:
    """Declare a setting.

    Args:
        default: The default value. ``MISSING`` means that a value must be given; text with
            ``${...}`` is an OmegaConf interpolation.
        help: What it means, in one line.
        above: The value must be greater than this.
        least: The smallest allowed value.
        most: The largest allowed value.
        whole: Whether it must be a whole number.
        choices: The allowed words.
        rule: A further check.
        example: A valid value for messages; by default ``default``, if that is a plain value.
        identity: Whether it can change a stage's result, and so is part of the fingerprint.
        newer: Whether stages were stored before it was declared. At its default it then stands for
            what they did, and is left out of the fingerprint, so that theirs do not change.

    Returns:
        A dataclass field.

    Raises:
        ValueError: The example is outside the bounds, or there are numeric bounds but no example.
    """
    bounds = Bounds(above, least, most, whole, tuple(choices), rule)
    if example is None and not _is_reference(default):
        example = default
    if example is not None:
        try:
            bounds.check("example", example, example)
        except UserError as error:
            raise ValueError(f"the setting's own {error}") from error
    elif bounds.numeric:
        raise ValueError(f"a setting with bounds needs an example ({help})")
    metadata = {"help": help, "bounds": bounds, "example": example, "identity": identity}
    metadata["newer"] = newer
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=SI(default) if isinstance(default, str) else default, metadata=metadata)


def section(kind: type["Settings"], help: str, *, identity: bool = True) -> Any:
    """Declare a section of settings within another section.

    Args:
        kind: The section's class.
        help: What its settings are about.
        identity: Whether they can change a stage's result.

    Returns:
        A dataclass field.
    """
    return field(default_factory=kind, metadata={"help": help, "identity": identity})


def found(help: str, *, identity: bool = True) -> Any:
    """Declare a field that planning fills in and nobody can set.

    Args:
        help: What it holds.
        identity: Whether it can change a stage's result.

    Returns:
        A dataclass field that Hydra does not see. It is None until planning fills it in.
    """
    metadata = {"help": help, "identity": identity, "omegaconf_ignore": True}
    return field(default=None, metadata=metadata)


def refuse_joined(key: str, value: Any) -> None:
    """Refuse a list that was written as one text, e.g. ``"q_proj,v_proj"``, in quotes or in YAML.

    A text of names and commas alone is meant, with or without brackets around it; others, such as
    a regular expression with ``{1,2}`` in it, pass.

    Args:
        key: The setting's key, for the message.
        value: Its value: a text, or a list of texts.

    Raises:
        UserError: The message shows the list in brackets.
    """
    texts = [value] if isinstance(value, str) else value
    texts = texts if isinstance(texts, list | tuple) else []
    plain = [text.strip().removeprefix("[").removesuffix("]") for text in map(str, texts)]
    if not any(re.fullmatch(r"[\w.\- ]*(,[\w.\- ]*)+", text) for text in plain):
        return
    names = [name.strip() for text in plain for name in text.split(",") if name.strip()]
    raise UserError(
        f"{key}={value} holds one text where a list is meant; write it in brackets and without "
        f"quotes: {key}=[{','.join(names)}]"
    )


class Settings:
    """A section of the config: a frozen dataclass whose fields are declared with :func:`setting`.

    Lists become tuples and mappings become :class:`FrozenDict`, so that a section can be hashed.
    Whole numbers become floats where a setting is a float, so that 16 and 16.0 are the same.
    """

    def __init_subclass__(cls) -> None:
        for name, kind in inspect.get_annotations(cls).items():
            if typing.get_origin(kind) is typing.ClassVar:
                continue
            declared = cls.__dict__.get(name)
            if not isinstance(declared, dataclasses.Field) or "help" not in declared.metadata:
                raise TypeError(f"{cls.__name__}.{name} is not declared with setting(...)")

    def __post_init__(self) -> None:
        for one in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, one.name)
            if isinstance(value, int) and not isinstance(value, bool) and _is_float(one):
                value = float(value)
            object.__setattr__(self, one.name, _frozen(value))

    def check(self, key: str) -> None:
        """Refuse settings that contradict each other.

        Args:
            key: The section's key, e.g. ``data``.

        Raises:
            UserError: The message names the setting, its value and what is allowed.
        """


def check(settings: Settings, key: str = "") -> None:
    """Refuse values outside their bounds, and settings that contradict each other.

    Args:
        settings: A section with all interpolations resolved.
        key: The section's key; empty for the whole config.

    Raises:
        UserError: The message names the setting, its value, what is allowed, and an example.
    """
    # Sections last: their values may be those of a setting beside them, which is the one to name.
    for one in sorted(dataclasses.fields(settings), key=is_section):  # type: ignore[arg-type]
        value, own = getattr(settings, one.name), f"{key}.{one.name}" if key else one.name
        if isinstance(value, Settings):
            check(value, own)
            continue
        refuse_secret(own, value)
        if "bounds" in one.metadata and not (value is None and _may_be_none(one)):
            # Shown as it was written: [0,2], and not the tuple that it has become.
            shown = list(value) if isinstance(value, tuple) else value
            _refuse_large(own, value, one.metadata["example"])
            one.metadata["bounds"].check(own, shown, one.metadata["example"])
    settings.check(key)


def _refuse_large(key: str, value: Any, example: Any) -> None:
    if isinstance(value, int) and abs(value) > _LARGEST:
        raise UserError(f"{key}={value} must be {_LARGEST} or less, e.g. {key}={example}")


def identity(value: Any) -> Any:
    """The part of a value that can change a stage's result, as JSON-ready data.

    Args:
        value: A dataclass whose fields say whether they belong to the identity, or plain data.

    Returns:
        A dataclass becomes a mapping of the fields that belong to the identity. A mapping becomes
        a list of pairs, because its order matters.

    Raises:
        TypeError: The value is of a type that cannot be written as JSON in exactly one way.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        counted = [one for one in dataclasses.fields(value) if _counts(one, value)]
        for one in counted:
            if one.type in (int, float) and isinstance(getattr(value, one.name), str):
                raise TypeError(f"{one.name}={getattr(value, one.name)} is not resolved")
        return {one.name: identity(getattr(value, one.name)) for one in counted}
    if isinstance(value, dict):
        return [[identity(key), identity(own)] for key, own in value.items()]
    if isinstance(value, list | tuple):
        return [identity(own) for own in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    raise TypeError(f"{value!r} cannot be part of a fingerprint: it is a {type(value).__name__}")


def _counts(one: "dataclasses.Field[Any]", owner: Any) -> bool:
    unchanged = one.metadata.get("newer") and getattr(owner, one.name) == one.default
    return bool(one.metadata.get("identity", True) and not unchanged)


def comparable(section: Settings) -> dict[str, Any]:
    """The settings of a section that can change a result, by name, for comparing two sections.

    Unlike :func:`identity` it has the same names for every section of a class.
    """
    return {
        one.name: identity(getattr(section, one.name))
        for one in dataclasses.fields(section)  # type: ignore[arg-type]
        if one.metadata.get("identity", True)
    }


def is_section(one: "dataclasses.Field[Any]") -> bool:
    """Whether a field holds a section of settings."""
    return isinstance(one.type, type) and issubclass(one.type, Settings)


def type_name(one: "dataclasses.Field[Any]") -> str:
    """A field's type as people write it, e.g. ``int or null``; empty if any type is allowed."""
    kind = one.type
    parts = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    names = {type(None): "null", Any: ""}
    return " or ".join(
        names.get(part, part.__name__ if isinstance(part, type) and not typing.get_args(part)
        else str(part))
        for part in parts
    )  # fmt: skip


def _may_be_none(one: "dataclasses.Field[Any]") -> bool:
    return isinstance(one.type, types.UnionType) and type(None) in typing.get_args(one.type)


def _is_float(one: "dataclasses.Field[Any]") -> bool:
    return one.type is float or float in typing.get_args(one.type)


def _is_reference(default: Any) -> bool:
    return default is None or (isinstance(default, str) and (default == MISSING or "${" in default))


def _frozen(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(_frozen(own) for own in value)
    return (
        FrozenDict(value)
        if isinstance(value, dict) and not isinstance(value, FrozenDict)
        else value
    )
