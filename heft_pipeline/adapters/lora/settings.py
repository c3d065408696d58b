"""The settings of LoRA."""

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from heft_pipeline.adapters.kind import AdapterSettings
from heft_pipeline.declare_settings import refuse_joined, setting
from heft_pipeline.errors import UserError

#: The value of ``target_modules`` that leaves the choice of modules to the model's architecture.
ALL_LINEAR = "all-linear"
#: The default of ``dropout``.
DROPOUT = 0.05


def _check_modules(key: str, value: Any) -> None:
    refuse_joined(key, value)
    names = [value] if isinstance(value, str) else value
    if (
        not names
        or not isinstance(names, list | tuple)
        or not all(isinstance(name, str) and name for name in names)
    ):
        raise UserError(
            f"{key}={value} must be all-linear or a list of module names, e.g. "
            f"{key}=[q_proj,v_proj]"
        )


@dataclass(frozen=True)
class LoraSettings(AdapterSettings):
    """The LoRA adapter and how it is trained."""

    kind: ClassVar[str] = "lora"
    title: ClassVar[str] = "LoRA"
    #: PEFT's own.
    init_files: ClassVar[tuple[str, ...]] = ("adapter_config.json", "adapter_model.safetensors")

    rank: int = setting("${rank}", "the rank of the update", above=0, example=8)
    alpha: float | None = setting(
        None, "the update is scaled by alpha / rank; null: 2 x rank", above=0, example=16
    )
    dropout: float = setting(
        DROPOUT,
        "dropout on the update's input; PEFT has none for fused experts, where the default is 0",
        least=0,
        most=0.99,
    )
    target_modules: Any = setting(
        ALL_LINEAR,
        "the modules that get an update: a list, or all-linear, for those that can be trained",
        rule=_check_modules,
    )
    use_rslora: bool = setting(False, "scale by alpha / sqrt(rank) (arXiv 2312.03732)")
    use_dora: bool = setting(
        False, "train the magnitude of each weight column as well (DoRA, arXiv 2402.09353)"
    )
    batch_size: int = setting(
        16, "examples per optimiser step, however many fit into memory at once", above=0
    )
    learning_rate: float = setting(3e-4, "the highest learning rate", above=0)

    def resolved(self) -> Self:
        """The same settings, with alpha filled in and the target modules sorted."""
        modules = self.target_modules
        return dataclasses.replace(
            self,
            alpha=2.0 * self.rank if self.alpha is None else self.alpha,
            target_modules=modules if isinstance(modules, str) else tuple(sorted(modules)),
        )

    @property
    def mergeable(self) -> bool:
        """Whether it is a plain sum: DoRA also scales the weights."""
        return not self.use_dora

    def peft_config(self) -> Any:
        """The settings as a ``peft.LoraConfig``."""
        from peft import LoraConfig

        modules = self.target_modules
        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=modules if isinstance(modules, str) else list(modules),
            use_rslora=self.use_rslora,
            use_dora=self.use_dora,
            task_type="CAUSAL_LM",
        )

    def describe(self) -> str:
        """What was trained, in one phrase for the report."""
        modules = self.target_modules
        where = modules if isinstance(modules, str) else ", ".join(modules)
        return (
            f"{'DoRA' if self.use_dora else 'LoRA'} on {where}: alpha {self.alpha:g} at rank "
            f"{self.rank}, dropout {self.dropout:g}, learning rate {self.learning_rate:g}"
        )

    def compared(self) -> dict[str, str]:
        """See :meth:`AdapterSettings.compared`; alpha is given as a multiple of the rank."""
        assert self.alpha is not None  # resolved
        return super().compared() | {"alpha": f"{self.alpha / self.rank:g} x rank"}
