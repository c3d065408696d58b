"""A bad input is one message that says what to type, before anything is trained or recorded."""

import bz2
import gzip
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from heft_pipeline.store.stage_folders import Store
from launch.attempt import attempt
from tests.conftest import composed_run
from tests.launch.broken_inputs import (
    Inputs,
    as_pickle,
    config,
    cut,
    cut_off_parquet,
    each_row,
    evil_pickle,
    folder_named,
    jsonl,
    linked,
    missing,
    pipe,
    replaced,
    rows,
    safetensors_header,
    save_starts,
    train_is,
    train_rows,
    unchanged,
    weights_listed_as,
    weights_of,
    without,
)  # fmt: skip

Cli = Callable[..., tuple[int, str, str]]
Make = Callable[[Inputs], Sequence[str]]
Change = Callable[[Path], object]

WEIGHTS = "model.safetensors"
START = "adapter_model.safetensors"
LFS = b"version https://git-lfs.github.com/spec/v1\n"
FIRST = jsonl(rows()[:3])


def settings(said: str, *given: str) -> object:
    """Settings that are refused."""
    return pytest.param(lambda _: given, said, id=" ".join(given))


def data(name: str, said: str, change: Change, *given: str) -> object:
    """A task's files that are refused, or settings that do not fit them."""
    return pytest.param(lambda i: [*i.data(change), *given], said, id=f"data-{name}")


def model(name: str, said: str, change: Change, *given: str) -> object:
    """A model's files that are refused, or settings that do not fit them."""
    return pytest.param(lambda i: [*i.model(change), *given], said, id=f"model-{name}")


def start(name: str, said: str, kind: str, change: Change, *given: str) -> object:
    """An adapter that training cannot start from."""
    return pytest.param(lambda i: [*i.adapter(kind, change), *given], said, id=f"{kind}-{name}")


SETTINGS = [
    settings("epochs must be a whole number from 1 to 100000, e.g. epochs=3", "epochs=1.5"),
    settings("epochs must be a whole number", "epochs="),
    settings("epochs must be a whole number", "epochs=[1,2]"),
    settings("epochs=0 must be from 1 to 100000", "epochs=0"),
    settings("epochs=100001 must be from 1", "epochs=100001"),
    settings("epochs=999999999999999 must be 2147483647 or less", "epochs=999999999999999"),
    settings("sweep over them with -m", "epochs=1,2"),
    settings("epochs=${epochs}: Recursive", "epochs=${epochs}"),
    settings("Interpolation key 'nosuch' not found; ${NAME} stands for", "epochs=${nosuch}"),
    settings("epochs==3 cannot be read; write KEY=VALUE", "epochs==3"),
    settings("lora.rank={ cannot be read", "lora.rank={"),
    settings("epochs cannot be read; write KEY=VALUE", "epochs"),
    settings("write flags first", "--nosuch"),
    settings("nosuch", "--config-name=nosuch"),
    settings("'/no/such' not found", "--config-dir=/no/such"),
    settings("the most; sweep over fewer values", "-m", "epochs=range(1,99999999999)"),
    settings("lora.learning_rate must be a number greater than 0", "lora.learning_rate=fast"),
    settings("lora.learning_rate=nan must be greater than 0", "lora.learning_rate=nan"),
    settings("lora.learning_rate=inf must be greater than 0", "lora.learning_rate=1e400"),
    settings("lora.use_dora must be true or false", "lora.use_dora=maybe"),
    settings("lora=3 is not one of standard", "lora=3"),
    settings("lora=nosuch is not one of standard", "lora=nosuch"),
    settings("a setting cannot be taken out", "~lora.rank"),
    settings("use lora.rank=32 or less", "lora.rank=100000"),
    settings("use lora.rank=32 or less", "lora.rank=33", "lora.use_dora=true"),
    settings("use lora.rank=32 or less", "rank=1000000", "method=joint"),
    settings("use reft.rank=32 or less", "reft.rank=33", "method=heft"),
    settings("there are method, model, data", "+foo=1"),
    settings("did you mean epochs?", "epoch=1"),
    settings("did you mean lora.rank?", "+lora.rnk=1"),
    settings("did you mean lora.rank?", "lora.rnk=1"),
    settings("add it with +experiment=rank_sweep", "experiment=rank_sweep"),
    settings("is not one of commonsense, heft_demo_paper", "+experiment=nosuch"),
    settings("did you mean method=heft?", "method=hefty"),
    settings("names a kind of adapter twice", "method.stages=[lora+lora]"),
    settings("is not one of basic, local, slurm", "hydra/launcher=nosuch"),
    settings("hydra.launcher.nosuch is no key", "-m", "hydra.launcher.nosuch=1"),
    settings("model.id= has no config.json", "model.id=''"),
    settings("model.id must be text", "model.id=null"),
    settings("use model.attn_implementation=auto", "model.attn_implementation=foo"),
    settings("it needs a GPU", "model.attn_implementation=flash_attention_2"),
    settings("it needs a GPU", "model.attn_implementation=flex_attention"),
    settings("for serving alone", "model.attn_implementation='paged|sdpa'"),
    settings("pip install kernels", "model.attn_implementation=some/kernel"),
    settings("write {column}, or a part of one", "data.prompt='{passage.x}{passage}'"),
    settings("data.choices must be a mapping", "data.choices=[a,b]"),
    settings("data.choices.true is 3.5, which is no text", "data.choices.true=3.5"),
    settings("are both ' no'", "data.choices.true=' no'"),
    settings("use data.kind=choice", "data.kind=answer"),
    settings("has no chat template", "data.chat=true"),
    settings("use it with data.chat=true", "data.system=hello"),
    settings("must be a share below 1 or a whole number", "data.dev_size=1.5"),
    settings("does not occur in data.prompt", "data.truncate_column=nosuch"),
    settings("has no ../train.jsonl", "data.train_split=../train"),
    settings("choices can come from one of them only", "data.choices_column=endings"),
    settings("write fN, lM or fN+lM", "reft.positions=f1+f2", "method=reft"),
    settings("needs prompts of", "reft.positions=f9999999999999999999", "method=reft"),
    settings("it has layers 0 to 2", "red.layers=[9]", "method=red"),
    settings("is not a regular expression", "lora.target_modules='q_proj('"),
    settings("its layers have down_proj", "lora.target_modules=[nosuch]"),
    settings("must contain {choice} once", "evaluation.answer=yes"),
    settings("use training.selection=best", "training.early_stopping_patience=2",
             "training.selection=last"),
    settings("report.forgetting=/no/such cannot be read", "report.forgetting=/no/such"),
    settings("is a pipe, a socket or a device", "report.forgetting=/dev/zero"),
    settings("is not a claim", "report.claims=[lora]"),
    settings("use device=auto or device=cpu", "device=cuda:99"),
    settings("output_dir must be text", "output_dir=null"),
]  # fmt: skip
DATA = [
    data("no-folder", "is not a folder", missing),
    data("no-file", "data.train_split=train: ", without("train.jsonl")),
    data("empty", "data.train_split=train of small has no rows", train_is("")),
    data("blank", "has no rows", train_is("\n  \n\n")),
    data("one-row", "give more rows", train_rows(rows()[:1])),
    data("dev-beyond", "e.g. data.dev_size=3", unchanged, "data.dev_size=40"),
    data("column-missing-later", "{question}, which row train/30 of small does not have",
         train_rows([*rows(), {"passage": "w1", "answer": True}])),
    data("no-answer-column", "data.answer_column=answer is not a column",
         train_rows([{"passage": "w1", "question": "w2"}] * 20)),
    data("broken-line", "train.jsonl, line 4", train_is(FIRST + b'{"passage": "w\n' + FIRST)),
    data("cut-off", "train.jsonl, line 30", train_is(jsonl()[:-20])),
    data("number-as-row", "line 31: not a JSON object", train_rows([*rows(), 3])),
    data("list-as-row", "line 4: not a JSON object", train_is(FIRST + b"[1,2]\n")),
    data("key-twice", "'answer' is there twice", train_is(FIRST + b'{"answer":1,"answer":2}\n')),
    data("latin-1", "iconv -f windows-1252", train_is(FIRST + b'{"passage": "caf\xe9"}\n')),
    data("utf-16", "iconv -f utf-16", train_is(jsonl().decode().encode("utf-16"))),
    data("zero-bytes", "line 4: a zero byte", train_is(FIRST + b"\0" * 100)),
    data("zero-bytes-in-csv", "line 3: a zero byte",
         train_is("passage,question,answer\nw1,w2,true\nw1,w\0,true\n", "train.csv")),
    data("deep", "line 4: a value is nested too deep", train_is(FIRST + b"[" * 100_000)),
    data("huge-number", "train.jsonl, line 4", train_is(FIRST + b"1" * 5000)),
    data("half-a-character", "half of a surrogate pair", each_row(passage="\ud800")),
    data("folder", "has train.jsonl/", folder_named("train.jsonl")),
    data("folder-of-text", "move the others out", folder_named("train.jsonl", "readme.txt")),
    data("two-formats", "keep one of them", replaced("train.csv", b"passage\n")),
    data("dangling-link", "cannot be read", linked("train.jsonl", "/no/such")),
    data("loop-of-links", "cannot be read", linked("train.jsonl", "train.jsonl")),
    data("device", "is a pipe, a socket or a device", linked("train.jsonl", "/dev/zero")),
    data("pipe", "is a pipe, a socket or a device", pipe("train.jsonl")),
    data("gzip-named-jsonl", "let its name end in .gz", train_is(gzip.compress(jsonl()))),
    data("jsonl-named-gzip", "not compressed as its name says", train_is(FIRST, "train.jsonl.gz")),
    data("cut-off-gzip", "cut off or damaged",
         train_is(gzip.compress(jsonl())[:100], "train.jsonl.gz")),
    data("cut-off-bzip2", "cut off or damaged",
         train_is(bz2.compress(jsonl())[:60], "train.jsonl.bz2")),
    data("zip", "is a ZIP archive; unpack it", train_is(b"PK\x03\x04" + b"x" * 100)),
    data("cut-off-parquet", "is not a Parquet file that can be read", cut_off_parquet),
    data("empty-parquet", "download or write it again", train_is("", "train.parquet")),
    data("json-named-arrow", "is not a Arrow file", train_is(FIRST, "train.arrow")),
    data("open-quote", "train.csv, line 3",
         train_is('passage,question,answer\nw1,w2,true\n"w1,w2,true\n', "train.csv")),
    data("no-header", "it has w1, w2, true", train_is("w1,w2,true\nw3,w4,no\n" * 9, "train.csv")),
    data("short-row", "line 2: 2 cells for 3 columns",
         train_is("passage,question,answer\nw1,w2\n", "train.csv")),
    data("semicolons", "has ';' between the columns",
         train_is("passage;question;answer\nw1;w2;true\n", "train.csv")),
    data("unknown-label", "not among data.choices (true, false)", each_row(answer="perhaps")),
    data("no-label", "not among data.choices (true, false)", each_row(answer=None)),
    data("id-twice", "has '0' more than once",
         train_rows([row | {"question": n // 2} for n, row in enumerate(rows())]),
         "data.id_column=question"),
    data("no-id", "is not a column of every row of train",
         train_rows([*({**row, "id": n} for n, row in enumerate(rows())), rows()[0]]),
         "data.id_column=id", "data.eval_split=train", "data.allow_overlap=true"),
    data("one-class", "give rows with more than one answer",
         train_rows([row | {"answer": True} for row in rows()])),
    data("no-text", "has nothing (null) in passage", each_row(passage=None)),
    data("list-as-text", "has a list in passage", each_row(passage=["w1", "w2"])),
    data("empty-text", "makes an empty prompt", each_row(passage="", question=""),
         "data.prompt='{passage}{question}'", "data.special_tokens=as_written"),
    data("huge-row", "data.truncate_column=passage", each_row(passage="w1 " * 100_000),
         "data.truncate_column=null"),
    data("too-long-for-model", "use data.max_prompt_tokens=127", each_row(passage="w1 " * 200)),
    data("same-rows", "data.allow_overlap=true",
         lambda task: shutil.copy(task / "train.jsonl", task / "validation.jsonl")),
    data("shard-missing", "has 1 of 2 files of train",
         lambda task: (task / "train.jsonl").rename(task / "train-00000-of-00002.jsonl")),
]  # fmt: skip
MODELS = [
    model("missing", "is not a folder; give a folder or a hub id", missing),
    model("no-config", "has no config.json", without("config.json")),
    model("cut-off-config", "config.json is not JSON", cut("config.json")),
    model("list-as-config", "config.json is not a JSON object", replaced("config.json", b"[]")),
    model("pipe-as-config", "is a pipe, a socket or a device", pipe("config.json")),
    model("pointer-as-config", "run `git lfs pull`", replaced("config.json", LFS)),
    model("unknown-architecture", "model type `nosuch`", config(model_type="nosuch")),
    model("own-code", "model.trust_remote_code=true",
          config(model_type="own", auto_map={"AutoConfig": "own.Own"})),
    model("encoder", "use a causal language model", config(model_type="bert")),
    model("encoder-decoder", "t5 is not a causal language model", config(model_type="t5")),
    model("quantised", "requires optimum",
          config(quantization_config={"quant_method": "gptq", "bits": 4})),
    model("no-such-quantisation", "quantised with nosuch, which cannot be loaded here",
          config(quantization_config={"quant_method": "nosuch"})),
    model("heads", "not a multiple of the number of attention heads",
          config(num_attention_heads=5, head_dim=None)),
    model("text-as-number", "expected int, got str", config(num_hidden_layers="three")),
    model("another-width", "weights have other shapes", config(hidden_size=64)),
    model("no-tokenizer", "has no tokenizer (tokenizer.json",
          without("tokenizer.json", "tokenizer_config.json")),
    model("cut-off-tokenizer", "tokenizer.json is not JSON", cut("tokenizer.json")),
    model("no-weights", "has no model.safetensors", without(WEIGHTS)),
    model("pickle", "save_pretrained, which writes safetensors", as_pickle),
    model("cut-off-weights", "model.safetensors is cut off", cut(WEIGHTS)),
    model("last-byte", "model.safetensors is cut off", cut(WEIGHTS, 0.99999)),
    model("empty-weights", "is cut off or no safetensors file (it has 0 bytes)",
          replaced(WEIGHTS, b"")),
    model("text-as-weights", "no safetensors file", replaced(WEIGHTS, b"hello" * 50)),
    model("endless-header", "no safetensors file", replaced(WEIGHTS, safetensors_header(2**62))),
    model("pointer-as-weights", "run `git lfs pull`", replaced(WEIGHTS, LFS)),
    model("another-shape", "model.norm.weight is 16, and 32 by the config", weights_of(
        lambda tensors: tensors.update({"model.norm.weight": tensors["model.norm.weight"][:16]}))),
    model("shard-missing", "lacks one.safetensors",
          weights_listed_as('{"weight_map": {"a": "one.safetensors"}}')),
    model("list-as-index", "lists no weights", weights_listed_as('{"weight_map": [1]}')),
    model("adapter-beside", "move it out of the folder", replaced("adapter_config.json", b"{}")),
    model("short-context", "use data.max_prompt_tokens=7", config(max_position_embeddings=8)),
    model("attention-unsupported", "model.attn_implementation=sdpa cannot be used: GptOss",
          config(model_type="gpt_oss", num_local_experts=2), "model.attn_implementation=sdpa"),
]  # fmt: skip
ADAPTERS = [
    start("missing", "is not a folder; give the folder of a saved adapter", "lora", missing),
    start("pickle", f"has no {START}", "lora",
          lambda folder: (folder / START).rename(folder / "adapter_model.bin")),
    start("pickle-renamed", "give another folder with lora.init_from=DIR", "lora",
          evil_pickle(START)),
    start("cut-off", "is cut off or broken", "lora", cut(START)),
    start("cut-off-config", "adapter_config.json is not JSON", "lora",
          cut("adapter_config.json")),
    start("another-rank", "set lora.rank=8", "lora", unchanged, "lora.rank=4"),
    start("other-modules", "its weights do not fit", "lora", unchanged,
          "lora.target_modules=[q_proj]"),
    start("dora", "set lora.use_dora=False", "lora", unchanged, "lora.use_dora=true"),
    start("no-config", "has no config.json", "reft", without("config.json")),
    start("pipe", "is a pipe, a socket or a device", "reft", pipe("config.json")),
    start("cut-off", "it is damaged, or would run code of its own", "reft",
          cut("intkey_layer_1_comp_block_output_unit_pos_nunit_1#0.bin")),
    start("evil", "it is damaged, or would run code of its own", "reft",
          evil_pickle("intkey_layer_1_comp_block_output_unit_pos_nunit_1#0.bin")),
    start("another-rank", "set reft.intervention and reft.rank", "reft", unchanged, "reft.rank=4"),
    start("other-layers", "set reft.layers", "reft", unchanged, "reft.layers=[0,1]"),
    start("no-file", "has no red.safetensors", "red", without("red.safetensors")),
    start("cut-off", "give another folder with red.init_from=DIR", "red", cut("red.safetensors")),
    start("other-layers", "for these layers of this model", "red", unchanged, "red.layers=[0]"),
]  # fmt: skip
#: What only loading the weights can show; training does not begin, but there is a stage by then.
LOADED = [
    model("weight-missing", "lacks 1 of the model's weights",
          weights_of(lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))),
    model("layers-not-counted", "use the config.json that belongs to the checkpoint",
          config(num_hidden_layers=2)),
    model("not-finite", "are NaN or infinite",
          weights_of(lambda tensors: tensors["model.norm.weight"].fill_(float("nan")))),
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def fonts() -> None:
    """matplotlib writes a list of a machine's fonts to HOME when it is first imported."""
    import matplotlib.font_manager  # noqa: F401


@pytest.fixture(scope="module")
def starts(tmp_path_factory: pytest.TempPathFactory, small_model: Path, small: list[str]) -> Path:
    folder = tmp_path_factory.mktemp("starts")
    save_starts(folder, small_model, small)
    return folder


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Folders that nothing may be written to: every place that a command could write to."""
    places = {name: tmp_path / name for name in ("work", "home", "inputs", "temporary")}
    for place in places.values():
        place.mkdir()
    monkeypatch.chdir(places["work"])
    monkeypatch.setenv("HOME", str(places["home"]))
    monkeypatch.setattr(tempfile, "tempdir", str(places["temporary"]))
    return places


def listing(folders: dict[str, Path]) -> dict[Path, tuple[int, int]]:
    """Size and time of everything in folders."""
    paths = [path for folder in folders.values() for path in folder.rglob("*")]
    return {path: (path.lstat().st_size, path.lstat().st_mtime_ns) for path in paths}


def refused(
    cli: Cli, small: list[str], given: Sequence[str], said: str, watched: dict[str, Path]
) -> None:
    before = listing(watched)
    # Without --run, Hydra composes a config once more only to see that this is no sweep.
    mode = [] if "-m" in given else ["--run"]
    status, _, err = cli(*mode, *small, "method=lora", "epochs=1", *given)
    assert (status, err.count("\n")) == (1, 1), err
    assert err.startswith("Error: ")
    assert said in err
    assert "Traceback" not in err and "not foreseen" not in err
    assert listing(watched) == before


@pytest.mark.parametrize(("make", "said"), [*SETTINGS, *DATA, *MODELS, *ADAPTERS])
def test_a_bad_input_is_one_message_and_leaves_nothing_behind(
    cli: Cli,
    small: list[str],
    small_model: Path,
    starts: Path,
    watched: dict[str, Path],
    tmp_path: Path,
    make: Make,
    said: str,
) -> None:
    refused(cli, small, make(Inputs(watched["inputs"], small_model, starts)), said, watched)
    assert not list(tmp_path.glob("outputs/stages/*"))
    assert not (tmp_path / "outputs" / "sweeps").exists()


@pytest.mark.parametrize(("make", "said"), LOADED)
def test_weights_that_cannot_be_used_are_one_message_before_training(
    cli: Cli,
    small: list[str],
    small_model: Path,
    starts: Path,
    watched: dict[str, Path],
    tmp_path: Path,
    make: Make,
    said: str,
) -> None:
    given = [*make(Inputs(watched["inputs"], small_model, starts)), "report.base_model=false"]
    refused(cli, small, given, f"the run failed: lora@1 r8 s0: model.id={watched['inputs']}",
            watched)  # fmt: skip
    assert said in next(tmp_path.glob("outputs/stages/*/stage.log")).read_text()
    assert not list(tmp_path.glob("outputs/stages/*/metrics.jsonl"))


def test_a_checkpoint_of_another_rank_is_one_message(
    cli: Cli,
    small: list[str],
    watched: dict[str, Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    asked = [*small, "method=lora", "epochs=1", "lora.target_modules=[q_proj]"]
    store = Store(tmp_path / "outputs")
    first, second = (composed_run(*asked, f"lora.rank={rank}").last for rank in (4, 8))
    looked: list[bool] = []

    def stop() -> bool:
        looked.append(True)
        return len(looked) > 2

    assert attempt(first, store, should_stop=stop).status == "interrupted"
    capfd.readouterr()
    kept = store.folder(second.fingerprint) / "checkpoint"
    shutil.copytree(store.folder(first.fingerprint) / "checkpoint", kept)
    given = ["lora.target_modules=[q_proj]", "lora.rank=8", "report.base_model=false"]
    refused(cli, small, given, "remove the folder checkpoint/ of the stage", watched)


@pytest.mark.parametrize("mode", [[], ["-m"]])
@pytest.mark.parametrize("place", ["/proc/foo", "/dev/null/foo", "FILE", "FILE/inside"])
def test_an_output_folder_that_cannot_be_made_is_one_message(
    cli: Cli, small: list[str], watched: dict[str, Path], place: str, mode: list[str]
) -> None:
    file = watched["inputs"] / "file"
    file.write_text("text")
    output_dir = Path(place.replace("FILE", str(file)))
    before = listing(watched)
    status, _, err = cli(*mode, *small, "method=lora", "epochs=1", output_dir=output_dir)
    assert (status, err.count("\n")) == (1, 1), err
    assert err.startswith("Error: ")
    assert "output_dir=DIR" in err
    assert "not foreseen" not in err
    assert listing(watched) == before


@pytest.mark.parametrize(
    ("name", "value", "given", "said"),
    [
        ("OMP_NUM_THREADS", "banana", [], "is not a number of threads; set it to one"),
        ("WORLD_SIZE", "two", [], "is not a number of processes"),
        ("WANDB_MODE", "sometimes", ["tracking=wandb"], "is not one of online, offline, disabled"),
    ],
)
def test_a_variable_that_makes_no_sense_is_one_message(
    cli: Cli,
    small: list[str],
    watched: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    value: str,
    given: list[str],
    said: str,
) -> None:
    monkeypatch.setenv(name, value)
    refused(cli, small, given, f"{name}={value}", watched)
    status, _, err = cli(*small, *given)
    assert status == 1 and said in err


def ended(folder: Path, *given: str, **environment: str | None) -> tuple[int, str]:
    """Run the command line in a process of its own; returns its status and what it says."""
    asked: dict[str, Any] = os.environ | environment
    done = subprocess.run(
        [sys.executable, "-m", "heft_pipeline", *given, f"output_dir={folder / 'outputs'}"],
        env={key: value for key, value in asked.items() if value is not None},
        capture_output=True, text=True, check=False, timeout=120, cwd=folder,
    )  # fmt: skip
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    "environment", [{"HOME": None}, {"TMPDIR": "/no/such"}, {"LANG": "en_US.UT", "LC_ALL": None}]
)
def test_an_environment_that_lacks_what_is_not_needed_changes_nothing(
    tmp_path: Path, environment: dict[str, str | None]
) -> None:
    given = ["-m", "method=lora", "hydra.launcher.dry_run=true", "hydra.launcher.dry_run_gpu=none"]
    assert ended(tmp_path, *given, PYTHONPATH=os.getcwd(), **environment) == (0, "")  # noqa: PTH109


@pytest.mark.parametrize(
    ("given", "environment", "said"),
    [
        (["epochs=three"], {}, "epochs must be a whole number from 1 to 100000"),
        (["--nosuch"], {}, "write flags first"),
        (["lora.rank=100000"], {"LANG": "en_US.UT"}, "use lora.rank="),
        ([], {"OMP_NUM_THREADS": "banana"}, "OMP_NUM_THREADS=banana in the environment"),
    ],
)
def test_a_process_of_its_own_says_the_same(
    tmp_path: Path, given: list[str], environment: dict[str, str], said: str
) -> None:
    status, err = ended(tmp_path, *given, PYTHONPATH=os.getcwd(), **environment)  # noqa: PTH109
    assert status == 1
    assert err.startswith("Error: ") and err.count("\n") == 1, err
    assert said in err


def test_the_last_line_of_a_sweep_has_the_reasons_of_its_failed_runs(
    cli: Cli, small: list[str]
) -> None:
    asked = ["-m", *small, "method=lora,heft", "epochs=1", "seed=0,1", "report.base_model=false"]
    status, _, err = cli(*asked, "lora.learning_rate=1e9", "data.max_train_rows=40")
    assert status == 1
    last = err.splitlines()[-1]
    assert last.startswith("Error: 4 of 4 runs failed: lora@1 r8 s0: the loss or its gradient was")
    assert "lower lora.learning_rate=1e+09" in last
    assert "(and 1 more alike)" in last
    assert len(last) < 700
