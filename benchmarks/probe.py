"""Time what is tried on a model when it is loaded, beside one pass over a prompt.

    python -m benchmarks.probe builtin:tiny DIR random:llama2_7b

A random model is built in memory, in bfloat16, with the shipped tiny tokenizer.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.inputs import SHAPES
from heft_pipeline.adapters.kind import AdapterSettings
from heft_pipeline.adapters.lora.settings import LoraSettings
from heft_pipeline.adapters.reft.settings import ReftSettings
from heft_pipeline.models.base_model import Base, decoder_layers, load_base, load_tokenizer, quieten
from heft_pipeline.models.settings import ModelSettings
from heft_pipeline.plan.sources import BUILTIN
from heft_pipeline.stage.probe import probe_adapters, probe_base

_LORA, _REFT = LoraSettings(rank=8, epochs=1).resolved(), ReftSettings(rank=8, epochs=1).resolved()
_PLANS: dict[str, list[tuple[AdapterSettings, ...]]] = {
    "lora": [(_LORA,)],
    "reft": [(_REFT,)],
    "heft": [(_LORA,), (_REFT,)],
}


def main() -> None:
    """Print a table with a row for each model."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="*", default=["builtin:tiny"])
    quieten()
    print(f"{'model':<24}{'load':>8}{'model probe':>13}" + "".join(f"{n:>8}" for n in _PLANS))
    for name in parser.parse_args().models:
        base, load = _timed(partial(_loaded, name))
        probed, seconds = _timed(partial(probe_base, base, "model"))
        plans = [_timed(partial(probe_adapters, probed, plan))[1] for plan in _PLANS.values()]
        times = "".join(f"{s:>8.2f}" for s in plans)
        print(f"{Path(name).name:<24}{load:>8.2f}{seconds:>13.2f}{times}", flush=True)


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    done = work()
    return done, time.perf_counter() - start


def _loaded(name: str) -> Base:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not name.startswith("random:"):
        folder = str(BUILTIN.get(name, Path(name)))
        return load_base(ModelSettings(id=folder, revision=None, dtype="auto"), device)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with device:
            model = LlamaForCausalLM(LlamaConfig(**SHAPES[name.removeprefix("random:")]))
    finally:
        torch.set_default_dtype(torch.float32)
    model.requires_grad_(False).eval()
    tokenizer = load_tokenizer(ModelSettings(id=str(BUILTIN["builtin:tiny"]), revision=None))
    path, layers = decoder_layers(model)
    return Base(model, tokenizer, layers, path, pad_token_id=0)


if __name__ == "__main__":
    main()
