"""Loading a model: nothing is trusted unseen."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from heft_pipeline.errors import UserError
from heft_pipeline.models.base_model import load_base
from heft_pipeline.plan.graph import Run
from heft_pipeline.stage.preflight import preflight

ComposeRun = Callable[..., Run]
Tensors = dict[str, torch.Tensor]


@pytest.fixture
def edited(small_model: Path, tmp_path: Path) -> Callable[..., Path]:
    """Makes a copy of the small model with other weights, configuration or files."""

    def made(change: Callable[[Tensors], Tensors] = dict, **config: object) -> Path:
        folder = tmp_path / "edited"
        shutil.copytree(small_model, folder)
        weights = change(load_file(folder / "model.safetensors"))
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        written = json.loads((folder / "config.json").read_text()) | config
        (folder / "config.json").write_text(json.dumps(written))
        return folder

    return made


def load(compose_run: ComposeRun, small: list[str], folder: Path) -> None:
    load_base(compose_run(*small, f"model.id={folder}").last.model, torch.device("cpu"))


def with_nan(weights: Tensors) -> Tensors:
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")
    return weights


@pytest.mark.parametrize(
    ("change", "config", "message"),
    [
        (
            lambda w: {f"_orig_mod.{k}": v for k, v in w.items()},
            {},
            r"lacks \d+ of the model's weights.*_orig_mod\.",
        ),
        (
            lambda w: {k: v for k, v in w.items() if "layers.1." not in k},
            {},
            r"lacks 9 of the model's weights, e\.g\. model\.layers\.1\..*download or save",
        ),
        (dict, {"num_hidden_layers": 2}, r"layers that its config\.json does not count"),
        (dict, {"intermediate_size": 64}, r"other shapes than its config\.json says"),
        (with_nan, {}, r"1 numbers of model\.layers\.1\.mlp\.up_proj\.weight are NaN"),
    ],
)
def test_a_model_that_is_not_its_checkpoint_is_refused(
    compose_run: ComposeRun,
    small: list[str],
    edited: Callable[..., Path],
    change: Callable[[Tensors], Tensors],
    config: dict[str, object],
    message: str,
) -> None:
    with pytest.raises(UserError, match=message):
        load(compose_run, small, edited(change, **config))


def test_an_adapter_left_in_the_models_folder_is_refused(
    compose_run: ComposeRun, small: list[str], edited: Callable[..., Path]
) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = edited()
    model = AutoModelForCausalLM.from_pretrained(folder)
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(model, config).save_pretrained(folder)
    with pytest.raises(UserError, match=r"an adapter \(adapter_config\.json\) beside its weights"):
        load(compose_run, small, folder)


def test_a_git_lfs_pointer_is_named(
    compose_run: ComposeRun, small: list[str], edited: Callable[..., Path]
) -> None:
    folder = edited()
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    (folder / "model.safetensors").write_text(pointer)
    with pytest.raises(UserError, match=r"Git LFS pointer.*git lfs pull"):
        load(compose_run, small, folder)


def add_token(folder: Path, **token: Any) -> None:
    """Add a token to a model folder's tokenizer."""
    written = json.loads((folder / "tokenizer.json").read_text())
    plain = {"lstrip": False, "rstrip": False, "normalized": False}
    written["added_tokens"].append(token | plain)
    (folder / "tokenizer.json").write_text(json.dumps(written))


def test_padding_uses_a_token_that_the_model_has(
    compose_run: ComposeRun, small: list[str], edited: Callable[..., Path]
) -> None:
    folder = edited()
    add_token(folder, id=500, content="<pad>", single_word=False, special=True)
    config = json.loads((folder / "tokenizer_config.json").read_text()) | {"pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    stage = compose_run(*small, f"model.id={folder}").last
    base = load_base(stage.model, torch.device("cpu"))
    assert base.tokenizer.pad_token_id >= base.model.config.vocab_size
    assert base.pad_token_id < base.model.config.vocab_size


def test_a_word_beyond_the_embedding_is_refused_before_training(
    compose_run: ComposeRun, small: list[str], edited: Callable[..., Path]
) -> None:
    folder = edited()
    add_token(folder, id=68, content="Zebra", single_word=True, special=False)
    prompt = "data.prompt='{passage} Zebra Question: {question} Answer:'"
    with pytest.raises(UserError, match=r"token 68 of row .* embeddings for tokens 0 to 67 only"):
        preflight([compose_run(*small, f"model.id={folder}", prompt).last])


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("ByT5Tokenizer", r"does not read tokenizer\.json, .*; move tokenizer\.json out"),
        ("CTRLTokenizer", r"has no tokenizer that transformers can read"),
    ],
)
def test_a_tokenizer_that_ignores_tokenizer_json_is_refused(
    compose_run: ComposeRun, small: list[str], edited: Callable[..., Path], kind: str, said: str
) -> None:
    """Its own files are not in the fingerprint if there is a tokenizer.json."""
    folder = edited()
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind}))
    with pytest.raises(UserError, match=rf"model\.id={folder}:? .*{said}"):
        load(compose_run, small, folder)


def test_a_model_says_where_it_is_from_and_not_which_links_it_was_read_by(
    compose_run: ComposeRun, small: list[str], edited: Callable[..., Path]
) -> None:
    folder = edited()
    (folder / "generation_config.json").write_text('{"repetition_penalty": 3.0}')
    base = load_base(compose_run(*small, f"model.id={folder}").last.model, torch.device("cpu"))
    names = {base.model.name_or_path, base.model.config.name_or_path, base.tokenizer.name_or_path}
    assert names == {str(folder)}
    assert base.model.generation_config.to_diff_dict().keys() <= {"transformers_version"}
