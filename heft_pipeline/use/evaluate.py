"""Evaluate an adapter on other tasks or splits, beside the untouched model: did it forget?

heft evaluate ADAPTER [data=NAME,...] [KEY=VALUE ...] [--to DIR]
"""

import argparse
import dataclasses
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from heft_pipeline.command_line.console import TextConsole
from heft_pipeline.command_line.run import run_command
from heft_pipeline.command_line.secrets_kept import refuse_secrets_typed
from heft_pipeline.declare_settings import check
from heft_pipeline.errors import UserError
from heft_pipeline.evidence.comparison import ALPHA, compare
from heft_pipeline.evidence.intervals import accuracy_interval
from heft_pipeline.plan.graph import untouched_model
from heft_pipeline.plan.sources import Sources
from heft_pipeline.plan.stage_spec import StageSpec
from heft_pipeline.report import words
from heft_pipeline.store.integrity import PREDICTIONS
from heft_pipeline.store.stage_folders import Store
from heft_pipeline.storekeeping.adopting import stated_stage
from heft_pipeline.use import arguments
from heft_pipeline.use.loaded import base_of, put_on
from heft_pipeline.use.saved import SavedAdapter

_SECTIONS = ("data", "evaluation")
_NOTE = "Intervals speak of other examples of these tasks. Differences are in points."
#: What may be set: the task, and how its answers are scored.
_SETTINGS = re.compile(r"[+~]{0,2}(data|evaluation)([.=].*)?", re.DOTALL)


@dataclass(frozen=True)
class Evaluated:
    """What evaluating an adapter on a task showed.

    Attributes:
        task: The task's name, with the split.
        examples: The number of examples.
        accuracy: The adapter's, as a share.
        interval: Its 95 % interval: of other examples.
        untouched: The untouched model's accuracy; None where it was not asked for.
        difference: The first minus the second.
        difference_interval: The difference's 95 % interval: of other examples.
    """

    task: str
    examples: int
    accuracy: float
    interval: tuple[float, float]
    untouched: float | None = None
    difference: float | None = None
    difference_interval: tuple[float, float] | None = None


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line, and return its exit status."""
    return run_command(_evaluate, words, elsewhere="choose another place with --to DIR")


def _evaluate(words: Sequence[str]) -> int:
    given = _parser().parse_intermixed_args(words)
    if given.to is not None:
        arguments.require_new(given.to)
    found = arguments.found(given)
    stages = asked_stages(found, given.settings, found.store or Store(given.output_dir))
    titles = [_title(stage) for stage in stages]
    if twice := next((title for title in titles if titles.count(title) > 1), ""):
        raise UserError(f"{twice} is asked for twice; name each task once")
    results = list(evaluate(found, stages, given))
    as_json = json.dumps([vars(one) for one in results], indent=2)
    if given.json:
        print(as_json)
    else:
        TextConsole().print(_table(found, results))
    if given.to is not None:
        (given.to / "evaluation.json").write_text(f"{as_json}\n", encoding="utf-8")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = arguments.parser(
        "evaluate", "Evaluate an adapter on its own task or others, beside the untouched model."
    )
    arguments.add_place(parser)
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE",
                        help="data=NAME,... for other tasks, data.eval_split=... for another "
                        "split, and settings of data and evaluation")  # fmt: skip
    parser.add_argument("--to", type=Path, metavar="DIR",
                        help="a new folder for each task's predictions.parquet")  # fmt: skip
    parser.add_argument("--no-base", action="store_true", help="leave the untouched model out")
    parser.add_argument("--json", action="store_true", help="for programs")
    return parser


def asked_stages(found: SavedAdapter, settings: Sequence[str], store: Store) -> list[StageSpec]:
    """An evaluation of the untouched model on each task that is asked for.

    Args:
        found: The adapter; its own task counts where none is named.
        settings: ``data=NAME,...`` and single settings of the task and the evaluation.
        store: Remembers the digests of large files.

    Raises:
        UserError: A setting has no meaning, or a task is not there.
    """
    refuse_secrets_typed(settings)
    for text in settings:
        if not _SETTINGS.fullmatch(text):
            raise UserError(
                f"{text} is no setting of the task or the evaluation; write data=NAME,..., "
                "data.KEY=VALUE or evaluation.KEY=VALUE"
            )
    names = [text.removeprefix("data=") for text in settings if text.startswith("data=")]
    if len(names) > 1:
        raise UserError("data= is given twice; name several tasks as data=boolq,piqa")
    others = [text for text in settings if not text.startswith("data=")]
    if names:
        return [_stated(found, [f"data={name}", *others], store) for name in names[0].split(",")]
    return [_own(found, others, store)]


def _stated(found: SavedAdapter, settings: Sequence[str], store: Store) -> StageSpec:
    stage = found.stage
    evaluation = [f"evaluation.batch_size={stage.evaluation.batch_size}"]
    model = [f"model.id={json.dumps(stage.model.id)}"]
    if stage.model.revision:
        model.append(f"model.revision={stage.model.revision}")
    model.append(f"model.trust_remote_code={str(stage.model.trust_remote_code).lower()}")
    base = ["method.stages=[]", f"seed={stage.seed}", f"device={stage.device}"]
    return stated_stage([*model, *base, *evaluation, *settings], store)


def _own(found: SavedAdapter, settings: Sequence[str], store: Store) -> StageSpec:
    """The adapter's own task, with some settings changed."""
    stage = found.stage
    data, evaluation = (_changed(name, getattr(stage, name), settings) for name in _SECTIONS)
    if data.revision is None and not (data.path or "").startswith("builtin:"):
        # A local folder was named from where the sweep was started.
        data = replace(data, path=data.location)
    source = Sources(store.digests).data(data)
    data = replace(data, location=source.location, revision=source.revision, content=source.content)
    evaluation = evaluation.for_task(written=data.written)
    return untouched_model(replace(stage.chain[0], data=data, evaluation=evaluation))


def _changed(name: str, section: Any, settings: Sequence[str]) -> Any:
    """A section of a stage's settings with some of them changed."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    values = dataclasses.asdict(section)
    cfg = OmegaConf.create({name: OmegaConf.structured(type(section))})
    OmegaConf.set_readonly(cfg, False)
    OmegaConf.set_readonly(cfg[name], False)
    keys = list(cfg[name])  # those that can be set; others are found from them
    for key in keys:
        OmegaConf.update(cfg, f"{name}.{key}", values[key], merge=False)
    for text in settings:
        if not text.startswith(f"{name}."):
            continue
        try:
            override = OverridesParser.create().parse_override(text)
            OmegaConf.update(cfg, override.key_or_group, override.value(), merge=False)
        except (OmegaConfBaseException, HydraException) as error:
            raise UserError(f"{text}: {str(error).splitlines()[0]}") from error
    made = OmegaConf.to_object(cfg[name])
    changed = replace(section, **{key: getattr(made, key) for key in keys})
    check(changed, name)
    return changed


def evaluate(
    found: SavedAdapter, stages: Sequence[StageSpec], given: argparse.Namespace
) -> Iterator[Evaluated]:
    """Evaluate the untouched model on all tasks, and then the adapter.

    Args:
        found: The adapter.
        stages: What :func:`asked_stages` found.
        given: Where the model runs, whether the untouched one is evaluated, and where predictions
            are written.

    Yields:
        What each task showed.
    """
    from heft_pipeline.adapters.adapted import adapted
    from heft_pipeline.stage.cached_inputs import cached_task

    tasks = [cached_task(stage) for stage in stages]  # before the model: it may not be readable
    base = base_of(found, **arguments.place(given))
    before: list[Any] = [None] * len(stages)
    if not given.no_base:
        with adapted(base, []) as bare:
            before = [_scores(bare, one) for one in zip(stages, tasks, strict=True)]
    with put_on(found, base) as model:
        for stage, task, untouched in zip(stages, tasks, before, strict=True):
            scores = _scores(model.adapted, (stage, task))
            if given.to is not None:
                _write(given.to, stage, task, scores)
            yield _evaluated(stage, scores, untouched)


def _scores(model: Any, asked: tuple[StageSpec, Any]) -> Any:
    from heft_pipeline.scoring.score import scorer

    stage, task = asked
    return scorer(task, stage.data, stage.evaluation, stage.seed)(model, task.eval)


def _write(to: Path, stage: StageSpec, task: Any, scores: Any) -> None:
    from heft_pipeline.stage.outputs import write_predictions

    folder = to / _title(stage).replace("/", "-")
    folder.mkdir(parents=True)
    write_predictions(folder / PREDICTIONS, stage.data, task, scores)


def _title(stage: StageSpec) -> str:
    return f"{stage.data.name}/{stage.data.eval_split}"


def _evaluated(stage: StageSpec, scores: Any, before: Any) -> Evaluated:
    credit = scores.credit.numpy()[None]
    own = Evaluated(_title(stage), credit.shape[1], float(credit.mean()), accuracy_interval(credit))
    if before is None:
        return own
    base = before.credit.numpy()[None]
    comparison = compare(credit - base)
    return replace(
        own,
        untouched=float(base.mean()),
        difference=comparison.difference,
        difference_interval=comparison.estimate.interval(ALPHA),
    )


def _points(value: float) -> str:
    return f"{100 * value:+.1f}".replace("-", "\N{MINUS SIGN}")


def _table(found: SavedAdapter, results: Sequence[Evaluated]) -> Table:
    title = f"{found.stage.label} on {found.stage.model.name}"
    table = Table(title=title, title_justify="left", caption=_NOTE, caption_justify="left")
    with_base = results[0].untouched is not None
    beside = ("untouched", "difference (95 %)") if with_base else ()
    for heading in ("task", "examples", "adapter (95 %)", *beside):
        table.add_column(heading, justify="left" if heading == "task" else "right")
    for one in results:
        cells = [one.task, f"{one.examples:,}", words.share(one.accuracy)]
        cells[-1] += f" ({words.interval(*one.interval)})"
        if one.untouched is not None and one.difference is not None and one.difference_interval:
            gained, low, high = map(_points, (one.difference, *one.difference_interval))
            cells += [words.share(one.untouched), f"{gained} ({low} to {high})"]
        table.add_row(*cells)
    return table
