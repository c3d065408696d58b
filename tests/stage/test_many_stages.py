"""Many stages in one process: nothing of the earlier ones stays."""

import gc
import logging
import os
import threading
import warnings
import weakref
from collections import Counter
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from heft_pipeline.adapters.adapted import AdaptedModel
from heft_pipeline.models.reuse.kept_activations import Kept
from heft_pipeline.plan.graph import Plan, Run
from heft_pipeline.stage.cached_inputs import cached_base
from heft_pipeline.store.sweep_folders import Sweep
from heft_pipeline.training.loop import Trainer
from launch.local.execute import execute_here
from launch.local.settings import LocalSettings

#: What a stage makes for itself.
OWN = (AdaptedModel, Trainer, Kept, torch.optim.AdamW)


class Held:
    """What a process holds."""

    def __init__(self, model: torch.nn.Module) -> None:
        gc.collect()
        self.files = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 0  # noqa: PTH208
        self.threads = threading.active_count()
        loggers = [logging.getLogger(), *map(logging.getLogger, logging.root.manager.loggerDict)]
        self.handlers = sum(len(logger.handlers) for logger in loggers)
        self.hooks = sum(
            len(hooks)
            for module in model.modules()
            for name, hooks in vars(module).items()
            if name.endswith("_hooks")
        )
        self.modules = sum(1 for _ in model.modules())
        self.trained = sum(parameter.requires_grad for parameter in model.parameters())
        with warnings.catch_warnings():  # some libraries' objects warn when they are looked at
            warnings.simplefilter("ignore")
            self.tensors = sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects())


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[weakref.ref[Any]]]:
    """Weak references to whatever stages make for themselves, by class."""
    found: dict[str, list[weakref.ref[Any]]] = {}

    def watched(kind: type) -> Callable[..., None]:
        plain: Callable[..., None] = vars(kind)["__init__"]

        def init(self: object, *given: Any, **named: Any) -> None:
            found.setdefault(kind.__name__, []).append(weakref.ref(self))
            plain(self, *given, **named)

        return init

    for kind in OWN:
        monkeypatch.setattr(kind, "__init__", watched(kind))
    return found


def test_nothing_of_earlier_stages_stays_in_a_process_that_trains_many(
    compose_run: Callable[..., Run], small: list[str], tmp_path: Path,
    made: dict[str, list[weakref.ref[Any]]],
) -> None:  # fmt: skip
    def train(*seeds: int) -> Held:
        """Train four stages for each seed."""
        asked = [*small, "epochs=1", "reft=suffix", "reft.positions=l3"]
        runs = [
            compose_run(*asked, f"method={method}", f"seed={seed}")
            for seed in seeds
            for method in ("reft", "heft", "joint")
        ]
        named = [
            Run(f"{n}-{run.method}", (), run.method, 1, run.stages) for n, run in enumerate(runs)
        ]
        sweep = Sweep(tmp_path / "sweeps" / f"of-{seeds[0]}")
        plan = sweep.record(Plan(tuple(named)))
        assert not execute_here(plan, sweep, LocalSettings(), Console(file=StringIO()))
        return Held(cached_base(runs[0].last.model, torch.device("cpu")).model)

    first = train(0)
    later = train(1, 2)
    assert {kind.__name__ for kind in OWN} == made.keys()
    assert len(made["Trainer"]) == 12
    alive = Counter(name for name, refs in made.items() for ref in refs if ref() is not None)
    assert not alive, "held on to by something that outlives its stage"
    assert vars(later) == vars(first)
