"""Time this project's stages beside pyreft's and PEFT's trainers."""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from benchmarks.inputs import LARGE, SHAPES, write_rows
from benchmarks.piece import Measured, Piece, composed
from benchmarks.summary import GRID, PARTS, POSITIONS, Results, summary
from benchmarks.table import show
from heft_pipeline.adapters.reft.settings import ReftSettings
from heft_pipeline.errors import UserError
from heft_pipeline.plan.sources import BUILTIN

_ROOT = Path(__file__).resolve().parents[1]
#: Rows and epochs for comparing losses.
_CHECKED_ROWS, _CHECKED_EPOCHS = 64, 2
#: The most tokens that pyreft's examples/loreft/task_config.py decodes for commonsense tasks.
_PYREFT_NEW_TOKENS = 32


@dataclass(frozen=True)
class Asked:
    """A piece and its place in the table.

    Attributes:
        part: The comparison that it belongs to.
        name: ``peer``, ``own``, or the name of a further piece.
        piece: What to run.
        unless_own: Skip the piece if ``own`` has already run in this dtype.
    """

    part: str
    name: str
    piece: Piece
    unless_own: str | None = None


def main() -> int:
    """Measure and print; returns 1 if a piece failed, else 0."""
    options = _options()
    parts: tuple[str, ...] = (*PARTS, GRID) if options.only is None else (options.only,)
    if GRID in parts:
        parts = (*(p for p in PARTS if p != "eval" or options.only is None), GRID)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        work = Path(folder)
        results = Results(rows=options.rows, epochs=options.epochs)
        try:
            piece = _inputs(options, work)
            composed(piece)  # fails at once if something cannot be found
        except UserError as error:
            print(error, file=sys.stderr)
            return 1
        _measure(_timed(parts, piece), options, results)
        _compare_losses(parts, replace(piece, data=str(work / "checked")), options, results)
        found = summary(results)
    show(found)
    if options.json:
        Path(options.json).write_text(json.dumps(_document(options, results, found), indent=2))
        print(f"written: {options.json}")
    for name, ratio in found.ratios.items():
        print(f"{name}={'n/a' if ratio is None else format(ratio, '.3g')}")
    return 1 if results.failures else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stages", description=__doc__)
    parser.add_argument(
        "--model",
        default="builtin:tiny",
        help=f"a model folder, builtin:tiny, or random:SHAPE ({', '.join(SHAPES)})",
    )
    parser.add_argument(
        "--data", default="builtin:demo", help="a folder with train.jsonl and validation.jsonl"
    )
    parser.add_argument("--rows", type=int, default=64, help="training rows, and scored rows")
    parser.add_argument("--epochs", type=int, default=3, help="the first is warm-up; at least 2")
    parser.add_argument("--repeats", type=int, default=1, help="rounds; medians are reported")
    parser.add_argument("--json", help="a file for everything that was measured")
    parser.add_argument("--threads", type=int, help="threads per process; default: torch's own")
    parser.add_argument("--only", choices=[*PARTS, GRID], help="run only this part")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--peer-dtype",
        choices=["float32", "bfloat16"],
        help="dtype of the peers' base model; default: float32, but bfloat16 for "
        + ", ".join(LARGE),
    )
    options = parser.parse_args()
    if options.epochs < 2 or options.rows < 2:
        parser.error("--epochs and --rows must be 2 or more: the first epoch is warm-up")
    shape = options.model.removeprefix("random:")
    if shape != options.model and shape not in SHAPES:
        parser.error(f"--model random:{shape}: known shapes are {', '.join(SHAPES)}")
    if options.peer_dtype is None:
        options.peer_dtype = "bfloat16" if shape in LARGE else "float32"
    return options


def _inputs(options: argparse.Namespace, work: Path) -> Piece:
    """Write the data and the model, and return a piece with what all pieces have in common."""
    data = BUILTIN.get(options.data, Path(options.data).expanduser())
    write_rows(data, options.rows, work / "data")
    write_rows(data, min(options.rows, _CHECKED_ROWS), work / "checked")
    model = options.model
    if model.startswith("random:"):
        model = str(work / "model")
        shape = options.model.removeprefix("random:")
        _run(Piece("own", "random_model", model=model, shape=shape), options.threads)
    elif Path(model).expanduser().is_dir():
        model = str(Path(model).expanduser().resolve())
    return Piece(
        side="peer",
        work="reft",
        model=model,
        data=str(work / "data"),
        workdir=str(work),
        dtype=options.peer_dtype,
        epochs=options.epochs,
        seed=options.seed,
    )


def _timed(parts: tuple[str, ...], peer: Piece) -> list[Asked]:
    """The timed pieces, with peers and this project taking turns."""
    own = replace(peer, side="own", dtype="auto")
    same = replace(peer, side="own")
    asked = [Asked("machine", "peak_before", Piece("own", "peak"))]
    for part in parts:
        if part == GRID:
            for name, positions in POSITIONS.items():
                piece = replace(own, work="reft_on_lora", positions=positions)
                asked.append(Asked(GRID, name, piece))
        elif part == "eval":
            score, generate = replace(own, work="score"), replace(peer, work="generate")
            asked += [
                Asked(part, "peer", replace(generate, max_new_tokens=_PYREFT_NEW_TOKENS)),
                Asked(part, "own", score),
                Asked(part, "peer_short", generate),
                Asked(part, "own_same", replace(same, work="score"), unless_own=peer.dtype),
                Asked(part, "own_generate", replace(same, work="generate")),
            ]
        else:
            work = "lora" if part == "coarse" else "reft"
            change: dict[str, Any] = {"work": work, "positions": POSITIONS.get(part, "f7+l7")}
            asked += [
                Asked(part, "peer", replace(peer, **change)),
                Asked(part, "own", replace(own, **change)),
                Asked(part, "own_same", replace(same, **change), unless_own=peer.dtype),
            ]
            if part == "fine_suffix" and _can_reuse():
                off = replace(own, **change, overrides=("reft.reuse=off",))
                asked.append(Asked(part, "own_no_reuse", off))
    return [*asked, Asked("machine", "peak_after", Piece("own", "peak"))]


def _can_reuse() -> bool:
    return "reuse" in {f.name for f in fields(ReftSettings)}


def _measure(asked: list[Asked], options: argparse.Namespace, results: Results) -> None:
    rounds: dict[tuple[str, str], list[Measured]] = {}
    for repeat in range(options.repeats):
        for one in asked:
            key = (one.part, one.name)
            own = rounds.get((one.part, "own"))
            if key in results.failures or (
                one.unless_own and own and own[0].dtype == one.unless_own
            ):
                continue
            print(f"round {repeat + 1}: {one.part} {one.name}", file=sys.stderr, flush=True)
            try:
                found = _run(one.piece, options.threads)
            except UserError as error:
                results.failures[key] = str(error)
                print(error, file=sys.stderr)
                continue
            rounds.setdefault(key, []).append(found)
            if found.epoch_seconds:
                speed = f"{found.examples_per_second:.3g} examples/s"
                print(f"  {found.dtype} {speed}", file=sys.stderr, flush=True)
    for key, measured in rounds.items():
        if key not in results.failures:
            results.measured[key] = _median(measured)


def _median(rounds: list[Measured]) -> Measured:
    """The last round, with the median of each epoch's seconds and the highest memory."""
    seconds = zip(*(r.epoch_seconds for r in rounds), strict=True)
    return replace(
        rounds[-1],
        epoch_seconds=[statistics.median(s) for s in seconds],
        peak_memory_mb=max(r.peak_memory_mb for r in rounds),
    )


def _compare_losses(
    parts: tuple[str, ...], peer: Piece, options: argparse.Namespace, results: Results
) -> None:
    """Train both sides on the same batches in the same order, from the same initial weights."""
    for part in parts:
        if part in ("eval", GRID) or (part, "peer") in results.failures:
            continue
        piece = replace(
            peer,
            work="lora" if part == "coarse" else "reft",
            positions=POSITIONS.get(part, "f7+l7"),
            epochs=_CHECKED_EPOCHS,
            losses=True,
        )
        print(f"losses: {part}", file=sys.stderr, flush=True)
        try:
            theirs = _run(piece, options.threads)
            ours = _run(replace(piece, side="own"), options.threads)
        except UserError as error:
            results.failures[part, "losses"] = str(error)
            print(error, file=sys.stderr)
            continue
        results.losses[part] = (theirs.losses, ours.losses)


def _run(piece: Piece, threads: int | None) -> Measured:
    """Do a piece in a process of its own.

    Raises:
        UserError: It failed; the message ends with the last lines of its output.
    """
    # transformers' trainer would use all GPUs, which pyreft's model does not support.
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": gpu}
    if threads:
        environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.work", str(answer)],
            input=json.dumps(asdict(piece)),
            text=True,
            cwd=_ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        if done.returncode or not answer.is_file():
            said = "\n".join(done.stdout.strip().splitlines()[-8:])
            raise UserError(f"{piece.side} {piece.work} failed ({done.returncode}):\n{said}")
        return Measured(**json.loads(answer.read_text()))


def _document(options: argparse.Namespace, results: Results, found: Any) -> dict[str, Any]:
    from heft_pipeline.devices.resolve import resolve_device
    from heft_pipeline.stage.machine_record import machine

    return {
        "settings": vars(options),
        "machine": machine(resolve_device("auto")),
        "measured": {"/".join(key): asdict(m) for key, m in results.measured.items()},
        "losses": {p: {"peer": a, "own": b} for p, (a, b) in results.losses.items()},
        "failures": {"/".join(key): text for key, text in results.failures.items()},
        "summary": asdict(found),
        "ratios": found.ratios,
    }


if __name__ == "__main__":
    sys.exit(main())
