"""An experiment pipeline that compares LoRA, ReFT and HEFT (LoRA, then ReFT; arXiv 2509.09801).

    import heft_pipeline
    model = heft_pipeline.load("outputs/stages/FINGERPRINT")
    model.predict([{"passage": "...", "question": "..."}])

Nothing heavy is imported before it is used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from heft_pipeline.command_line.interrupts import guard_start

if TYPE_CHECKING:
    from heft_pipeline.use.loaded import HeftModel, load

__all__ = ["HeftModel", "__version__", "load"]
__version__ = "0.1.0"

_PLACES = {"HeftModel": "heft_pipeline.use.loaded", "load": "heft_pipeline.use.loaded"}

guard_start()


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PLACES])
