"""What a dry run says about the cost of the stages that are still to be trained."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from heft_pipeline.errors import UserError
from heft_pipeline.plan.graph import Run, labelled
from heft_pipeline.plan.stage_spec import StageSpec
from heft_pipeline.store.stage_folders import Store
from launch.execute_plan import LauncherSettings
from launch.gpus import GPUS, NONE, Gpu
from launch.progress import say_qualification

if TYPE_CHECKING:
    from heft_pipeline.stage.forecast import Forecast

#: Gives the name of a group of stages that cost the same.
_Label = Callable[[Sequence[StageSpec]], str]
_MOST_LINES = 40
_MEANING = (
    "GiB: frozen weights, adapters with gradients and AdamW's moments, and roughly the activations "
    "of the largest training pass. Not counted: what CUDA itself takes, fragments, and attention "
    "scores where a kernel keeps them."
)
_MEANING_OF_KEPT = (
    "Kept: activations that are computed once and reused, in up to half of the free GPU memory, "
    "then in RAM, then in a file."
)


def show_cost(
    runs: Sequence[Run],
    stages: Sequence[StageSpec],
    store: Store,
    launcher: LauncherSettings,
    console: Console,
) -> list[StageSpec]:
    """Print what stages will cost: operations, hours on a GPU, and memory.

    Args:
        runs: The runs; the HEFT paper's own times are said beside those of its table.
        stages: The unique stages that are not complete; if there are none, torch is not imported.
        store: Where tokenised data is kept.
        launcher: The launcher's settings, which name the GPU.
        console: Where to print.

    Returns:
        The stages whose models and data could be read.
    """
    if not stages or launcher.dry_run_gpu == NONE:
        return []
    with console.status("reading models and data to say what this costs"):
        from heft_pipeline.stage.forecast import Forecast, forecasts  # imports torch

        bfloat16 = GPUS[launcher.dry_run_gpu].bfloat16
        found = list(forecasts(stages, store.tokenized, bfloat16=bfloat16))
    label = _group_label(stages)
    known = [(group, one) for group, one in found if isinstance(one, Forecast)]
    if known:
        gpu = GPUS[launcher.dry_run_gpu]
        _show_table(known, gpu, launcher, console, label)
        _show_notes(known, gpu, launcher, console, label)
    _show_papers_times(runs, console)
    for group, error in found:
        if isinstance(error, Exception):
            reason = _reason(error)
            what = f"no estimate for {_stages(len(group))} ({label(group)})"
            say_qualification(console, f"{what}: {reason}")
    return [stage for group, _ in known for stage in group]


def _show_papers_times(runs: Sequence[Run], console: Console) -> None:
    from heft_pipeline.report import words  # imports pandas and scipy
    from heft_pipeline.report.paper_numbers import SOURCE, planned_row

    rows = dict.fromkeys(row for run in runs if (row := planned_row(run)) is not None)
    if rows:
        each = ", ".join(f"{row.name} {words.seconds(row.seconds)}" for row in rows)
        total = words.seconds(sum(row.seconds for row in rows))
        console.print(
            f"the paper's own times ({SOURCE}, one GPU of 32 GB or more, each row trained by "
            f"itself): {each}; {total} in all",
            highlight=False,
        )


def _show_table(
    known: "Sequence[tuple[list[StageSpec], Forecast]]",
    gpu: Gpu,
    launcher: LauncherSettings,
    console: Console,
    label: _Label,
) -> None:
    share = launcher.dry_run_utilisation
    hours = 1 / (3600 * 1e12 * gpu.tflops * share)
    table = Table(
        title=f"cost on {launcher.dry_run_gpu} at {share:.0%} of {_short(gpu.tflops)} TFLOP/s",
        title_justify="left",
        title_style="",
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("stages to do", no_wrap=True)
    for heading in ("", "train\nTFLOP", "eval\nTFLOP", "GPU\nhours", "GiB", "kept\nGiB"):
        table.add_column(heading, justify="right")
    for group, one in known[:_MOST_LINES]:
        table.add_row(
            Text(f"{group[0].fingerprint[:8]} {label(group)}"),
            f"x {len(group)}" if len(group) > 1 else "",
            *(_short(flop / 1e12) for flop in (one.train_flop, one.score_flop)),
            _short((one.train_flop + one.score_flop) * hours, digits=2),
            _short(one.memory_bytes / 2**30, digits=2),
            _short(one.kept_bytes / 2**30, digits=2) if one.kept_bytes else "",
        )
    if len(known) > _MOST_LINES:
        table.add_row(f"... and {len(known) - _MOST_LINES:,} more rows")
    table.add_section()
    train, score = (
        sum(len(group) * getattr(one, name) for group, one in known)
        for name in ("train_flop", "score_flop")
    )
    total = sum(len(group) for group, _ in known)
    table.add_row(
        "all together",
        f"x {total}",
        _short(train / 1e12),
        _short(score / 1e12),
        _short((train + score) * hours, digits=2),
    )
    console.print(table, highlight=False)


def _show_notes(
    known: "Sequence[tuple[list[StageSpec], Forecast]]",
    gpu: Gpu,
    launcher: LauncherSettings,
    console: Console,
    label: _Label,
) -> None:
    keeps = any(one.kept_bytes for _, one in known)
    meaning = f"{_MEANING} {_MEANING_OF_KEPT}" if keeps else _MEANING
    console.print(meaning, style="dim", highlight=False)
    instead: dict[str, list[str]] = {}
    for group, one in known:
        if one.kept_instead:
            instead.setdefault(one.kept_instead, []).append(label(group))
    for why, labels in instead.items():
        console.print(Text(f"{', '.join(labels)}: {why}"), style="dim", highlight=False)
    exact = sum(len(group) for group, one in known if one.dtype.itemsize == 4)
    if exact:
        say_qualification(
            console,
            f"{_stages(exact)} will compute in float32, which takes several times the hours shown"
            + ("; model.dtype=bfloat16 avoids it" if gpu.bfloat16 else ""),
            wrapped=True,
        )
    large = [(group, one) for group, one in known if one.memory_bytes > gpu.memory_gib * 2**30]
    if large:
        group, one = max(large, key=lambda pair: pair[1].memory_bytes)
        say_qualification(
            console,
            f"{_stages(sum(len(own) for own, _ in large))} may not fit into the "
            f"{gpu.memory_gib} GiB of {launcher.dry_run_gpu}: {label(group)} needs about "
            f"{one.memory_bytes / 2**30:.0f}. Passes are halved when memory runs out; "
            "training.micro_batch_tokens, training.gradient_checkpointing=true or "
            "model.quantization=nf4 make them smaller",
            wrapped=True,
        )


def _group_label(stages: Sequence[StageSpec]) -> _Label:
    """Says what a group of stages trains; the seed only where there is only one stage."""
    of_one = labelled(stages)

    def label(group: Sequence[StageSpec]) -> str:
        known = of_one(group[0])
        return known if len(group) == 1 else known.replace(f" s{group[0].seed}", "", 1)

    return label


def _reason(error: Exception) -> str:
    text = (str(error).strip() or "no message").splitlines()[0]
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


def _stages(count: int) -> str:
    return f"{count:,} stage" + ("s" if count != 1 else "")


def _short(number: float, digits: int = 3) -> str:
    """A number with its first digits."""
    if number == 0:
        return "0"
    if number < 0.001:
        return "<0.001"
    return f"{number:,.0f}" if number >= 10**digits / 10 else f"{number:.{digits}g}"
