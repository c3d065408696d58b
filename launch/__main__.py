"""Looking after sweeps from any terminal, from their files and SLURM alone.

python -m launch status [SWEEP] [--watch | --json]
python -m launch logs STAGE [--follow]
python -m launch cancel SWEEP [--all]
python -m launch retry SWEEP
python -m launch usage SWEEP
python -m launch forgetting SWEEP [--text FILE]
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.live import Live

from heft_pipeline.command_line.console import TextConsole
from heft_pipeline.command_line.run import run_command
from heft_pipeline.errors import UserError
from heft_pipeline.plan.graph import Plan, read_plan
from heft_pipeline.store.stage_folders import Store
from heft_pipeline.store.sweep_folders import find_sweep
from launch.progress import say_line
from launch.slurm.job_notes import read_note

_WATCH_SECONDS = 2.0


def main(arguments: list[str] | None = None) -> int:
    """The command line.

    Args:
        arguments: Without the program's name; the process's own where None.

    Returns:
        The exit status.
    """

    def look_after(words: Sequence[str]) -> int:
        given = _parser().parse_args(words)
        return int(given.do(given, TextConsole()))

    kept = "Finished stages and the last checkpoints are kept."
    return run_command(look_after, arguments, kept=kept)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m launch", description="Look after sweeps, from any terminal."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, do, about in (
        ("status", _status, "show what runs and stages are doing"),
        ("logs", _logs, "show what a stage wrote"),
        ("cancel", _cancel, "stop a sweep's jobs and processes; finished stages are kept"),
        ("retry", _retry, "run again what failed or got lost"),
        ("usage", _usage, "show what a sweep's jobs asked for and what they used"),
        ("forgetting", _forgetting, "measure finished stages on a text; nothing is trained"),
    ):
        command = commands.add_parser(name, help=about, description=about)
        command.set_defaults(do=do)
        command.add_argument("--output-dir", type=Path, default=Path("outputs"), metavar="DIR")
        if name == "logs":
            command.add_argument("stage", help="a fingerprint, or its first digits")
            command.add_argument("--follow", action="store_true", help="keep showing new lines")
        else:
            optional = "?" if name == "status" else None
            command.add_argument("sweep", nargs=optional, help="a sweep's name or folder")
        if name == "forgetting":
            command.add_argument(
                "--text",
                metavar="FILE",
                help="a UTF-8 file, or builtin; by default the one that the sweep was given",
            )
        if name == "status":
            command.add_argument("--watch", action="store_true", help="refresh until Ctrl-C")
            command.add_argument("--json", action="store_true", help="for programs")
        if name == "cancel":
            command.add_argument(
                "--all", action="store_true", help="also jobs that other sweeps wait for"
            )
    return parser


def _status(given: argparse.Namespace, console: Console) -> int:
    from launch.status import status_json, status_table

    sweep = find_sweep(given.sweep, given.output_dir)
    if given.json:
        print(status_json(sweep))
        return 0
    if not given.watch:
        console.print(status_table(sweep))
        return 0
    with Live(status_table(sweep), console=console, auto_refresh=False) as live:
        while True:
            time.sleep(_WATCH_SECONDS)
            live.update(status_table(sweep), refresh=True)


def _logs(given: argparse.Namespace, console: Console) -> int:
    from heft_pipeline.use.saved import find_stage

    stage, store = find_stage(given.stage, given.output_dir)
    files = _log_files(store, stage.fingerprint)
    if not files:
        raise UserError(f"{stage.label} has written no log yet")
    seen: dict[Path, int] = {}
    while True:
        for file in files:
            with file.open(errors="replace") as stream:
                stream.seek(seen.get(file, 0))
                text = stream.read()
                seen[file] = stream.tell()
            if text:
                say_line(console, f"==> {file} <==")
                say_line(console, text.rstrip("\n"))
        if not given.follow or store.is_complete(stage.fingerprint):
            return 0
        time.sleep(_WATCH_SECONDS)
        files = _log_files(store, stage.fingerprint)


def _log_files(store: Store, fingerprint: str) -> list[Path]:
    files = [store.folder(fingerprint) / "stage.log"]
    note = read_note(store, fingerprint)
    if note is not None and note.job_id is not None:
        slurm = store.output_dir / "sweeps" / note.sweep / "slurm"
        files += sorted(slurm.glob(f"{note.job_id}_*_log.*"))
    return [file for file in files if file.is_file() and file.stat().st_size]


def _cancel(given: argparse.Namespace, console: Console) -> int:
    from launch.cancel import cancel_sweep

    cancel_sweep(find_sweep(given.sweep, given.output_dir), given.all, console)
    return 0


def _usage(given: argparse.Namespace, console: Console) -> int:
    from launch.slurm.usage import show_usage

    show_usage(find_sweep(given.sweep, given.output_dir), console)
    return 0


def _retry(given: argparse.Namespace, console: Console) -> int:
    from launch.execute_plan import execute_plan, read_launcher

    sweep = find_sweep(given.sweep, given.output_dir)
    written = sweep.plan()
    plan, launcher = read_plan(written), read_launcher(written["launcher"])
    for key in plan.stages:
        sweep.store.forget_failure(key)
    failures = execute_plan(plan, sweep, launcher, console)
    if failures is not None:
        from launch.finish import finish_sweep

        finish_sweep(sweep, console)
    return 1 if failures else 0


def _forgetting(given: argparse.Namespace, console: Console) -> int:
    from heft_pipeline.data.other_text import text_note
    from launch.finish import report
    from launch.measure_forgetting import NOTE, check_texts, measure_lacking

    sweep = find_sweep(given.sweep, given.output_dir)
    plan = read_plan(sweep.plan())
    note = text_note(given.text) if given.text else sweep.plan().get(NOTE)
    if note is None:
        raise UserError(
            f"{sweep.name} names no text to measure forgetting on; give --text FILE, or --text "
            "builtin"
        )
    check_texts(note, sweep, plan)
    sweep.record(Plan(()), **{NOTE: note})
    measure_lacking(sweep, plan, console, again=True)
    report(sweep, console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
