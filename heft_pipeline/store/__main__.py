"""The command line that keeps a store: what is in it, whether it is whole, and what can go.

    python -m heft_pipeline.store COMMAND OUTPUTS ...

OUTPUTS is the ``output_dir`` of sweeps.
"""

import argparse
import dataclasses
import json
import random
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from heft_pipeline.command_line.console import TextConsole, marked
from heft_pipeline.command_line.run import run_command
from heft_pipeline.errors import UserError
from heft_pipeline.files.byte_sizes import in_bytes
from heft_pipeline.store.integrity import Depth
from heft_pipeline.store.stage_folders import Store
from heft_pipeline.storekeeping.adopting import adopt, stated_stage
from heft_pipeline.storekeeping.archive import read_archive, write_archive
from heft_pipeline.storekeeping.differences import differences
from heft_pipeline.storekeeping.inventory import Entry, find, inventory, named_stage
from heft_pipeline.storekeeping.origins import origins
from heft_pipeline.storekeeping.removing import Removable, named, remove, unneeded
from heft_pipeline.storekeeping.verifying import recompute, verify

_GROUPS: dict[str, Callable[[Entry], Iterable[str]]] = {
    "model": lambda entry: [entry.model],
    "sweep": lambda entry: entry.sweeps or ["no sweep"],
    "age": lambda entry: [_age(time.time() - entry.changed)],
}
_STYLES = {"✗": "red", "✓": "green", "=": "cyan", "!": "yellow"}
_AGES = ((86400.0, "today"), (7 * 86400.0, "this week"), (31 * 86400.0, "this month"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, and return its exit status."""
    return run_command(_keep, arguments, elsewhere="give a store that you may write to")


def _keep(arguments: Sequence[str]) -> int:
    given = _parser().parse_args(arguments)
    store, console = Store(given.outputs), TextConsole()
    done: int = given.run(given, store, console)
    return done


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m heft_pipeline.store", description="Look after a store of stages."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.add_argument("outputs", type=Path, metavar="OUTPUTS", help="a sweep's output_dir")
        added.set_defaults(run=run)
        return added

    one = command("ls", _list, "show what takes space, by stage or in groups")
    one.add_argument("--by", choices=["stage", *_GROUPS], default="stage")
    one.add_argument("--json", action="store_true", help="all that is known, for programs")
    one = command("verify", _verify, "compare all files with what they were when they were written")
    text = "move damaged files away, so that a sweep's command makes them anew"
    one.add_argument("--set-aside", action="store_true", help=text)
    one.add_argument("--recompute", type=int, default=0, metavar="N",
                     help="score N stages, drawn at random, again")  # fmt: skip
    one.add_argument("--seed", type=int, default=0, help="of what is drawn")
    one = command("rm", _remove, "remove stages, after asking")
    one.add_argument("stages", nargs="+", metavar="STAGE", help=_STAGE)
    _asks(one)
    _asks(command("gc", _collect, "remove what no sweep needs, after asking"))
    one = command("export", _export, "write stages and their parents to one file")
    one.add_argument("stages", nargs="+", metavar="STAGE", help=_STAGE)
    one.add_argument("--to", required=True, type=Path, metavar="FILE", help="a new .tar file")
    one = command("import", _import, "add the stages of a file that export wrote")
    one.add_argument("archive", type=Path, metavar="FILE")
    one = command("adopt", _adopt, "make an adapter that was trained elsewhere a stage")
    one.add_argument("folder", type=Path, metavar="FOLDER", help="what PEFT or pyreft saved")
    one.add_argument("settings", nargs="+", metavar="KEY=VALUE",
                     help="how it was trained, as a run's command line says it")  # fmt: skip
    one = command("why", _why, "say what makes two stages different")
    one.add_argument("first", metavar="A", help=_STAGE)
    one.add_argument("second", metavar="B", help=_STAGE)
    one = command("show", _show, "say what made a stage and what uses it")
    one.add_argument("stage", metavar="STAGE", help=_STAGE)
    return parser


_STAGE = "the first digits of a fingerprint, a stage's folder, or SWEEP/RUN"


def _asks(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be removed")


def _list(given: argparse.Namespace, store: Store, console: Console) -> int:
    entries = inventory(store)
    if given.json:
        print(json.dumps([_as_json(entry) for entry in entries], indent=2))
        return 0
    total = sum(entry.bytes for entry in entries)
    table = Table(title=f"{len(entries)} stages, {in_bytes(total)}", title_justify="left")
    if given.by == "stage":
        for heading in ("stage", "model", "state", "size", "age", "sweeps"):
            table.add_column(heading, justify="right" if heading == "size" else "left")
        for entry in entries:
            age, sweeps = _age(time.time() - entry.changed), ", ".join(entry.sweeps) or "none"
            cells = f"{entry.fingerprint[:8]} {entry.label}", entry.model, entry.state
            table.add_row(*cells, in_bytes(entry.bytes), age, sweeps)
    else:
        for heading in (given.by, "stages", "size"):
            table.add_column(heading, justify="left" if heading == given.by else "right")
        groups: dict[str, list[Entry]] = {}
        for entry in entries:
            for name in _GROUPS[given.by](entry):
                groups.setdefault(name, []).append(entry)
        for name, members in sorted(groups.items(), key=lambda item: -_sum(item[1])):
            table.add_row(name, str(len(members)), in_bytes(_sum(members)))
        if given.by == "sweep":
            table.caption = "A stage that several sweeps need is counted for each."
    console.print(table)
    return 0


def _as_json(entry: Entry) -> dict[str, Any]:
    data = dataclasses.asdict(dataclasses.replace(entry, stage=None)) | {"label": entry.label}
    del data["stage"]
    return data | {"model": entry.model}


def _sum(entries: Iterable[Entry]) -> int:
    return sum(entry.bytes for entry in entries)


def _verify(given: argparse.Namespace, store: Store, console: Console) -> int:
    whole, damaged, unsealed = [], 0, 0
    for found in verify(store):
        unsealed += found.unsealed
        if not found.wrong:
            whole.append(found.entry)
            continue
        damaged += 1
        for wrong in found.wrong:
            _say(console, "✗", f"{found.entry.label}: {wrong}")
        aside = store.put_aside(found.entry.fingerprint, Depth.ALL)[1] if given.set_aside else None
        if aside is not None:
            _say(console, " ", f"{aside} has what was there")
    differing = 0
    drawn = [entry for entry in whole if entry.stage is not None]
    for entry in random.Random(given.seed).sample(drawn, min(given.recompute, len(drawn))):
        differing += _recomputed_differs(entry, store, console)
    _say(console, " ", f"{len(whole)} stages are whole, {damaged} damaged"
         + (f"; {unsealed} have no checksums, as versions before them wrote none" if unsealed
            else ""))  # fmt: skip
    if damaged:
        first = "" if given.set_aside else ", after --set-aside has moved what is damaged away"
        _say(console, " ", f"The command of a sweep that needs a stage makes it anew{first}.")
    return 1 if damaged or differing else 0


def _recomputed_differs(entry: Entry, store: Store, console: Console) -> bool:
    assert entry.stage is not None
    try:
        said = recompute(entry.stage, store)
    except (UserError, OSError) as error:
        _say(console, "!", f"{entry.label}: cannot be scored again: {error}")
        return True
    mark = "✗" if said else "✓"
    _say(console, mark, f"{entry.label}: {said or 'scored again, equal to the bit'}")
    return bool(said)


def _remove(given: argparse.Namespace, store: Store, console: Console) -> int:
    return _ask_and_remove(given, named(store, [find(store, one) for one in given.stages]), console)


def _collect(given: argparse.Namespace, store: Store, console: Console) -> int:
    return _ask_and_remove(given, unneeded(store), console)


def _ask_and_remove(given: argparse.Namespace, found: Sequence[Removable], console: Console) -> int:
    if not found:
        _say(console, " ", "There is nothing to remove.")
        return 0
    for one in found:
        _say(console, "-", f"{one.path}: {one.what}, {in_bytes(one.bytes)}")
    total = in_bytes(sum(one.bytes for one in found))
    if given.dry_run:
        _say(console, " ", f"{total} would be removed.")
        return 0
    if not given.yes:
        if not sys.stdin.isatty():
            raise UserError("nobody can be asked here; give --yes to remove this, or --dry-run")
        if input(f"Remove {total}? [y/N] ").strip().lower() not in ("y", "yes"):
            _say(console, " ", "Nothing was removed.")
            return 1
    kept = remove(Store(given.outputs), found)
    for why in kept:
        _say(console, "!", f"{why}, so it was left")
    gone = len(found) - len(kept)
    _say(console, " ", f"{gone} {'thing was' if gone == 1 else 'things were'} removed.")
    return 1 if kept else 0


def _export(given: argparse.Namespace, store: Store, console: Console) -> int:
    stages = [named_stage(store, name) for name in given.stages]
    written = write_archive(store, stages, given.to)
    for stage in written:
        _say(console, "✓", f"{stage.fingerprint} {stage.label}")
    size = in_bytes(given.to.stat().st_size)
    _say(console, " ", f"{given.to} ({size}); read it with: "
         f"python -m heft_pipeline.store import OUTPUTS {given.to.name}")  # fmt: skip
    return 0


def _import(given: argparse.Namespace, store: Store, console: Console) -> int:
    found = read_archive(given.archive, store)
    for stage in found.new:
        _say(console, "✓", f"{stage.fingerprint} {stage.label}")
    for stage in found.known:
        _say(console, "=", f"{stage.fingerprint} {stage.label}: is here already")
    return 0


def _adopt(given: argparse.Namespace, store: Store, console: Console) -> int:
    stage = stated_stage(given.settings, store)
    accuracy = adopt(stage, given.folder, store)
    _say(console, "✓", f"{stage.fingerprint} {stage.label}: accuracy {100 * accuracy:.1f}%")
    _say(console, " ", "A sweep with these settings uses it instead of training one.")
    return 0


def _why(given: argparse.Namespace, store: Store, console: Console) -> int:
    stages = [named_stage(store, name) for name in (given.first, given.second)]
    found = differences(*stages)
    if not found:
        _say(console, " ", f"Both are the stage {stages[0].fingerprint} ({stages[0].label}).")
        return 0
    for number, stage in enumerate(stages, 1):
        _say(console, " ", f"{number}: {stage.fingerprint} {stage.label} on {stage.data.name}")
    for one in found:
        _say(console, "-", str(one))
    return 0


def _show(given: argparse.Namespace, store: Store, console: Console) -> int:
    for what, value in origins(store, find(store, given.stage)):
        _say(console, f"{what:<12}", value)
    return 0


def _say(console: Console, mark: str, text: str) -> None:
    console.print(marked(mark, _STYLES.get(mark, ""), text), highlight=False, soft_wrap=True)


def _age(seconds: float) -> str:
    return next((name for limit, name in _AGES if seconds < limit), "older")


if __name__ == "__main__":
    sys.exit(main())
