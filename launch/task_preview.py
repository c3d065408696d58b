"""What becomes of a task's rows, shown before anything is trained."""

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from heft_pipeline.data.prompts import Example, Task
from heft_pipeline.errors import UserError
from heft_pipeline.plan.stage_spec import StageSpec
from heft_pipeline.store.stage_folders import Store

_MOST_TASKS, _MOST_CHARACTERS = 12, 600


def show_tasks(stages: Iterable[StageSpec], store: Store, console: Console) -> None:
    """Print the first reported row of each task as a model will read it.

    Args:
        stages: The stages that are to be trained.
        store: Where tokenised tasks are kept.
        console: Where to print.
    """
    seen: dict[tuple[Any, ...], StageSpec] = {}
    for stage in stages:
        if stage.adapters:
            seen.setdefault((stage.model, stage.data.name, stage.data.prompt), stage)
    for stage in list(seen.values())[:_MOST_TASKS]:
        with suppress(UserError):  # which the estimate of its cost meets and says as well
            console.print(_tree(stage, store), highlight=False)
    if len(seen) > _MOST_TASKS:
        console.print(f"... and {len(seen) - _MOST_TASKS} more tasks", highlight=False)


def _tree(stage: StageSpec, store: Store) -> Tree:
    from heft_pipeline.models.base_model import load_tokenizer  # imports torch
    from heft_pipeline.stage.cached_inputs import cached_task

    task, tokenizer = cached_task(stage, store.tokenized), load_tokenizer(stage.model)
    example = task.eval[0]
    sizes = ", ".join(
        f"{len(examples):,} {name}"
        for name, examples in (("train", task.train), ("dev", task.dev), ("reported", task.eval))
    )
    longest = max(task.prompt_lengths)
    about = f": {sizes} rows; prompts of up to {longest} tokens"
    tree = Tree(Text.assemble((stage.data.name or "", "bold"), about))
    prompt = tokenizer.decode(list(example.prompt))
    tree.add(Text(f"{example.id}: {_cut(prompt)}"))
    for line in _answers(task, example, tokenizer):
        tree.add(Text(line))
    return tree


def _answers(task: Task, example: Example, tokenizer: Any) -> list[str]:
    if not task.labels:
        return [f"to be written: {_cut(tokenizer.decode(list(example.answer)))!r}"]
    lines = []
    for index, (choice, unscored) in enumerate(zip(example.choices, example.unscored, strict=True)):
        label, mark = task.labels[index], "✓" if index == example.gold else " "
        begun, scored = (
            tokenizer.decode(list(part)) for part in (choice[:unscored], choice[unscored:])
        )
        after = f"after {begun!r}: " if begun else ""
        count = len(choice) - unscored
        lines.append(f"{mark} {label}: {after}{scored!r} ({count} token{'s' * (count != 1)})")
    return lines


def _cut(text: str) -> str:
    half = _MOST_CHARACTERS // 2
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:half]} [...] {text[-half:]}"
