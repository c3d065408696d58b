"""The settings of ReFT."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from heft_pipeline.adapters.kind import EditSettings, Reach
from heft_pipeline.declare_settings import setting
from heft_pipeline.errors import UserError
from heft_pipeline.files.untrusted import read_untrusted, refuse_special


def parse_positions(positions: str) -> tuple[int, int]:
    """Read a position string in pyreft's notation.

    Args:
        positions: ``fN``, ``lM`` or ``fN+lM``: the first N and the last M prompt tokens.

    Returns:
        (N, M).

    Raises:
        UserError: The string has another form, or both counts are 0.
    """
    match = re.fullmatch(r"(?:f(\d+))?(?:(?<=\d)\+(?=l))?(?:l(\d+))?", positions.strip())
    if not match or not any(int(n or 0) for n in match.groups()):
        raise UserError(
            f"reft.positions={positions} is not a position string; write fN, lM or fN+lM for the "
            "first N and last M prompt tokens, e.g. reft.positions=f7+l7"
        )
    first, last = (int(n or 0) for n in match.groups())
    return first, last


def tokens_needed(positions: str) -> int:
    """How long a prompt must be to have all positions; neither end gets more than half of it."""
    return 2 * max(parse_positions(positions))


def _check_positions(_key: str, value: Any) -> None:
    parse_positions(value)


@dataclass(frozen=True)
class ReftSettings(EditSettings):
    """The ReFT interventions and how they are trained."""

    kind: ClassVar[str] = "reft"
    title: ClassVar[str] = "ReFT"
    at_positions: ClassVar[bool] = True

    intervention: str = setting(
        "loreft",
        "pyreft's intervention",
        choices=("loreft", "noreft", "consreft", "lobireft", "direft", "nodireft"),
    )
    rank: int = setting("${rank}", "the dimension of the edited subspace", above=0, example=8)
    positions: str = setting(
        "f7+l7",
        "the edited prompt tokens: fN the first N, lM the last M, fN+lM both",
        rule=_check_positions,
    )
    share_weights: bool = setting(
        True, "one intervention per layer for both ends of the prompt; false: one for each end"
    )
    dropout: float = setting(0.0, "dropout on the intervention's output", least=0, most=0.99)
    add_bias: bool = setting(False, "add a bias to the projection of noreft and nodireft")
    engine: str = setting(
        "hooks",
        "hooks: this project's own; pyreft: pyreft's ReftModel, slower, with the same results",
        choices=("hooks", "pyreft"),
    )
    learning_rate: float = setting(9e-4, "the highest learning rate", above=0)

    @property
    def own_engine(self) -> str:
        """The name of pyreft's own forward pass, if it is used; else empty."""
        return "pyreft's engine" if self.engine == "pyreft" else ""

    def reach(self) -> Reach:
        """An edit of a layer's output changes no computation before the next layer's."""
        first, last = parse_positions(self.positions)
        lowest = 0 if isinstance(self.layers, str) else min(self.layers)
        return Reach(lowest + 1, None if first else last, self.positions)

    def parameters_on(self, hidden_size: int, num_layers: int) -> int:
        """See :meth:`AdapterSettings.parameters_on`; R of rank r and width d counts as d x r."""
        first, last = parse_positions(self.positions)
        ends = 2 if first and last and not self.share_weights else 1
        places = ends * (num_layers if isinstance(self.layers, str) else len(self.layers))
        source = 1 if self.intervention in ("consreft", "lobireft") else hidden_size + 1
        bias = self.add_bias and self.intervention in ("noreft", "nodireft")
        return places * self.rank * (hidden_size + bias + source)

    @property
    def tokens_needed(self) -> int:
        """How many tokens a prompt needs to be edited at all positions."""
        return tokens_needed(self.positions)

    def start_files(self, folder: Path) -> Sequence[str]:
        """See :meth:`AdapterSettings.start_files`; the config of pyreft's folder lists them."""
        name = f"reft.init_from={folder}"
        refuse_special(folder / "config.json", f"reft.init_from={folder}")
        try:
            keys = [f"{key}" for key in read_untrusted(folder / "config.json", name)["sorted_keys"]]
            if any("/" in key for key in keys):
                raise ValueError("a key is no part of a file's name")
            return ("config.json", *(f"intkey_{key}.bin" for key in keys))
        except (UserError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"reft.init_from={folder} has no config.json that names interventions; give a "
                "folder that pyreft's ReftModel.save wrote"
            ) from error

    def check_mode(self, mode: str) -> None:
        """Refuse to generate with pyreft's engine."""
        if self.engine == "pyreft" and mode == "generate":
            raise UserError(
                "reft.engine=pyreft is for comparing log-probabilities; use it with "
                "evaluation.mode=logprob"
            )

    def describe(self) -> str:
        """What was trained, in one phrase for the report."""
        layers = self.layers
        where = layers if isinstance(layers, str) else ", ".join(map(str, layers))
        return (
            f"ReFT ({self.intervention}) at {self.positions}, layers {where}, rank {self.rank}, "
            f"learning rate {self.learning_rate:g}"
        )
