"""What tests share: a small random model and task in local folders, and ways to ask for runs."""

import json
import logging
import os
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

# Set before transformers is imported: no test may reach for the network.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from heft_pipeline.plan.graph import Run, make_run
from heft_pipeline.plan.sources import Sources
from heft_pipeline.settings.checks import typed
from heft_pipeline.settings.schema import config_dir, register
from heft_pipeline.store.stage_folders import Store

_LONGEST_FIRST = ("slurm_drill", "damaged_store", "bad_inputs", "test_slurm", "export", "cli")
WORDS = [f"w{i}" for i in range(60)]
CliResult = tuple[int, str, str]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files, so that no process is left alone with one at the end."""

    def rank(item: pytest.Item) -> int:
        ranks = (at for at, name in enumerate(_LONGEST_FIRST) if name in item.path.stem)
        return next(ranks, len(_LONGEST_FIRST))

    items.sort(key=rank)


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name bytes by their argument: a compressed file has the time in it, and each of xdist's
    processes has to find the tests under the same names."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture(autouse=True)
def no_fast_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests compute in float32 whatever this machine's hardware, unless they ask for another."""
    from heft_pipeline.devices import fast_dtype

    monkeypatch.setattr(fast_dtype, "has_fast_bfloat16", lambda device: False)


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random three-layer Llama with grouped-query attention and a word-level tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("small-model")
    save_tokenizer(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS) + 8,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.3,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def save_tokenizer(folder: Path) -> None:
    """A word-level tokenizer with a leading BOS, as Llama's has."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = ["<unk>", "<s>", "</s>", "yes", "no", "maybe", "Question:", "Answer:", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(vocabulary)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)


def make_rows(count: int, seed: int, shortest: int = 12, longest: int = 40) -> list[dict[str, Any]]:
    """Rows whose answer is whether the question's word is in the passage."""
    source = random.Random(seed)
    rows = []
    for _ in range(count):
        passage = source.sample(WORDS, source.randint(shortest, longest))
        inside = source.random() < 0.5
        word = source.choice(passage if inside else [w for w in WORDS if w not in passage])
        rows.append({"passage": " ".join(passage), "question": word, "answer": inside})
    return rows


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.jsonl and validation.jsonl in BoolQ's columns."""
    folder = tmp_path_factory.mktemp("small-data")
    write_rows(folder / "train.jsonl", make_rows(120, seed=1))
    write_rows(folder / "validation.jsonl", make_rows(50, seed=2))
    return folder


@pytest.fixture(scope="session")
def small(small_model: Path, small_data: Path) -> list[str]:
    """The overrides that choose the small model and task."""
    return [
        f"model.id={small_model}",
        "model.dtype=float32",  # also in a process of its own, on any CPU
        "data=boolq",
        f"data.path={small_data}",
        "data.name=small",
        "data.prompt='{passage} Question: {question} Answer:'",
        "lora.learning_rate=3e-3",
        "reft.learning_rate=3e-3",
    ]


def composed_run(*overrides: str) -> Run:
    """Compose a run in this process, as the command line would."""
    from hydra import compose, initialize_config_dir

    register()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = compose("config", ["sweep=test", *overrides])
    # Files of this size never have their digests remembered, so the cache stays unwritten.
    return make_run(typed(cfg), Sources(Path("unused")), "run", overrides)


@pytest.fixture
def compose_run() -> Callable[..., Run]:
    """:func:`composed_run`, for tests that take it as a fixture."""
    return composed_run


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store(tmp_path)


@pytest.fixture
def cli(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., CliResult]:
    """Run the command line in this process; returns exit status, stdout and stderr."""
    from heft_pipeline.__main__ import main

    def called(*arguments: str, output_dir: Path | None = None) -> CliResult:
        where = f"output_dir={output_dir or tmp_path / 'outputs'}"
        flags_first = sorted(arguments, key=lambda argument: not argument.startswith("-"))
        monkeypatch.setattr(sys, "argv", ["heft_pipeline", *flags_first, where])
        monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
        status, root = 0, logging.getLogger()
        before = list(root.handlers)
        try:
            main()
        except SystemExit as stop:
            status = int(stop.code or 0)
        for handler in [one for one in root.handlers if one not in before]:
            root.removeHandler(handler)  # Hydra's, whose files may be gone in the next test
        return status, *capfd.readouterr()

    return called
