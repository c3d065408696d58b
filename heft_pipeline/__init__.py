"""An experiment pipeline that compares LoRA, ReFT and HEFT (LoRA, then ReFT; arXiv 2509.09801).

    import heft_pipeline
    model = heft_pipeline.load("outputs/stages/FINGERPRINT")
    model.predict([{"passage": "...", "question": "..."}])

    found = heft_pipeline.compare(method=["lora", "reft", "heft"], epochs=[3, 20])
    found.runs, found.verdicts

Nothing heavy is imported before it is used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from heft_pipeline.command_line.interrupts import guard_start

if TYPE_CHECKING:
    from heft_pipeline.errors import UserError
    from heft_pipeline.notebook import Comparison, compare, results
    from heft_pipeline.use.loaded import HeftModel, load

__all__ = ["Comparison", "HeftModel", "UserError", "__version__", "compare", "load", "results"]
__version__ = "0.1.0"

#: Where the names are that are imported when they are first used.
_PLACES = {
    "Comparison": "heft_pipeline.notebook",
    "HeftModel": "heft_pipeline.use.loaded",
    "UserError": "heft_pipeline.errors",
    "compare": "heft_pipeline.notebook",
    "load": "heft_pipeline.use.loaded",
    "results": "heft_pipeline.notebook",
}

guard_start()


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PLACES])
