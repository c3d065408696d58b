"""The commands of ``heft``, which is ``python -m heft_pipeline`` as well.

Without one of these words, its arguments are settings of runs and sweeps.
"""

import difflib
import importlib
import re
from collections.abc import Sequence

import heft_pipeline
from heft_pipeline.errors import UserError

#: For each: the module whose ``main`` it is, whether that takes the word, too, and what it does.
SUBCOMMANDS = {
    "predict": ("heft_pipeline.use.predict", False, "answer rows from a file or a pipe"),
    "evaluate": ("heft_pipeline.use.evaluate", False, "evaluate an adapter on other tasks"),
    "chat": ("heft_pipeline.use.chat_command", False, "talk to an adapter"),
    "export": ("heft_pipeline.use.export", False, "write it for PEFT, pyreft, transformers, vLLM"),
    "push": ("heft_pipeline.use.push", False, "share it on the hub, with a model card"),
    "lm-eval": ("heft_pipeline.use.harness_command", False, "run lm-evaluation-harness with it"),
    "report": ("heft_pipeline.report.__main__", False, "write the report of sweeps"),
    "view": ("heft_pipeline.view.__main__", False, "look at sweeps in a browser"),
    "status": ("launch.__main__", True, "show what runs and stages are doing"),
    "logs": ("launch.__main__", True, "show what a stage wrote"),
    "cancel": ("launch.__main__", True, "stop a sweep's jobs and processes"),
    "retry": ("launch.__main__", True, "run again what failed or got lost"),
    "usage": ("launch.__main__", True, "show what a sweep's jobs used"),
    "forgetting": ("launch.__main__", True, "measure finished stages on a text"),
    "store": ("heft_pipeline.store.__main__", False, "look after the store of stages"),
    "track": ("heft_pipeline.tracking.__main__", False, "send a sweep to a tracker"),
    "dashboard": ("heft_pipeline.dashboard", False, "make a W&B workspace"),
    "doctor": ("launch.doctor", False, "say what works on this machine"),
}
_WORD = re.compile(r"[a-z][a-z_-]*")


def subcommand(argv: list[str]) -> int | None:
    """Run a subcommand.

    Args:
        argv: The process's own ``sys.argv``, which loses the word.

    Returns:
        Its exit status; None where ``argv`` names none.
    """
    word = argv[1] if len(argv) > 1 else ""
    if word == "--version":
        print(f"heft_pipeline {heft_pipeline.__version__}")
        return 0
    if word == "help" and len(argv) == 2:
        print(listed())
        return 0
    if word not in SUBCOMMANDS:
        return None
    module, with_word, _ = SUBCOMMANDS[word]
    if not with_word:
        del argv[1]
    # None: as a process of its own, which has read the process's own arguments.
    status: int = importlib.import_module(module).main(None)
    return status


def listed() -> str:
    """All subcommands, a line each."""
    width = max(map(len, SUBCOMMANDS))
    lines = [f"  heft {name:{width}}  {about}" for name, (*_, about) in SUBCOMMANDS.items()]
    return "\n".join(
        [
            "  heft [KEY=VALUE ...]          one run",
            "  heft -m KEY=VALUE,VALUE ...   a sweep",
            "  heft --help                   all settings",
            *lines,
            "Each has --help. python -m heft_pipeline is the same as heft.",
        ]
    )


def refuse_unknown(arguments: Sequence[str]) -> None:
    """Refuse a first word that is no subcommand; a setting has ``=`` in it.

    Raises:
        UserError: The message names those that are like it.
    """
    if not arguments or not _WORD.fullmatch(arguments[0]):
        return
    like = difflib.get_close_matches(arguments[0], SUBCOMMANDS, n=1)
    meant = f"did you mean heft {like[0]}? " if like else ""
    raise UserError(
        f"{arguments[0]} is no command of heft; {meant}`heft help` lists them, and settings are "
        "written as KEY=VALUE"
    )
