"""Files that lead elsewhere, are endless or say nonsense: one message, and bounded time and memory.

What is promised of links: those of a model's or a task's folder are followed, because the hub's
cache consists of them; nothing is written through a link, and nothing that is copied or sent to
others is read through one that leads out of its folder.
"""

import ast
import bz2
import dataclasses
import gzip
import json
import lzma
import os
import resource
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from heft_pipeline.data.split_files import split_files
from heft_pipeline.data.text_rows import read_json
from heft_pipeline.errors import UserError
from heft_pipeline.files.tensor_files import copy_files, read_tensors
from heft_pipeline.models.base_model import check_model, load_base, load_tokenizer
from heft_pipeline.models.checkpoint_files import only_read_files
from heft_pipeline.models.settings import ModelSettings
from heft_pipeline.plan.graph import Plan
from heft_pipeline.plan.sources import Sources
from heft_pipeline.use.export import export
from heft_pipeline.use.saved import find_adapter
from tests.conftest import composed_run

Cli = Callable[..., tuple[int, str, str]]
NAMES = ["../../outside.safetensors", "/etc/passwd", "a/../../x", "x\0y", "-x\n", "..", "", 5, None]
DEEP = "[" * 200_000


@pytest.fixture
def model(small_model: Path, tmp_path: Path) -> Path:
    """A copy of the small model, to be made hostile."""
    return Path(shutil.copytree(small_model, tmp_path / "in/model"))


@pytest.fixture
def soon() -> Iterator[None]:
    """Whatever a file says, it is refused within seconds and without a gigabyte."""
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert time.monotonic() - began < 60, "on a busy machine"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_000_000


def of(folder: Path) -> ModelSettings:
    return ModelSettings(id=str(folder), revision=None, name="m")


def refused(act: Callable[[], object]) -> str:
    with pytest.raises(UserError) as error:
        act()
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000
    return str(error.value)


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("where", ["weight_map", "transformers_weights", "configuration_files",
                                   "fast_tokenizer_files"])  # fmt: skip
def test_no_name_leads_out_of_a_models_folder(model: Path, name: Any, where: str) -> None:
    outside = model.parent.parent / "outside.safetensors"
    shutil.copy(model / "model.safetensors", outside)
    before = sorted(model.parent.parent.rglob("*"))
    if where == "weight_map":
        (model / "model.safetensors").unlink()
        index = {"metadata": {}, "weight_map": {"lm_head.weight": name}}
        (model / "model.safetensors.index.json").write_text(json.dumps(index))
    elif where == "transformers_weights":
        if not name:
            pytest.skip("the same as no name")
        change(model / "config.json", transformers_weights=name)
    elif where == "configuration_files":
        change(model / "config.json", configuration_files=[name])
    else:
        change(model / "tokenizer_config.json", fast_tokenizer_files=[name])

    def use() -> None:
        with only_read_files(of(model), weights=True):
            pass

    assert "does not lie in the folder" in refused(use)
    found = refused(lambda: Sources(model.parent / "c").model(str(model), "main"))
    assert "does not lie in the folder" in found
    left = [path for path in sorted(model.parent.parent.rglob("*")) if path not in before]
    assert [path.name for path in left] in ([], ["model.safetensors.index.json"])


def test_no_name_leads_out_of_a_saved_data_set(tmp_path: Path) -> None:
    folder = tmp_path / "task/validation"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text("{}")
    (tmp_path / "task/outside.arrow").write_bytes(b"ARROW1")
    for name in ("../outside.arrow", "/etc/passwd", "x\0", 3):
        state = {"_data_files": [{"filename": name}]}
        (folder / "state.json").write_text(json.dumps(state))
        found = refused(lambda: split_files(tmp_path / "task", "validation", "data.eval_split"))
        assert "does not lie in the folder" in found


@pytest.mark.parametrize("split", ["../outside", "/etc/passwd", "a\nb", "-rf", ".*", "validation*"])
def test_a_splits_name_is_no_path_and_no_pattern(tmp_path: Path, split: str) -> None:
    (tmp_path / "outside.jsonl").write_text("{}\n")
    (tmp_path / "task").mkdir()
    (tmp_path / "task/validation.jsonl").write_text("{}\n")
    with pytest.raises(UserError):
        split_files(tmp_path / "task", split, "data.eval_split")


@pytest.mark.parametrize("key", ["a/../../x", "/etc/passwd"])
def test_no_name_leads_out_of_a_pyreft_folder(tmp_path: Path, key: str) -> None:
    (tmp_path / "reft/intkey_a").mkdir(parents=True)
    config = {"sorted_keys": [key], "representations": []}
    (tmp_path / "reft/config.json").write_text(json.dumps(config))
    settings = composed_run("method=reft").last.adapters[0]
    assert "names interventions" in refused(lambda: settings.start_files(tmp_path / "reft"))


@pytest.mark.parametrize("name", ["../up", "a/b", "/abs", "..", ".", "-x\ny", "a\0b"])
@pytest.mark.parametrize("sweep", [[], ["-m"]], ids=["run", "sweep"])
def test_a_sweeps_name_is_no_path(cli: Cli, tmp_path: Path, name: str, sweep: list[str]) -> None:
    before = set(tmp_path.rglob("*"))
    status, _, err = cli(*sweep, f"sweep='{name}'", "epochs=1")
    assert status == 1
    assert err.startswith("Error: ")
    assert set(tmp_path.rglob("*")) == before


def test_ids_and_names_with_paths_name_no_file(cli: Cli, small: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "task"
    folder.mkdir()
    for first, split in enumerate(("train", "validation")):
        rows = [
            {"passage": f"w{n}", "question": f"w{n + 1}", "answer": n % 2 == 0,
             "idx": f"../../{split}{n}\0\n-rf /"}
            for n in range(30 * first, 30 * (first + 1))
        ]  # fmt: skip
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    asked = [*small, f"data.path={folder}", "data.id_column=idx", "method=lora", "epochs=1"]
    asked += ["data.name='../../d'", "model.name='../../m'", "report.base_model=false"]
    status, _, err = cli(*asked, "report.forgetting=off", "sweep=s")
    assert status == 0, err
    for path in tmp_path.rglob("*"):
        assert (
            path.is_relative_to(tmp_path / "outputs")
            or path.is_relative_to(folder)
            or (path in (tmp_path / "outputs", folder))
        )
        assert "rf" not in path.name


def test_a_pattern_of_a_saved_adapter_is_not_matched_forever(
    small_model: Path, tmp_path: Path, soon: None
) -> None:
    from heft_pipeline.adapters.adapter import adapter_class
    from heft_pipeline.models.base_model import load_base

    settings = composed_run("method=lora").last.adapters[0]
    base = load_base(of(small_model), torch.device("cpu"))
    adapter = adapter_class(settings).new(settings, base, [])
    adapter.save(tmp_path / "lora")
    adapter.remove()
    loaded = adapter_class(settings).load(settings, base, [], tmp_path / "lora")
    loaded.remove()
    evil = r"((([a-z_.0-9]+)+)+)+!"
    for values in (
        {"target_modules": evil}, {"exclude_modules": evil}, {"rank_pattern": {evil: 4}},
        {"alpha_pattern": {evil: 4}}, {"layers_pattern": [evil], "layers_to_transform": [1]},
    ):  # fmt: skip
        kept = (tmp_path / "lora/adapter_config.json").read_text()
        change(tmp_path / "lora/adapter_config.json", **values)
        with pytest.raises(UserError, match="did not write"):
            adapter_class(settings).load(settings, base, [], tmp_path / "lora")
        (tmp_path / "lora/adapter_config.json").write_text(kept)


@pytest.mark.parametrize(
    "values",
    [
        {"target_modules": r"((([a-z_.0-9]+)+)+)+!"},
        {"base_model_name_or_path": "../../x\0\n", "target_modules": ["../../x", "-x\n"]},
        {"r": -1}, {"r": 10**9}, {"lora_alpha": 1e308, "r": "x"},
        {"peft_type": "EVIL"}, {"auto_mapping": {"base_model_class": "os", "parent_library": "os"}},
        {"rank_pattern": {r"((a+)+)+!": 3}}, {"eva_config": {"x": 1}},
    ],
    ids=lambda values: next(iter(values)),
)  # fmt: skip
def test_an_adapter_to_start_from_that_says_nonsense_is_refused(
    cli: Cli, small: list[str], tmp_path: Path, values: dict[str, Any], soon: None
) -> None:
    folder = tmp_path / "lora"
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config | values))
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, folder / "adapter_model.safetensors")
    status, _, err = cli(*small, "method=lora", f"lora.init_from={folder}")
    assert status == 1
    assert "not foreseen" not in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "header",
    [
        struct.pack("<Q", 2**60), struct.pack("<Q", 2**63 + 1), struct.pack("<Q", 200 * 2**20),
        struct.pack("<Q", len(DEEP)) + DEEP.encode(), struct.pack("<Q", 2) + b"[]", b"", b"\x01",
        struct.pack("<Q", 120)
        + b'{"x":{"dtype":"F32","shape":[1000000000000,1000000],"data_offsets":[0,4]}}'.ljust(120),
    ],
    ids=["2**60", "2**63", "200 MB", "deep", "list", "empty", "byte", "shape"],
)  # fmt: skip
def test_a_header_of_tensors_is_bounded(model: Path, header: bytes, soon: None) -> None:
    (model / "model.safetensors").write_bytes(header)
    refused(lambda: load_base(of(model), torch.device("cpu")))
    assert "cut off or broken" in refused(lambda: read_tensors(model / "model.safetensors"))


def test_a_header_of_200_mb_is_not_read(model: Path, soon: None) -> None:
    with (model / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", 200 * 2**20))
        file.truncate(201 * 2**20)
    refused(lambda: load_base(of(model), torch.device("cpu")))


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "tokenizer.json",
                                  "model.safetensors.index.json"])  # fmt: skip
@pytest.mark.parametrize("content", ["deep", "large", "cut off", "a list", "binary", "a number"])
def test_a_broken_configuration_is_refused(
    model: Path, name: str, content: str, soon: None
) -> None:
    if name.endswith("index.json"):
        (model / "model.safetensors").unlink()
    if content == "large":
        with (model / name).open("wb") as file:
            file.write(b'{"x": "')
            file.truncate(100 * 2**20)
    else:
        written = {
            "deep": '{"x":' + DEEP, "cut off": '{"x": [1, 2', "a list": "[]",
            "binary": "\ufffd\x00\x01", "a number": "1e999",
        }  # fmt: skip
        (model / name).write_text(written[content])
    refused(lambda: load_base(of(model), torch.device("cpu")))


@pytest.mark.parametrize(
    "key",
    ["hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size",
     "intermediate_size", "head_dim"],
)  # fmt: skip
@pytest.mark.parametrize("value", ["-1", "0", "1e999", "NaN", "1e3", "10000000", "1" + "0" * 30,
                                   '"x"', "[]", "null", "{}"])  # fmt: skip
def test_a_size_that_is_none_is_refused(model: Path, key: str, value: str, soon: None) -> None:
    text = json.dumps(json.loads((model / "config.json").read_text()) | {key: "HERE"})
    (model / "config.json").write_text(text.replace('"HERE"', value))

    def use() -> None:
        check_model(of(model), torch.device("cpu"))
        load_base(of(model), torch.device("cpu"))

    if value == "null" and key in ("num_key_value_heads", "head_dim"):
        return  # they have defaults
    refused(use)


def test_a_large_size_that_counts_no_parts_stays() -> None:
    from transformers import LlamaConfig

    from heft_pipeline.models.untrusted_config import refuse_harmful

    known = {"vocab_size_per_layer_input": 262_144, "layer_norm_window": 10**6, "block_size": 10**6}
    refuse_harmful("m", LlamaConfig(**known, num_hidden_layers=4096), False)
    for key in ("n_layer", "num_local_experts", "encoder_layers", "n_routed_experts"):
        with pytest.raises(UserError, match=f"{key}=5000"):
            refuse_harmful("m", LlamaConfig(**{key: 5000}), False)


def test_weights_that_no_file_holds_take_no_memory(model: Path, soon: None) -> None:
    """transformers would make up what is missing: here 60 GB."""
    change(model / "config.json", hidden_size=40_000, intermediate_size=40_000, head_dim=8)
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, model / "model.safetensors", metadata={"format": "pt"})
    assert "describes a model of" in refused(lambda: check_model(of(model), torch.device("cpu")))


def test_rows_that_are_nested_too_deep_are_refused(tmp_path: Path, soon: None) -> None:
    for text in ('{"x":' + DEEP, DEEP, '{"x": 1}\n{"x":' + DEEP):
        (tmp_path / "rows.jsonl").write_text(text)
        assert "nested too deep" in refused(lambda: read_json(tmp_path / "rows.jsonl"))


@pytest.mark.parametrize("ending", ["gz", "bz2", "xz"])
def test_a_file_that_unpacks_without_end_is_refused(
    tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from heft_pipeline.data import text_rows

    packed = {
        "gz": gzip.compress(b" " * 2**26),
        "bz2": bz2.compress(b" " * 2**26),
        "xz": lzma.compress(b" " * 2**26),
    }
    (tmp_path / f"rows.jsonl.{ending}").write_bytes(packed[ending])
    assert read_json(tmp_path / f"rows.jsonl.{ending}") == []
    monkeypatch.setattr(text_rows, "_MOST_UNPACKED", 2**24)
    found = refused(lambda: read_json(tmp_path / f"rows.jsonl.{ending}"))
    assert "becomes more than 16 MB" in found


@pytest.mark.parametrize("where", ["run", "stage"])
def test_a_sweep_from_a_stranger_names_no_folder_outside(tmp_path: Path, where: str) -> None:
    from heft_pipeline.report.records import read_runs
    from heft_pipeline.tracking.payload import planned_runs
    from tests.report.made_sweeps import make_sweep

    sweep = make_sweep(tmp_path, [("method=lora", 0.7)])
    plan = sweep.plan()
    (key,) = plan["runs"][0]["stages"]
    if where == "run":
        plan["runs"][0]["name"] = "../../../outside"
    else:
        plan["stages"]["../../outside"] = plan["stages"].pop(key)
        plan["runs"][0]["stages"] = ["../../outside"]
    (sweep.folder / "plan.json").write_text(json.dumps(plan))
    run = composed_run("method=lora", "seed=1")
    assert "no folder of a sweep" in refused(lambda: planned_runs(sweep))
    assert "no folder of a sweep" in refused(lambda: read_runs(sweep))
    assert "no folder of a sweep" in refused(lambda: sweep.named(Plan((run,))))


def test_links_of_a_model_are_followed_as_in_the_hubs_cache(model: Path, tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    for file in list(model.iterdir()):
        blob = tmp_path / "blobs" / file.name.replace(".", "")
        file.rename(blob)
        file.symlink_to(blob)
    before = {path: path.read_bytes() for path in (tmp_path / "blobs").iterdir()}
    base = load_base(of(model), torch.device("cpu"))
    assert base.hidden_size == 32
    assert before == {path: path.read_bytes() for path in (tmp_path / "blobs").iterdir()}


def test_a_copy_takes_nothing_from_outside_and_writes_nothing_there(tmp_path: Path) -> None:
    source, to, secret = tmp_path / "source", tmp_path / "to", tmp_path / "secret"
    source.mkdir()
    secret.write_text("secret")
    (source / "real").write_text("real")
    (source / "alias").symlink_to("real")
    to.mkdir()
    (to / "real").symlink_to(secret)
    copy_files(source, to)
    assert (to / "alias").read_text() == (to / "real").read_text() == "real"
    assert not (to / "real").is_symlink()
    assert secret.read_text() == "secret"
    (source / "adapter_model.safetensors").symlink_to(secret)
    assert "outside its folder" in refused(lambda: copy_files(source, tmp_path / "other"))
    assert not (tmp_path / "other").exists()


def test_an_export_takes_nothing_from_outside(cli: Cli, small: list[str], tmp_path: Path) -> None:
    asked = [*small, "method=lora", "epochs=1", "report.base_model=false", "report.forgetting=off"]
    status, _, err = cli(*asked, "sweep=s")
    assert status == 0, err
    (folder,) = (tmp_path / "outputs/stages").glob("*/adapter")
    found = find_adapter(folder.parent)
    (tmp_path / "secret").write_text("secret")
    (folder / "README.md").symlink_to(tmp_path / "secret")
    assert "outside its folder" in refused(lambda: export(found, tmp_path / "to"))
    (folder / "README.md").unlink()
    # What says how to load it is code that a reader runs.
    id = 'x")\nimport os; os.mkdir("ran")\n("'
    evil = dataclasses.replace(found.stage.model, id=id, name="m\n# title")
    stage = dataclasses.replace(found.stage, model=evil)
    (tmp_path / "to2").mkdir()
    with patch("heft_pipeline.use.export._write", return_value=["pass"]):
        export(dataclasses.replace(found, stage=stage), tmp_path / "to2")
    written = (tmp_path / "to2" / "LOAD.md").read_text()
    _, own, _, theirs, _ = written.split("```")
    for block, kinds in (
        (own, [ast.Import, ast.Assign]),
        (theirs, [ast.ImportFrom, ast.Assign, ast.Pass]),
    ):
        code = ast.parse(block.removeprefix("python\n"))
        assert [type(statement) for statement in code.body] == kinds
    assert "\n# title" not in written


def test_the_temporary_links_of_a_model_are_removed(model: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from heft_pipeline.models.base_model import load_tokenizer\n"
        "from heft_pipeline.models.settings import ModelSettings\n"
        "load_tokenizer(ModelSettings(id=sys.argv[1], revision=None, name='m'))"
    )
    (tmp_path / "tmp").mkdir()
    subprocess.run(
        [sys.executable, "-c", code, str(model)], check=True, capture_output=True,
        env=os.environ | {"TMPDIR": str(tmp_path / "tmp")},
    )  # fmt: skip
    assert not list((tmp_path / "tmp").glob("heft-model-*"))
    load_tokenizer(of(model))
