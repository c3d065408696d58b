"""Write a trained stage in the formats of PEFT and pyreft.

    python -m heft_pipeline.use.export STAGE --to DIR

STAGE is a stage's folder or its fingerprint. A LoRA stage becomes a PEFT folder, and a ReFT stage
becomes a folder that ``pyreft.ReftModel.load`` reads; the LoRA stages below it are written to
``parents/``. ``LOAD.md`` in DIR shows the code that loads them.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from heft_pipeline.command_line.printable import printable
from heft_pipeline.command_line.run import run_command
from heft_pipeline.errors import UserError
from heft_pipeline.plan.stage_spec import StageSpec
from heft_pipeline.store.integrity import STAGE
from heft_pipeline.store.stage_folders import Store
from heft_pipeline.use.saved import exported_folder, find_stage


def export(stage: StageSpec, store: Store, to: Path) -> None:
    """Write a complete stage, and the stages it is trained on, in the formats of PEFT and pyreft.

    Args:
        stage: The stage.
        store: The store that holds it.
        to: The folder to write; created if it is missing.

    Raises:
        UserError: A stage is incomplete or has no adapter, ``to`` is not empty, or the library that
            defines an adapter's kind cannot load this adapter.
    """
    if stage.training is None:
        raise UserError("the untouched model has no adapter to export")
    if to.is_dir() and any(to.iterdir()):
        raise UserError(f"--to {to} is not empty; give a new folder")
    for part in stage.chain:
        store.require_whole(part)
    kinds = [adapter.kind for part in stage.chain for adapter in part.adapters]
    if len(set(kinds)) < len(kinds):
        raise UserError(
            f"{stage.label} has several adapters of one kind, which PEFT and pyreft do not put on "
            "one model by themselves; the stages' own adapter folders have the weights"
        )
    lines = [
        "from transformers import AutoModelForCausalLM",
        f"model = AutoModelForCausalLM.from_pretrained({_quoted(stage.model.id)}"
        + (f", revision={_quoted(stage.model.revision)})" if stage.model.revision else ")"),
    ]
    for part in stage.chain:
        lines += _export_one(part, store, exported_folder(to, stage, part), to)
    (to / "LOAD.md").write_text(
        f"# {_one_line(f'{stage.label} on {stage.model.name}')}\n\nFrom this folder:\n\n```python\n"
        + "\n".join(lines).rstrip()
        + f"\n```\n\n`{STAGE}` has everything that the stage was made from, such as the prompt "
        "positions that an adapter edits.\n",
        encoding="utf-8",
        errors="backslashreplace",
    )
    shutil.copy(store.folder(stage.fingerprint) / STAGE, to / STAGE)


def _quoted(text: str) -> str:
    """Text as a string of Python, whatever is in it."""
    return json.dumps(text)


def _one_line(text: str) -> str:
    return " ".join(printable(text).split())


def _export_one(stage: StageSpec, store: Store, folder: Path, root: Path) -> list[str]:
    """Write one stage, and return the lines that put its adapters on ``model``."""
    from heft_pipeline.adapters.adapter import adapter_class
    from heft_pipeline.adapters.kind import adapter_folder
    from heft_pipeline.models.base_model import quieten

    quieten()
    lines = []
    for settings in stage.adapters:
        source = adapter_folder(store.adapter(stage), settings, stage.adapters)
        to = adapter_folder(folder, settings, stage.adapters)
        code = adapter_class(settings).export(settings, stage.model, source, to)
        lines.append(code.format(folder=to.relative_to(root)))
    return lines


def main(arguments: list[str] | None = None) -> int:
    """Run the command line, and return its exit status."""
    return run_command(_export, arguments, elsewhere="choose another place with --to DIR")


def _export(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m heft_pipeline.use.export",
        description="Write a trained stage in the formats of PEFT and pyreft.",
    )
    parser.add_argument("stage", help="a stage's folder, or its fingerprint")
    parser.add_argument("--to", required=True, type=Path, metavar="DIR", help="a new folder")
    parser.add_argument("--output-dir", type=Path, default=Path("outputs"), metavar="DIR")
    given = parser.parse_args(arguments)
    stage, store = find_stage(given.stage, given.output_dir)
    export(stage, store, given.to)
    print(f"{stage.label} written to {given.to}; {given.to / 'LOAD.md'} says how to load it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
