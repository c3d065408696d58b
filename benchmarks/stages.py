"""Time this project's stages beside pyreft's and PEFT's trainers."""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from benchmarks.inputs import LARGE, SHAPES, write_rows
from benchmarks.paper import PADDED_ROWS, PAPER_GRID, PAPER_PARTS, paper_check, paper_pieces
from benchmarks.piece import Asked, Measured, Piece, composed
from benchmarks.results import DTYPES, GRID, PARTS, POSITIONS, Results
from benchmarks.summary import summary
from benchmarks.table import show
from heft_pipeline.adapters.reft.settings import ReftSettings
from heft_pipeline.errors import UserError
from heft_pipeline.plan.sources import BUILTIN

_ROOT = Path(__file__).resolve().parents[1]
#: Rows and epochs for comparing losses.
_CHECKED_ROWS, _CHECKED_EPOCHS = 64, 2
#: The folder of the data with few rows.
_FEW = "few"
#: The most tokens that pyreft's examples/loreft/task_config.py decodes for commonsense tasks.
_PYREFT_NEW_TOKENS = 32


def main() -> int:
    """Measure and print; returns 1 if a piece failed, else 0."""
    options = _options()
    parts: tuple[str, ...] = (*PARTS, GRID) if options.only is None else (options.only,)
    if GRID in parts:
        parts = (*(p for p in PARTS if p != "eval" or options.only is None), GRID)
    if PAPER_GRID in parts:
        parts = (*PAPER_PARTS, PAPER_GRID)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        work = Path(folder)
        results = Results(rows=options.rows, epochs=options.epochs)
        try:
            piece = _inputs(options, work)
            composed(piece)  # fails at once if something cannot be found
        except UserError as error:
            print(error, file=sys.stderr)
            return 1
        _measure(_timed(parts, piece, options.dtypes), options, results)
        _compare_losses(parts, replace(piece, data=str(work / "checked")), options, results)
        found = summary(results)
    where = _machine(options.threads)
    if options.processor_time:
        where["time"] = "processor time"
    show(found, where)
    if options.json:
        document = {"machine": where, **_document(options, results, found)}
        Path(options.json).write_text(json.dumps(document, indent=2))
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
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="measure processor time, for a CPU on which other work runs; with --threads 1 only",
    )
    parser.add_argument(
        "--only",
        choices=[*PARTS, GRID, *PAPER_PARTS, PAPER_GRID],
        help="run only this part; the default leaves out those of the HEFT paper",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--peer-dtype",
        choices=DTYPES,
        help="run the peers in this dtype only; default: in each, but only in bfloat16 for "
        + ", ".join(LARGE),
    )
    options = parser.parse_args()
    if options.epochs < 2 or options.rows < 2:
        parser.error("--epochs and --rows must be 2 or more: the first epoch is warm-up")
    if options.processor_time and options.threads != 1:
        parser.error("--processor-time needs --threads 1: threads that wait use the processor too")
    shape = options.model.removeprefix("random:")
    if shape != options.model and shape not in SHAPES:
        parser.error(f"--model random:{shape}: known shapes are {', '.join(SHAPES)}")
    given = [options.peer_dtype] if options.peer_dtype else None
    options.dtypes = given or (["bfloat16"] if shape in LARGE else list(DTYPES))
    return options


def _inputs(options: argparse.Namespace, work: Path) -> Piece:
    """Write the data and the model, and return a piece with what all pieces have in common."""
    data = BUILTIN.get(options.data, Path(options.data).expanduser())
    write_rows(data, options.rows, work / "data")
    write_rows(data, min(options.rows, _CHECKED_ROWS), work / "checked")
    write_rows(data, min(options.rows, PADDED_ROWS), work / _FEW)
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
        dtype=options.dtypes[0],
        epochs=options.epochs,
        seed=options.seed,
        processor_time=options.processor_time,
    )


def _timed(parts: tuple[str, ...], common: Piece, dtypes: list[str]) -> list[Asked]:
    """The timed pieces, with peers and this project taking turns."""
    own = replace(common, side="own", dtype="")
    asked = [Asked("machine", "peak_before", Piece("own", "peak"))]
    for part in parts:
        if part in (*PAPER_PARTS, PAPER_GRID):
            few = str(Path(common.workdir) / _FEW)
            asked += paper_pieces(part, common, few, dtypes)
        elif part == GRID:
            for name, positions in POSITIONS.items():
                piece = replace(own, work="reft_on_lora", positions=positions)
                asked.append(Asked(GRID, name, piece))
        elif part == "eval":
            asked += _of_both(part, replace(common, work="score"), dtypes)
            for dtype in dtypes:
                asked.append(Asked(part, f"short_{dtype}", _generation(common, dtype)))
            # In a dtype in which a peer generates, so that what they generate can be compared.
            asked.append(Asked(part, "own_generate", replace(_generation(common), side="own")))
        else:
            change: dict[str, Any] = {
                "work": "lora" if part == "coarse" else "reft",
                "positions": POSITIONS.get(part, "f7+l7"),
            }
            asked += _of_both(part, replace(common, **change), dtypes)
            if part == "fine_suffix" and _can_reuse():
                off = replace(own, **change, overrides=("reft.reuse=off",))
                asked.append(Asked(part, "own_no_reuse", off))
    return [*asked, Asked("machine", "peak_after", Piece("own", "peak"))]


def _of_both(part: str, piece: Piece, dtypes: list[str]) -> list[Asked]:
    """A piece by the peer in each dtype, and by this project as it chooses and in the others."""
    own = replace(piece, side="own", dtype="")
    asked = [Asked(part, f"peer_{dtypes[0]}", _by_peer(piece, dtypes[0])), Asked(part, "own", own)]
    asked += [Asked(part, f"peer_{dtype}", _by_peer(piece, dtype)) for dtype in dtypes[1:]]
    return asked + [
        Asked(part, f"own_{dtype}", replace(own, dtype=dtype), unless_own=dtype) for dtype in dtypes
    ]


def _by_peer(piece: Piece, dtype: str) -> Piece:
    if piece.work != "score":
        return replace(piece, dtype=dtype)
    return replace(_generation(piece, dtype), max_new_tokens=_PYREFT_NEW_TOKENS)


def _generation(piece: Piece, dtype: str = "") -> Piece:
    return replace(piece, work="generate", dtype=dtype or piece.dtype)


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
        if part in ("eval", GRID, PAPER_GRID) or (part, f"peer_{peer.dtype}") in results.failures:
            continue
        if part in PAPER_PARTS:
            piece = paper_check(part, peer, str(Path(peer.workdir) / _FEW))
        else:
            work = "lora" if part == "coarse" else "reft"
            piece = replace(peer, work=work, positions=POSITIONS.get(part, "f7+l7"))
        piece = replace(piece, epochs=_CHECKED_EPOCHS, losses=True)
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


def _machine(threads: int | None) -> dict[str, Any]:
    """Where this was measured, with the CPU and what it has for products of matrices."""
    from heft_pipeline.devices.fast_dtype import cpu_features, cpu_model
    from heft_pipeline.devices.resolve import resolve_device
    from heft_pipeline.stage.machine_record import machine

    cpu = {"cpu": cpu_model() or platform.machine(), "cpu_features": list(cpu_features())}
    return machine(resolve_device("auto")) | cpu | ({"threads": threads} if threads else {})


def _document(options: argparse.Namespace, results: Results, found: Any) -> dict[str, Any]:
    return {
        "settings": vars(options),
        "measured": {"/".join(key): asdict(m) for key, m in results.measured.items()},
        "losses": {p: {"peer": a, "own": b} for p, (a, b) in results.losses.items()},
        "failures": {"/".join(key): text for key, text in results.failures.items()},
        "summary": asdict(found),
        "ratios": found.ratios,
    }


if __name__ == "__main__":
    sys.exit(main())
