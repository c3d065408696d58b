"""Write a trained adapter for other programs: PEFT, pyreft, transformers, vLLM.

    heft export ADAPTER --to DIR [--merge]

A LoRA stage becomes a PEFT folder, and a ReFT stage a folder that ``pyreft.ReftModel.load`` reads;
the stages below it are written to ``parents/``. :func:`heft_pipeline.load` reads the folder, too.
``LOAD.md`` in DIR shows the code. With ``--merge``, adapters of weights are added to the base's
weights, and the edits of hidden states, which no weights can make, are written beside them.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from heft_pipeline.command_line.printable import printable
from heft_pipeline.command_line.run import run_command
from heft_pipeline.errors import UserError
from heft_pipeline.plan.stage_spec import StageSpec, to_json
from heft_pipeline.store.integrity import STAGE
from heft_pipeline.use import arguments
from heft_pipeline.use.measured import write_measured
from heft_pipeline.use.merging import Merged, write_merged
from heft_pipeline.use.saved import SavedAdapter, adapter_folders, exported_folder

#: Where edits of hidden states are, beside a merged model.
EDITS = "edits"
#: The file that says how to load what is in the folder.
LOAD = "LOAD.md"
_WHY_BESIDE = (
    "The edits of hidden states are made at positions of the prompt, which no weights can do. Any "
    "program that knows transformers, such as vLLM, reads this folder as the model with only "
    "{kinds}; with the edits, load it as below."
)


def export(found: SavedAdapter, to: Path) -> None:
    """Write an adapter, and those that it stands on, in the formats of PEFT and pyreft.

    Args:
        found: The adapter.
        to: The folder to write; created if it is missing.

    Raises:
        UserError: ``to`` is not empty, or the library that defines an adapter's kind cannot load
            this adapter.
    """
    arguments.require_new(to)
    kinds = [one.kind for one, _ in found.adapters]
    if len(set(kinds)) < len(kinds):
        raise UserError(
            f"{found.stage.label} has several adapters of one kind, which PEFT and pyreft do not "
            "put on one model by themselves; the stages' own adapter folders have the weights"
        )
    lines = _write(found.stage, [folder for _, folder in found.adapters], to)
    write_measured(found, to)
    _load_md(to, found.stage, _own_code("."), lines)


def export_merged(found: SavedAdapter, to: Path) -> Merged:
    """Write the base model with the adapters of weights in it, and the edits beside it.

    Args:
        found: The adapter.
        to: The folder to write; created if it is missing.

    Returns:
        What is in the weights, and what is not.

    Raises:
        UserError: See :func:`~heft_pipeline.use.merging.write_merged`.
    """
    arguments.require_new(to)
    merged = write_merged(found, to)
    load = [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        'model = AutoModelForCausalLM.from_pretrained(".", dtype="auto")',
        'tokenizer = AutoTokenizer.from_pretrained(".")',
    ]
    about = f"{' and '.join(merged.kinds)} is in the weights ({merged.dtype})."
    if merged.beside is not None:
        _write(merged.beside, [folder for one, folder in found.adapters if one.edits], to / EDITS)
        load += ["", "# With the edits:", *_own_code(EDITS, model=".")]
        about += " " + _WHY_BESIDE.format(kinds=" and ".join(merged.kinds))
    _load_md(to, found.stage, load, [], about)
    return merged


def _write(stage: StageSpec, sources: Sequence[Path], to: Path) -> list[str]:
    """Write a chain's adapters from folders of the same order; return the lines that load them."""
    from heft_pipeline.adapters.adapter import adapter_class
    from heft_pipeline.models.base_model import quieten

    quieten()
    folders = [exported_folder(to, stage, part) for part in stage.chain]
    lines = []
    for (settings, folder), source in zip(adapter_folders(stage, folders), sources, strict=True):
        code = adapter_class(settings).export(settings, stage.model, source, folder)
        lines.append(code.format(folder=folder.relative_to(to)))
    to.mkdir(parents=True, exist_ok=True)
    (to / STAGE).write_text(json.dumps(to_json(stage), indent=2) + "\n", encoding="utf-8")
    return lines


def _own_code(folder: str, model: str | None = None) -> list[str]:
    given = f", model={_quoted(model)}" if model else ""
    return ["import heft_pipeline", f"model = heft_pipeline.load({_quoted(folder)}{given})"]


def _load_md(
    to: Path, stage: StageSpec, own: Sequence[str], theirs: Sequence[str], about: str = ""
) -> None:
    title = " ".join(printable(f"{stage.label} on {stage.model.name}").split())
    parts = [f"# {title}", about, "From this folder:", "\n".join(["```python", *own, "```"])]
    if theirs:
        base = f"model = AutoModelForCausalLM.from_pretrained({_quoted(stage.model.id)}" + (
            f", revision={_quoted(stage.model.revision)})" if stage.model.revision else ")"
        )
        code = ["from transformers import AutoModelForCausalLM", base, *theirs]
        parts += [
            "Or with the libraries that define these adapters:",
            "\n".join(["```python", "\n".join(code).rstrip(), "```"]),
            f"`{STAGE}` has everything that the stage was made from, such as the prompt positions "
            "that an adapter edits.",
        ]
    text = "\n\n".join(filter(None, parts)) + "\n"
    (to / LOAD).write_text(text, encoding="utf-8", errors="backslashreplace")


def _quoted(text: str) -> str:
    """Text as a string of Python, whatever is in it."""
    return json.dumps(text)


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line, and return its exit status."""
    return run_command(_export, words, elsewhere="choose another place with --to DIR")


def _export(words: Sequence[str]) -> int:
    given = _parser().parse_args(words)
    found = arguments.found(given)
    label = found.stage.label
    if given.merge:
        merged = export_merged(found, given.to)
        print(
            f"{label} merged into {given.to}: {', '.join(merged.kinds)} in {merged.dtype} weights; "
            f"rounding changes logits by at most {merged.change:.1g} of the largest, and the "
            f"adapters by {merged.effect:.1g}"
        )
        if merged.beside is not None:
            print(f"{given.to / EDITS} has the edits, which no weights can make")
    else:
        export(found, given.to)
        print(f"{label} written to {given.to}")
    print(f"{given.to / LOAD} says how to load it")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = arguments.parser("export", "Write a trained adapter for other programs.")
    parser.add_argument("--to", required=True, type=Path, metavar="DIR", help="a new folder")
    parser.add_argument("--merge", action="store_true",
                        help="add adapters of weights to the base's weights")  # fmt: skip
    return parser


if __name__ == "__main__":
    sys.exit(main())
