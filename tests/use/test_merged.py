"""A merged model is read by transformers alone and answers as the adapter did."""

import json
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import heft_pipeline
from heft_pipeline.store.stage_folders import Store
from heft_pipeline.use.export import main as export
from tests.conftest import composed_run
from tests.use.conftest import trained

PROMPTS = ["w1 w2 Question: w1 Answer:", "w3 w4 w5 w6 w7 w8 Question: w9 Answer:"]


def logits(model: torch.nn.Module, tokenizer: object, prompt: str) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = model(torch.tensor([tokenizer(prompt)["input_ids"]])).logits  # type: ignore[operator]
    return out


@pytest.mark.parametrize(
    "asked",
    [
        [],
        ["lora.use_dora=true"],
        ["lora.use_rslora=true", "lora.rank=4"],
        ["lora.target_modules=[q_proj,lm_head,embed_tokens]"],
        ["lora.target_modules=all-linear"],
    ],
)
def test_transformers_reads_it_as_it_is(
    asked: list[str], small: list[str], store: Store, tmp_path: Path
) -> None:
    stage = trained(composed_run(*small, "method=lora", "epochs=2", *asked), store)
    folder, to = store.folder(stage.fingerprint), tmp_path / "to"
    assert export([str(folder), "--to", str(to), "--merge"]) == 0
    plain = AutoModelForCausalLM.from_pretrained(to)
    tokenizer = AutoTokenizer.from_pretrained(to)
    base = AutoModelForCausalLM.from_pretrained(stage.model.id)
    with heft_pipeline.load(folder) as model:
        for prompt in PROMPTS:
            expected = logits(model.model, model.tokenizer, prompt)
            torch.testing.assert_close(
                logits(plain, tokenizer, prompt), expected, rtol=1e-4, atol=1e-4
            )
            assert not torch.allclose(logits(base, tokenizer, prompt), expected, atol=1e-2)
    assert not list(to.glob("adapter*")) and not (to / "edits").exists()
    assert "is in the weights" in (to / "LOAD.md").read_text()


def test_the_edits_stay_beside_it_with_the_reason(
    heft_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "to"
    assert export([str(heft_folder), "--to", str(to), "--merge"]) == 0
    assert "the edits, which no weights can make" in capsys.readouterr().out
    said = (to / "LOAD.md").read_text()
    assert "at positions of the prompt" in said and "only lora" in said
    with heft_pipeline.load(heft_folder) as model:
        expected = model.score(PROMPTS, ["yes", "no", "maybe"])
    with heft_pipeline.load(to / "edits", model=str(to)) as model:
        found = model.score(PROMPTS, ["yes", "no", "maybe"])
    np.testing.assert_allclose(found, expected, atol=1e-4)
    with heft_pipeline.load(to / "edits") as model:  # it knows the folder that it belongs to
        np.testing.assert_allclose(model.score(PROMPTS, ["yes", "no", "maybe"]), found)
    moved = to.rename(tmp_path / "moved")
    with pytest.raises(heft_pipeline.UserError, match="is not here"):
        heft_pipeline.load(moved / "edits")
    capsys.readouterr()
    heft_pipeline.load(moved / "edits", model=str(moved)).close()
    assert capsys.readouterr().err == ""


def test_weights_above_edits_of_modules_are_not_merged(
    small: list[str], store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = trained(composed_run(*small, "method.stages=[red,lora]", "epochs=1"), store)
    words = [str(store.folder(stage.fingerprint)), "--to", str(tmp_path / "to"), "--merge"]
    assert export(words) == 1
    assert "what LoRA adds there was not edited" in capsys.readouterr().err


@pytest.mark.parametrize(
    "asked",
    [
        ["lora.target_modules=[lm_head]"],
        ["lora.target_modules=[lm_head]", "lora.use_dora=true"],
        ["lora.target_modules=[embed_tokens,q_proj]"],
    ],
)
def test_tied_embeddings_are_told_apart(
    asked: list[str], small: list[str], small_model: Path, store: Store, tmp_path: Path
) -> None:
    tied = tmp_path / "tied"
    model = AutoModelForCausalLM.from_pretrained(small_model)
    model.config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(tied)
    AutoTokenizer.from_pretrained(small_model).save_pretrained(tied)
    asked = [*small, f"model.id={tied}", "method=lora", "epochs=1", *asked]
    stage = trained(composed_run(*asked), store)
    to, folder = tmp_path / "to", store.folder(stage.fingerprint)
    assert export([str(folder), "--to", str(to), "--merge"]) == 0
    plain, tokenizer = AutoModelForCausalLM.from_pretrained(to), AutoTokenizer.from_pretrained(to)
    with heft_pipeline.load(folder) as loaded:
        for prompt in PROMPTS:
            expected = logits(loaded.model, loaded.tokenizer, prompt)
            torch.testing.assert_close(
                logits(plain, tokenizer, prompt), expected, rtol=1e-4, atol=1e-4
            )


def test_bfloat16_weights_stay_bfloat16(
    small: list[str], small_model: Path, store: Store, tmp_path: Path
) -> None:
    half = tmp_path / "half"
    AutoModelForCausalLM.from_pretrained(small_model).bfloat16().save_pretrained(half)
    AutoTokenizer.from_pretrained(small_model).save_pretrained(half)
    stage = trained(composed_run(*small, f"model.id={half}", "method=lora", "epochs=1"), store)
    to = tmp_path / "to"
    assert export([str(store.folder(stage.fingerprint)), "--to", str(to), "--merge"]) == 0
    assert AutoModelForCausalLM.from_pretrained(to, dtype="auto").dtype == torch.bfloat16


def test_edits_alone_and_a_folder_that_is_not_new_are_refused(
    small: list[str], store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = trained(composed_run(*small, "method=reft", "epochs=1"), store)
    folder = str(store.folder(stage.fingerprint))
    assert export([folder, "--to", str(tmp_path / "to"), "--merge"]) == 1
    assert "no adapter of weights to merge" in capsys.readouterr().err
    assert not (tmp_path / "to").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").write_text("mine")
    for more in ([], ["--merge"]):
        assert export([folder, "--to", str(tmp_path / "full"), *more]) == 1
        assert "is not empty" in capsys.readouterr().err


def test_a_changed_base_is_said(
    heft_folder: Path, small_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    model = AutoModelForCausalLM.from_pretrained(small_model)
    model.lm_head.weight.data.mul_(2)
    model.save_pretrained(other)
    AutoTokenizer.from_pretrained(small_model).save_pretrained(other)
    heft_pipeline.load(heft_folder, model=str(other)).close()
    assert "is not the model that" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: data.pop("data"), "does not hold the settings of a stage"),
        (lambda data: data["adapters"][0].update(rank=-1), "rank=-1"),
        (lambda data: data["adapters"][0].update(kind="evil"), "kind evil"),
        (lambda data: data["model"].update(trust_remote_code=True), "runs code of its own"),
        (lambda data: data["model"].update(id="/nowhere", content="sha256:0"), "is not here"),
        (lambda data: data.update(version="0"), "store version 0"),
        (lambda data: data.update(adapters=7), "does not hold the settings of a stage"),
    ],
)
def test_what_a_stranger_may_have_written_is_refused(
    change: object, said: str, heft_folder: Path, tmp_path: Path
) -> None:
    to = tmp_path / "to"
    assert export([str(heft_folder), "--to", str(to)]) == 0
    data = json.loads((to / "stage.json").read_text())
    change(data)  # type: ignore[operator]
    if "model" in data and data["parent"]:
        data["parent"]["model"] = data["model"]
    (to / "stage.json").write_text(json.dumps(data))
    with pytest.raises(heft_pipeline.errors.UserError, match=said):
        heft_pipeline.load(to)


def test_weights_that_do_not_compute_the_same_are_not_left_behind(
    heft_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with patch("heft_pipeline.adapters.adapted.AdaptedModel.write_into_weights"):  # does nothing
        assert export([str(heft_folder), "--to", str(tmp_path / "to"), "--merge"]) == 1
    assert "export it without --merge" in capsys.readouterr().err
    assert not (tmp_path / "to").exists()
