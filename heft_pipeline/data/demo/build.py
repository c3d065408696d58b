"""Rebuild the shipped demo, bit for bit: ``python -m heft_pipeline.data.demo.build``.

The splits follow from the seed alone. The model's bytes also depend on the version of torch and on
the order in which a CPU's kernels add numbers. The script therefore restarts itself in an
environment that fixes the kernels (the AVX2 ones of MKL and ATen, even if the CPU has newer ones)
and the number of threads. ``--check`` rebuilds into a temporary folder and compares the SHA-256 of
each file with the manifest.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from . import FILES, MANIFEST, MODEL, SEED, SPLITS
from .held_out_text import NAME as HELD_OUT_NAME
from .held_out_text import write_held_out_text
from .task import make_splits, write_splits

N_THREADS = 1
"""One, because splitting a sum among threads changes its rounding, and two are hardly faster."""
ENVIRONMENT = {
    # https://www.intel.com/content/www/us/en/docs/onemkl/developer-guide-linux/
    # "Obtaining Numerically Reproducible Results": STRICT also covers unaligned buffers.
    "MKL_CBWR": "AVX2,STRICT",
    "MKL_DYNAMIC": "FALSE",
    "MKL_NUM_THREADS": str(N_THREADS),
    "OMP_NUM_THREADS": str(N_THREADS),
    "OMP_DYNAMIC": "FALSE",
    "ATEN_CPU_CAPABILITY": "avx2",
    "CUDA_VISIBLE_DEVICES": "",
}
LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors")
DATA_NAMES = (HELD_OUT_NAME, *(f"{split}.jsonl" for split in SPLITS))
MODEL_NAMES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script.

    Args:
        arguments: The command line without the program's name; None for the process's own.

    Returns:
        The exit status: 1 if ``--check`` found a difference, else 0.
    """
    parser = argparse.ArgumentParser(prog="python -m heft_pipeline.data.demo.build")
    parser.add_argument("--data-only", action="store_true", help="leave the model out")
    parser.add_argument("--steps", type=int, help="stop pretraining after this many steps")
    parser.add_argument("--seed", type=int, default=SEED, help="default: %(default)s, as shipped")
    parser.add_argument(
        "--to", type=Path, help="write data and model here instead of into the package"
    )
    parser.add_argument("--check", action="store_true", help="compare a rebuild with the manifest")
    options = parser.parse_args(arguments)
    if options.check and (options.to or options.steps is not None or options.seed != SEED):
        parser.error("--check rebuilds what is shipped: leave out --to, --steps and --seed")
    if options.steps is not None and options.steps < 1:
        parser.error(f"--steps must be at least 1, not {options.steps}")
    if not options.data_only:
        _fix_environment(arguments)
    if options.check:
        return _check(options.data_only)
    if options.to:
        build_files(options.to, options.to, options.seed, options.steps, options.data_only)
    else:
        build_files(FILES, MODEL, options.seed, options.steps, options.data_only)
        _write_manifest()
    return 0


def build_files(
    data_folder: Path, model_folder: Path, seed: int, steps: int | None, data_only: bool
) -> None:
    """Write the splits, the held-out text and, unless ``data_only``, the model and its tokenizer.

    Args:
        data_folder: Where the splits and the text go; created if it is missing.
        model_folder: Where the model and its tokenizer go; created if it is missing.
        seed: Decides everything.
        steps: Stop pretraining after this many steps; None for the shipped number.
        data_only: Leave the model out.
    """
    data_folder.mkdir(parents=True, exist_ok=True)
    splits, passages = make_splits(seed)
    write_splits(splits, data_folder)
    write_held_out_text(seed, passages, data_folder)
    if data_only:
        return
    import torch

    from .pretrain import pretrain, save

    torch.set_num_threads(N_THREADS)
    torch.use_deterministic_algorithms(True)
    torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
    model = pretrain(seed + 1, passages, steps, on_step=_print_progress)
    model_folder.mkdir(parents=True, exist_ok=True)
    save(model, model_folder)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _fix_environment(arguments: Sequence[str] | None) -> None:
    """Start this script again unless its environment already has ``ENVIRONMENT``.

    The libraries read these variables once, when they are loaded.
    """
    if all(os.environ.get(name) == value for name, value in ENVIRONMENT.items()):
        return
    given = sys.argv[1:] if arguments is None else list(arguments)
    command = [sys.executable, "-m", "heft_pipeline.data.demo.build", *given]
    os.execve(sys.executable, command, os.environ | ENVIRONMENT)


def _print_progress(step: int, loss: float, _model: object) -> None:
    if step % 100 == 0:
        print(f"step {step}: loss {loss:.3f}", flush=True)


def _write_manifest() -> None:
    files = {name: sha256(FILES / name) for name in DATA_NAMES}
    files |= {name: sha256(MODEL / name) for name in MODEL_NAMES if (MODEL / name).exists()}
    built_with = {library: version(library) for library in LIBRARIES}
    text = json.dumps({"built_with": built_with, "sha256": files}, indent=2) + "\n"
    MANIFEST.write_text(text, encoding="utf-8", newline="\n")


def _check(data_only: bool) -> int:
    manifest = json.loads(MANIFEST.read_text(encoding="utf-8"))
    names = DATA_NAMES if data_only else DATA_NAMES + MODEL_NAMES
    with tempfile.TemporaryDirectory() as folder:
        build_files(Path(folder), Path(folder), SEED, None, data_only)
        rebuilt = {name: sha256(Path(folder) / name) for name in names}
    different = [name for name in names if rebuilt[name] != manifest["sha256"].get(name)]
    for name in names:
        print(f"{'differs' if name in different else 'same   '}  {rebuilt[name]}  {name}")
    others = {
        library: f"{version(library)}, not {built}"
        for library, built in manifest["built_with"].items()
        if version(library) != built
    }
    if different and others and not data_only:
        print(
            "The shipped model was built with other versions than those installed here ("
            + "; ".join(f"{library} {words}" for library, words in others.items())
            + "), so model.safetensors is expected to differ. Install its versions to compare."
        )
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
