"""The rows and models that both sides use."""

import json
import shutil
from pathlib import Path
from typing import Any

from heft_pipeline.errors import UserError
from heft_pipeline.plan.sources import BUILTIN

#: The published shapes of models, without their weights (transformers' LlamaConfig).
SHAPES: dict[str, dict[str, Any]] = {
    "llama2_7b": {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 4096,
    },
    "smollm2_135m": {
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
}
#: Shapes that both sides use in bfloat16, and only on a GPU.
LARGE = ("llama2_7b",)
_DEV_ROWS = 8
_EVAL_NAMES = ("validation", "test")


def write_rows(data: Path, rows: int, folder: Path) -> None:
    """Write the first rows of a data folder as train, dev and validation files.

    Args:
        data: A folder with ``train.jsonl`` and ``validation.jsonl`` (or ``test.jsonl``).
        rows: How many rows of each split; dev gets up to 8 rows of the reported split.
        folder: The folder to create.

    Raises:
        UserError: A file is missing.
    """
    evaluated = [data / f"{n}.jsonl" for n in _EVAL_NAMES if (data / f"{n}.jsonl").is_file()]
    if not (data / "train.jsonl").is_file() or not evaluated:
        raise UserError(
            f"--data {data} has no train.jsonl, or no validation.jsonl or test.jsonl beside it; "
            "give a folder that has both"
        )
    folder.mkdir(parents=True)
    _copy(data / "train.jsonl", rows, folder / "train.jsonl")
    _copy(evaluated[0], rows, folder / "validation.jsonl")
    _copy(evaluated[0], min(rows, _DEV_ROWS), folder / "dev.jsonl")


def _copy(source: Path, count: int, target: Path) -> None:
    """Copy the first rows; if all have one answer, the last is replaced by a row with another."""
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines() if line]
    chosen = rows[:count]
    others = [row for row in rows if row["answer"] != chosen[0]["answer"]]
    if others and all(row["answer"] == chosen[0]["answer"] for row in chosen):
        chosen[-1] = others[0]
    target.write_text("".join(json.dumps(row) + "\n" for row in chosen))


def save_random_model(shape: str, folder: Path) -> None:
    """Save a model of a known shape with random weights and the shipped tiny tokenizer.

    Args:
        shape: A key of :data:`SHAPES`.
        folder: The folder to save it to.

    Raises:
        UserError: The shape needs a GPU, and there is none.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    if shape in LARGE and not torch.cuda.is_available():
        raise UserError(f"--model random:{shape} needs a CUDA device; use random:smollm2_135m")
    dtype = torch.bfloat16 if shape in LARGE else torch.float32
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = LlamaForCausalLM(
            LlamaConfig(**SHAPES[shape], bos_token_id=2, eos_token_id=3, pad_token_id=0)
        )
    model.to(torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BUILTIN["builtin:tiny"] / name, folder / name)
