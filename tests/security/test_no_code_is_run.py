"""Nothing that a folder holds is run: no pickle, no loading script, and no model's own code.

submitit's job files are pickles, written and read by the user's own jobs; they are no input.
"""

import ast
import contextlib
import dataclasses
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from heft_pipeline.adapters.reft.pyreft_folder import check_start
from heft_pipeline.data.rows import read_eval
from heft_pipeline.data.settings import DataSettings
from heft_pipeline.errors import UserError
from heft_pipeline.models.base_model import check_model, load_base, load_config, load_tokenizer
from heft_pipeline.models.settings import ModelSettings
from tests.conftest import composed_run

ROOT = Path(__file__).parents[2]
Cli = Callable[..., tuple[int, str, str]]


class Evil:
    """Creates a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "ran"


@pytest.fixture
def model(small_model: Path, tmp_path: Path) -> Path:
    """A copy of the small model, to be made hostile."""
    return Path(shutil.copytree(small_model, tmp_path / "model"))


def of(folder: Path, **values: Any) -> ModelSettings:
    return ModelSettings(id=str(folder), revision=None, name="m", **values)


def pyreft_folder(folder: Path, saved: Any, layers: int = 3) -> Path:
    """A folder as pyreft's, with something as the content of each intervention's file."""
    folder.mkdir()
    keys = [f"layer_{layer}_comp_block_output_unit_pos_nunit_1#0" for layer in range(layers)]
    places = [[layer, "block_output", "pos", 1, 8] for layer in range(layers)]
    (folder / "config.json").write_text(
        json.dumps({"sorted_keys": keys, "representations": places})
    )
    for key in keys:
        if isinstance(saved, bytes):
            (folder / f"intkey_{key}.bin").write_bytes(saved)
        else:
            torch.save(saved, folder / f"intkey_{key}.bin")
    return folder


def test_the_hostile_file_would_run_its_code(marker: Path, tmp_path: Path) -> None:
    torch.save({"weight": Evil(marker)}, tmp_path / "x.bin")
    torch.load(tmp_path / "x.bin", weights_only=False)
    assert marker.is_dir()


@pytest.mark.parametrize("kind", ["torch", "plain", "nested", "cut off"])
def test_a_pyreft_folder_with_a_hostile_pickle_is_refused(
    tmp_path: Path, marker: Path, kind: str
) -> None:
    saved: Any = {
        "torch": {"weight": Evil(marker)},
        "plain": pickle.dumps(Evil(marker)),
        "nested": {"rotate_layer": torch.zeros(2), "learned_source": [Evil(marker)]},
        "cut off": b"PK\x03\x04",
    }[kind]
    folder = pyreft_folder(tmp_path / "reft", saved)
    settings = composed_run("method=reft", f"reft.init_from={folder}").last.adapters[0]
    with pytest.raises(UserError, match="no file of plain tensors") as refused:
        check_start(settings, 8, 3)  # type: ignore[arg-type]
    assert "\n" not in str(refused.value)
    assert not marker.exists()


def test_the_command_line_says_so_in_one_message(
    cli: Cli, small: list[str], tmp_path: Path, marker: Path
) -> None:
    folder = pyreft_folder(tmp_path / "reft", {"weight": Evil(marker)})
    status, _, err = cli(*small, "method=reft", f"reft.init_from={folder}")
    assert status == 1
    assert err.startswith("Error: ") and err.count("\n") == 1
    assert "no file of plain tensors" in err
    assert not marker.exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors", "adapter_model.bin"])
def test_a_model_of_pickles_is_refused(model: Path, marker: Path, name: str) -> None:
    (model / "model.safetensors").unlink()
    torch.save({"weight": Evil(marker)}, model / name)
    with pytest.raises(UserError, match=r"has no model.safetensors|cannot be loaded"):
        load_base(of(model), torch.device("cpu"))
    assert not marker.exists()


def test_a_lora_folder_of_pickles_is_refused(
    cli: Cli, small: list[str], tmp_path: Path, marker: Path
) -> None:
    folder = tmp_path / "lora"
    folder.mkdir()
    torch.save({"weight": Evil(marker)}, folder / "adapter_model.bin")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 8}')
    status, _, err = cli(*small, "method=lora", f"lora.init_from={folder}")
    assert status == 1
    assert "adapter_model.safetensors" in err
    shutil.copy(folder / "adapter_model.bin", folder / "adapter_model.safetensors")
    status, _, err = cli(*small, "method=lora", f"lora.init_from={folder}")
    assert status == 1
    assert err.count("\n") == 1
    assert not marker.exists()


def test_data_of_pickles_is_refused(tmp_path: Path, marker: Path) -> None:
    evil = pickle.dumps(Evil(marker))
    for ending in ("jsonl", "csv", "parquet", "arrow"):
        folder = tmp_path / ending
        folder.mkdir()
        (folder / f"validation.{ending}").write_bytes(evil)
        with pytest.raises(UserError):
            read_eval(_task(folder))
    for ending in ("npy", "npz", "pkl", "pt"):
        folder = tmp_path / ending
        folder.mkdir()
        (folder / f"validation.{ending}").write_bytes(evil)
        with pytest.raises(UserError, match=r"formats: \.jsonl"):
            read_eval(_task(folder))
    assert not marker.exists()


def test_an_arrow_file_with_a_pickled_type_runs_nothing(tmp_path: Path, marker: Path) -> None:
    import pyarrow as pa

    metadata = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": pickle.dumps(Evil(marker)),
    }
    schema = pa.schema([pa.field("passage", pa.string(), metadata=metadata)])
    (tmp_path / "data").mkdir()
    sink = pa.OSFile(str(tmp_path / "data/validation.arrow"), "wb")
    with sink, pa.ipc.new_stream(sink, schema) as writer:
        writer.write_batch(pa.record_batch([pa.array(["x"])], schema=schema))
    with contextlib.suppress(UserError):
        read_eval(_task(tmp_path / "data"))
    assert not marker.exists()


def test_a_checkpoint_and_kept_files_are_no_pickles(
    cli: Cli, small: list[str], tmp_path: Path
) -> None:
    status, _, err = cli(*small, "method=heft", "epochs=1", "report.base_model=false")
    assert status == 0, err
    kept = [path for path in (tmp_path / "outputs").rglob("*") if path.is_file()]
    assert len(kept) > 20
    for path in kept:
        start = path.read_bytes()[:2]
        assert start[:1] != b"\x80" and path.suffix not in (".pkl", ".pt", ".bin", ".npy", ".npz")


def test_data_with_a_loading_script_never_runs_it(tmp_path: Path, marker: Path) -> None:
    folder = tmp_path / "task"
    folder.mkdir()
    code = f"import os\nos.mkdir({str(marker)!r})\n"
    for name in ("task.py", "validation.py", "__init__.py", "dataset.py"):
        (folder / name).write_text(code)
    with pytest.raises(UserError):
        read_eval(_task(folder))
    row = {"passage": "a", "question": "b", "answer": True}
    (folder / "validation.jsonl").write_text(json.dumps(row) + "\n")
    assert [found for _, found in read_eval(_task(folder))] == [row]
    assert not marker.exists()


def test_a_repository_with_a_loading_script_is_refused(tmp_path: Path, marker: Path) -> None:
    folder = tmp_path / "task"
    folder.mkdir()
    (folder / "task.py").write_text(f"import os\nos.mkdir({str(marker)!r})\n")
    data = dataclasses.replace(_task(folder), revision="main")
    with pytest.raises(UserError, match="no data set's code is run"):
        read_eval(data)
    assert not marker.exists()


def test_the_installed_datasets_has_no_loading_scripts() -> None:
    """Hub repositories: since datasets 4, which is required, a script is an error."""
    from importlib.metadata import requires, version

    assert int(version("datasets").split(".")[0]) >= 4
    assert any(one.startswith("datasets>=4") for one in requires("heft-pipeline") or [])


def _own_code(model: Path, marker: Path) -> None:
    """Make a model folder one with code of its own, under a name that transformers lacks."""
    code = f"""import os
if not os.path.exists({str(marker)!r}): os.mkdir({str(marker)!r})
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class EvilConfig(LlamaConfig):
    model_type = "evil"
class EvilModel(LlamaForCausalLM):
    config_class = EvilConfig
class EvilTokenizer(PreTrainedTokenizerFast): pass
"""
    (model / "evil.py").write_text(code)
    config = json.loads((model / "config.json").read_text())
    config["model_type"] = "evil"
    config["architectures"] = ["EvilModel"]
    config["auto_map"] = {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.EvilModel"}
    (model / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("load", [load_config, load_tokenizer, check_model, load_base])
def test_a_models_own_code_runs_only_where_it_is_allowed(
    model: Path, marker: Path, load: Callable[..., Any]
) -> None:
    _own_code(model, marker)
    given = (torch.device("cpu"),) if load in (check_model, load_base) else ()
    if load is not load_tokenizer:  # which needs no configuration where it says its own class
        with pytest.raises(UserError, match=r"model\.trust_remote_code=true"):
            load(of(model), *given)
    assert not marker.exists()
    load(of(model, trust_remote_code=True), *given)
    assert marker.exists() or load is load_tokenizer


def test_own_code_beside_a_known_architecture_is_not_run(model: Path, marker: Path) -> None:
    _own_code(model, marker)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    load_base(of(model), torch.device("cpu"))
    assert not marker.exists()


def test_a_tokenizers_own_code_runs_only_where_it_is_allowed(model: Path, marker: Path) -> None:
    _own_code(model, marker)
    path = model / "tokenizer_config.json"
    config = json.loads(path.read_text()) | {
        "tokenizer_class": "EvilTokenizer",
        "auto_map": {"AutoTokenizer": [None, "evil.EvilTokenizer"]},
    }
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"model\.trust_remote_code=true"):
        load_tokenizer(of(model))
    assert not marker.exists()
    load_tokenizer(of(model, trust_remote_code=True))
    assert marker.exists()


def test_code_of_the_hub_that_a_config_names_is_refused(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    for key in ("attn_implementation", "_attn_implementation"):
        (model / "config.json").write_text(json.dumps(config | {key: "evil/kernel"}))
        try:
            load_config(of(model))
        except UserError as refused:
            assert "evil/kernel" in str(refused)
        else:
            assert load_config(of(model))._attn_implementation is None


#: What runs code of a file, or reads a pickle: the call, and what makes it harmless.
_CALLS = {
    "eval": None, "exec": None, "__import__": None, "compile": None,
    "pickle.load": None, "pickle.loads": None, "pickle.Unpickler": None,
    "dill.load": None, "joblib.load": None, "marshal.loads": None, "shelve.open": None,
    "pd.read_pickle": None, "pandas.read_pickle": None, "os.system": None, "os.popen": None,
    "yaml.load": None, "yaml.unsafe_load": None, "yaml.full_load": None,
    "torch.load": "weights_only", "np.load": "allow_pickle", "numpy.load": "allow_pickle",
}  # fmt: skip


def test_no_module_calls_what_would_run_a_files_code() -> None:
    found = []
    for folder in ("heft_pipeline", "launch", "hydra_plugins", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if not isinstance(node, ast.Call):
                    continue
                name = ast.unparse(node.func)
                given = {k.arg: ast.unparse(k.value) for k in node.keywords}
                safe = {"weights_only": "True", "allow_pickle": "False"}
                if name in _CALLS:
                    needed = _CALLS[name]
                    # Without it, numpy refuses pickles.
                    default = "False" if needed == "allow_pickle" else ""
                    if needed is None or given.get(needed, default) != safe[needed]:
                        found.append(f"{path.relative_to(ROOT)}:{node.lineno} {name}")
                if given.get("shell", "False") != "False":
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno} shell")
                if given.get("allow_pickle", "False") != "False":
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno} allow_pickle")
    assert not found


def _task(folder: Path) -> DataSettings:
    run = composed_run("data=boolq", f"data.path={_prepared(folder)}")
    return dataclasses.replace(run.last.data, location=str(folder))


def _prepared(folder: Path) -> Path:
    """A whole task beside the folder, for a config; its rows are not those that are read."""
    whole = folder.parent / "whole"
    whole.mkdir(exist_ok=True)
    for split in ("train", "validation"):
        row = json.dumps({"passage": "a", "question": "b", "answer": True})
        (whole / f"{split}.jsonl").write_text(row + "\n")
    return whole


def test_numpy_refuses_pickles_by_itself(tmp_path: Path, marker: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([Evil(marker)], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle"):
        np.load(tmp_path / "x.npy")
    assert not marker.exists()
