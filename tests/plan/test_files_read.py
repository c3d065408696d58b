"""The files that a run opens are the files that its fingerprint covers, and no others matter."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from heft_pipeline.data.split_files import files_read
from heft_pipeline.errors import UserError
from heft_pipeline.models.checkpoint_files import model_files
from heft_pipeline.plan.graph import Plan, Run
from heft_pipeline.stage.preflight import preflight
from heft_pipeline.stage.run_stage import run_stage
from heft_pipeline.store.stage_folders import Store
from tests.conftest import WORDS, make_rows, write_rows

ComposeRun = Callable[..., Run]
#: Trains the stages of a plan in a process of its own, whose opened files can be traced.
TRAIN = """
import json, sys
from pathlib import Path
from heft_pipeline.plan.graph import read_plan
from heft_pipeline.stage.preflight import preflight
from heft_pipeline.stage.run_stage import run_stage
from heft_pipeline.store.stage_folders import Store
plan, store = read_plan(json.loads(Path(sys.argv[1]).read_text())), Store(Path(sys.argv[2]))
preflight(plan.stages.values())
for stage in plan.stages.values():
    run_stage(stage, store)
"""


def write_llama(folder: Path) -> None:
    """A model in shards with a tokenizer.json, and files that such a model does not use."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests.conftest import save_tokenizer

    config = LlamaConfig(
        vocab_size=len(WORDS) + 8, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=128, initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder, max_shard_size="30KB")
    save_tokenizer(folder)
    (folder / "additional_chat_templates").mkdir()
    for name in ("chat_template.jinja", "additional_chat_templates/tool.jinja"):
        (folder / name).write_text("{{ messages }}")
    (folder / "special_tokens_map.json").write_text('{"unk_token": "<unk>"}')
    (folder / "added_tokens.json").write_text("{}")
    (folder / "vocab.json").write_text("{}")
    (folder / "tokenizer.model").write_text("not read")


def write_gpt2(folder: Path) -> None:
    """A model in one file with vocab.json and merges.txt, and an index that it does not use."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        vocab_size=400,
    )  # fmt: skip
    tokenizer.train_from_iterator(["w1 yes no Question: Answer:", " ".join(WORDS)], trainer)
    config = GPT2Config(
        vocab_size=400, n_embd=32, n_layer=2, n_head=4, n_positions=256, initializer_range=0.3
    )
    torch.manual_seed(0)
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.model.save(str(folder))
    end = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "added_tokens_decoder": {}}
    written = json.dumps({"tokenizer_class": "GPT2Tokenizer", **end})
    (folder / "tokenizer_config.json").write_text(written)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"x": "x.safetensors"}}')
    (folder / "special_tokens_map.json").write_text("{}")
    (folder / "added_tokens.json").write_text("{}")


UNREAD = {
    "model": [
        "README.md", "consolidated.safetensors", "original/params.json", "pytorch_model.bin",
        "onnx/model.onnx", "model.gguf", "modeling_own.py", "notes.json", "generation_config.json",
        "adapter/adapter_config.json",
    ],
    "data": ["README.md", "test.jsonl", "train/_SUCCESS", "train/.part-0.crc", "notes/x.txt",
             "validation-old.jsonl", "data/train.jsonl"],
    "start": ["README.md", "training_args.bin", "tokenizer.json", "optimizer.safetensors"],
}  # fmt: skip


@pytest.fixture(scope="session", params=[write_llama, write_gpt2], ids=["shards", "one-file"])
def inputs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of a model, of data and of an adapter to start from, with unread files in each."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("inputs")
    (folder / "model").mkdir()
    request.param(folder / "model")
    (folder / "data" / "train").mkdir(parents=True)
    for part in range(2):
        rows = pyarrow.Table.from_pylist(make_rows(30, seed=part))
        pyarrow.parquet.write_table(rows, folder / "data" / "train" / f"part-{part}.parquet")
    write_rows(folder / "data" / "validation.jsonl", make_rows(20, seed=9))
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    get_peft_model(model, config).save_pretrained(folder / "start")
    for place, names in UNREAD.items():
        for name in names:
            path = folder / place / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text('{"repetition_penalty": 3.0, "do_sample": true}')
    return folder


def asked(inputs: Path) -> list[str]:
    return [
        f"model.id={inputs / 'model'}", f"data.path={inputs / 'data'}", "data=boolq",
        "model.name=m", "data.name=d", "data.prompt='{passage} Question: {question} Answer:'",
        "method=heft", "epochs=1", "data.max_prompt_tokens=200",
        f"lora.init_from={inputs / 'start'}",
    ]  # fmt: skip


def listed(run: Run, inputs: Path) -> set[str]:
    """The files that the fingerprint covers, as paths within the inputs."""
    start = run.stages[0].adapters[0].start_files(inputs / "start")
    found = [
        *model_files(inputs / "model", False, "model"),
        *files_read(run.last.data, inputs / "data"),
        *(inputs / "start" / name for name in start),
    ]
    return {file.relative_to(inputs).as_posix() for file in found}


def traced() -> bool:
    """Whether opened files can be traced here."""
    if shutil.which("strace") is None:
        return False
    return subprocess.run(["strace", "-qq", "-o", os.devnull, "true"]).returncode == 0


def in_process(run: Run, folder: Path, strace: bool) -> list[str]:
    """Train a run's stages in another process; gives strace's lines."""
    (folder / "plan.json").write_text(json.dumps(Plan((run,)).to_json()))
    command = [sys.executable, "-c", TRAIN, str(folder / "plan.json"), str(folder / "store")]
    if strace:
        # -y: with the path that an opened link leads to.
        options = ["-f", "-qq", "-y", "--seccomp-bpf", "-e", "trace=open,openat"]
        command = ["strace", *options, "-o", str(folder / "opened"), *command]
    subprocess.run(command, check=True, capture_output=True)
    return (folder / "opened").read_text().splitlines() if strace else []


def outcome(store: Store, run: Run) -> list[str]:
    """Digests of everything that the stages' results are."""
    return [
        hashlib.sha256(file.read_bytes()).hexdigest()
        for stage in run.stages
        for file in sorted(store.folder(stage.fingerprint).rglob("*"))
        if file.suffix in (".safetensors", ".parquet")
    ]


@pytest.mark.skipif(not traced(), reason="strace is not installed, or may not trace")
def test_a_run_opens_exactly_the_files_that_its_fingerprint_covers(
    compose_run: ComposeRun, inputs: Path, tmp_path: Path
) -> None:
    run = compose_run(*asked(inputs))
    lines = in_process(run, tmp_path, strace=True)
    opened = {match[1] for line in lines if (match := re.search(r"= \d+<([^>]*)>", line))}
    inside = {
        Path(path).relative_to(inputs).as_posix()
        for path in opened
        if Path(path).is_relative_to(inputs) and Path(path).is_file()
    }
    assert inside == listed(run, inputs)


def test_no_other_file_changes_a_result_or_its_fingerprint(
    compose_run: ComposeRun, inputs: Path, tmp_path: Path
) -> None:
    run, outcomes = compose_run(*asked(inputs)), []
    kept = listed(run, inputs)
    for name, unread in (("as-given", None), ("changed", "{}"), ("removed", "")):
        folder = tmp_path / name
        shutil.copytree(inputs, folder)
        others = {p for p in folder.rglob("*") if p.is_file()} - {folder / one for one in kept}
        assert len(others) >= sum(map(len, UNREAD.values()))
        for path in others:
            if unread == "":
                path.unlink()
            elif unread:
                path.write_text(unread)
        same = compose_run(*asked(folder))
        assert [s.fingerprint for s in same.stages] == [s.fingerprint for s in run.stages]
        store = Store(folder / "store")
        preflight(same.stages)
        for stage in same.stages:
            run_stage(stage, store)
        outcomes.append(outcome(store, same))
    assert len(outcomes[0]) >= 4
    assert outcomes[0] == outcomes[1] == outcomes[2]


def test_every_listed_file_changes_the_fingerprint(
    compose_run: ComposeRun, inputs: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(inputs, folder)
    run = compose_run(*asked(folder))
    for name in sorted(listed(run, folder)):
        file = folder / name
        before = file.read_bytes()
        file.write_bytes(before + b"\n")
        changed = compose_run(*asked(folder))
        assert changed.stages[0].fingerprint != run.stages[0].fingerprint, name
        file.unlink()
        try:
            removed = compose_run(*asked(folder))
            assert removed.stages[0].fingerprint != run.stages[0].fingerprint, name
        except UserError as error:
            assert str(folder) in str(error)
        file.write_bytes(before)
    assert compose_run(*asked(folder)).last.fingerprint == run.last.fingerprint


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("model/config.json", r"model\.id=.* has no config\.json; give a folder with a whole"),
        ("model/model*.safetensors", r"model\.id=.* lacks (model-00001-of-\d+|x)\.safetensors"),
        ("model/model*", r"model\.id=.* has no model\.safetensors .*save_pretrained, which writes"),
        ("start/adapter_model.safetensors", r"lora\.init_from=.* has no adapter_model\.safe"),
        ("data/train/*.parquet", r"data\.train_split=train: .* has no train\.jsonl"),
    ],
)
def test_a_missing_file_is_named_when_the_run_is_planned(
    compose_run: ComposeRun, inputs: Path, tmp_path: Path, missing: str, said: str
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(inputs, folder)
    shutil.rmtree(folder / "data" / "data")
    for file in folder.glob(missing):
        file.unlink()
    (folder / "model" / "consolidated.safetensors").touch()
    with pytest.raises(UserError, match=said):
        compose_run(*asked(folder))
