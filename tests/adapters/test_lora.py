"""LoRA's variants against plain PEFT."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from heft_pipeline.adapters.adapted import adapted
from heft_pipeline.data.batches import AnsweredPrompt, collate, epoch_batches
from heft_pipeline.errors import UserError
from heft_pipeline.plan.graph import Run
from heft_pipeline.stage.cached_inputs import cached_base, cached_task
from heft_pipeline.stage.preflight import preflight
from heft_pipeline.stage.run_stage import run_stage
from heft_pipeline.store.stage_folders import Store
from heft_pipeline.training.metrics import read_metrics

ComposeRun = Callable[..., Run]
DORA = ["method=lora", "lora.use_dora=true", "lora.dropout=0", "training.log_every_steps=1"]


def losses(store: Store, run: Run) -> list[float]:
    lines = read_metrics(store.folder(run.last.fingerprint) / "metrics.jsonl")
    return [line["loss"] for line in lines if line["event"] == "step"]


@pytest.mark.parametrize("option", ["use_dora", "use_rslora"])
def test_a_variant_trains_as_plain_peft_does(
    compose_run: ComposeRun, small: list[str], small_model: Path, store: Store, option: str
) -> None:
    from peft import LoraConfig, get_peft_model

    run = compose_run(*small, *DORA, "lora.use_dora=false", f"lora.{option}=true", "epochs=1",
                      "lora.batch_size=8", "training.lr_scheduler=constant",
                      "lora.warmup_ratio=0")  # fmt: skip
    run_stage(run.last, store)
    task = cached_task(run.last)
    plain = AutoModelForCausalLM.from_pretrained(small_model, dtype=torch.float32)
    torch.manual_seed(0)
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM",
                        **{option: True})  # fmt: skip
    model = get_peft_model(plain, config)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer, expected = torch.optim.AdamW(trained, lr=3e-3, weight_decay=0.0), []
    for batch in epoch_batches(task.train, 8, 0, 0):
        total = torch.zeros(())
        for example in (task.train[i] for i in batch):
            ids = torch.tensor([example.prompt + example.answer])
            labels = ids.clone()
            labels[:, : len(example.prompt)] = -100
            total = total + model(input_ids=ids, labels=labels).loss / len(batch)
        total.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        expected.append(total.item())
    assert losses(store, run) == pytest.approx(expected, rel=1e-3, abs=1e-4)
    count = sum(p.numel() for p in trained)
    assert (store.result(run.last.fingerprint) or {})["trainable_params"] == count


def test_dora_trains_where_a_weight_has_rows_of_zeros(
    compose_run: ComposeRun, small: list[str], small_model: Path, store: Store, tmp_path: Path
) -> None:
    """PEFT divides by each row's norm; the shipped model has such rows in half its heads."""
    import shutil

    shutil.copytree(small_model, tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(small_model)
    with torch.no_grad():
        model.model.layers[1].self_attn.q_proj.weight[:5] = 0
    model.save_pretrained(tmp_path / "model")
    run = compose_run(*small, *DORA, f"model.id={tmp_path / 'model'}", "epochs=2")
    run_stage(run.last, store)
    curve = losses(store, run)
    assert curve[-1] < curve[0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_reft_trains_on_a_dora_parent(
    compose_run: ComposeRun, small: list[str], store: Store, dtype: str
) -> None:
    run = compose_run(
        *small, "method=heft", "lora.use_dora=true", "epochs=1", f"model.dtype={dtype}"
    )
    for stage in run.stages:
        result = run_stage(stage, store).result
        assert 0 <= result["accuracy"] <= 1
    assert result["dtype"] == dtype
    names = (store.adapter(run.stages[0]) / "adapter_model.safetensors").read_bytes()[:20000]
    assert b"lora_magnitude_vector" in names


def test_an_adapter_of_the_embedding_is_trained(
    compose_run: ComposeRun, small: list[str], store: Store
) -> None:
    """PEFT names its matrices differently from those of a linear layer."""
    from safetensors.torch import load_file

    run = compose_run(
        *small, "method=lora", "lora.target_modules=[q_proj,embed_tokens]", "epochs=1"
    )
    run_stage(run.last, store)
    saved = load_file(store.adapter(run.last) / "adapter_model.safetensors")
    trained = {name: tensor for name, tensor in saved.items() if "lora_embedding_" in name}
    assert len(trained) == 2
    assert all(tensor.any() for tensor in trained.values())


def test_merging_an_adapter_of_a_tied_head_leaves_the_input_embedding_alone(
    compose_run: ComposeRun, small: list[str], small_model: Path, tmp_path: Path
) -> None:
    import json
    import shutil

    from safetensors.torch import load_file, save_file

    from heft_pipeline.models.base_model import load_base

    shutil.copytree(small_model, tmp_path / "tied")
    weights = load_file(small_model / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, tmp_path / "tied" / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tmp_path / "tied" / "config.json").read_text())
    (tmp_path / "tied" / "config.json").write_text(
        json.dumps(config | {"tie_word_embeddings": True})
    )
    asked = [f"model.id={tmp_path / 'tied'}", "lora.target_modules=[q_proj,lm_head]"]
    stage = compose_run(*small, "method=lora", *asked).last
    base = load_base(stage.model, torch.device("cpu"))
    embedding = base.model.get_input_embeddings().weight
    assert base.model.get_output_embeddings().weight is embedding, "the model is tied"
    before = embedding.clone()
    with adapted(base, []) as model:
        model.add(stage.adapters)
        for name, parameter in model.parameters().items():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        with type(model.trained[0]).merged(base.model):
            assert torch.equal(base.model.get_input_embeddings().weight, before)
            head = base.model.get_output_embeddings()
            assert not torch.equal(head.base_layer.weight, before)
    assert base.model.get_output_embeddings().weight is embedding


def test_doras_dropout_is_on_while_it_trains(
    compose_run: ComposeRun, small: list[str], store: Store
) -> None:
    curves = []
    for dropout in (0.0, 0.5):
        run = compose_run(*small, *DORA, f"lora.dropout={dropout}", "epochs=1")
        run_stage(run.last, store)
        curves.append(losses(store, run))
    # The update starts at 0, with or without dropout.
    assert curves[0][0] == pytest.approx(curves[1][0], abs=1e-5)
    assert max(abs(one - other) for one, other in zip(*curves, strict=True)) > 1e-4


def test_dora_starts_as_the_untouched_model_in_16_bits(
    compose_run: ComposeRun, small: list[str]
) -> None:
    stage = compose_run(*small, *DORA, "model.dtype=bfloat16").last
    base = cached_base(stage.model, torch.device("cpu"))
    batch = collate([AnsweredPrompt((1, 9, 10, 7), (3, 4))], base.pad_token_id)
    with adapted(base, []) as model, torch.no_grad():
        before = model.logits(batch)
        model.add(stage.adapters)
        difference = (model.logits(batch) - before).norm() / before.norm()
    assert difference < 0.01, "a norm of another kernel or precision shifts every layer's output"


def test_an_adapter_whose_start_does_not_fit_is_taken_off_again(
    compose_run: ComposeRun, small: list[str], store: Store
) -> None:
    """The base model is kept for the next stage of the process."""
    run = compose_run(*small, "method=lora", "epochs=1")
    run_stage(run.last, store)
    start = f"lora.init_from={store.adapter(run.last)}"
    misfit = compose_run(*small, "method=lora", "lora.rank=4", start).last
    base = cached_base(misfit.model, torch.device("cpu"))
    with pytest.raises(UserError, match=r"rank|init_from"), adapted(base, []) as model:
        model.add(misfit.adapters)
    assert not [name for name, _ in base.model.named_modules() if "lora_" in name]


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (["method=heft", "lora.use_dora=true"], "no plain sum"),
        (["method.stages=[red,lora,reft]"], "edits its modules"),
    ],
)
def test_what_is_no_sum_of_weights_is_not_merged(
    compose_run: ComposeRun, small: list[str], overrides: list[str], why: str
) -> None:
    run = compose_run(*small, *overrides, "reft.merge_parent=true")
    with pytest.raises(UserError, match=rf"reft\.merge_parent=true: .*{why}"):
        preflight(run.stages)


def test_each_chain_is_asked_whether_it_can_be_merged(
    compose_run: ComposeRun, small: list[str]
) -> None:
    """Two stages with equal adapters can have different parents."""
    asked = [*small, "method=heft", "reft.merge_parent=true"]
    plain, dora = compose_run(*asked), compose_run(*asked, "lora.use_dora=true")
    assert plain.last.adapters == dora.last.adapters
    with pytest.raises(UserError, match="no plain sum"):
        preflight([plain.last, dora.last])


def test_dora_is_refused_where_a_parent_edits_the_output_it_computes_itself(
    compose_run: ComposeRun, small: list[str], store: Store
) -> None:
    run = compose_run(*small, "method.stages=[red,lora]", "lora.use_dora=true", "epochs=1")
    run_stage(run.stages[0], store)
    with pytest.raises(UserError, match=r"lora\.use_dora=true: a parent stage edits"):
        run_stage(run.last, store)


_SAVED = """
import hashlib, sys
from pathlib import Path
from heft_pipeline.adapters.adapted import adapted
from heft_pipeline.stage.cached_inputs import cached_base
from heft_pipeline.devices.resolve import resolve_device
from tests.conftest import composed_run
import torch
stage = composed_run(*sys.argv[2:]).last
with adapted(cached_base(stage.model, resolve_device("cpu")), []) as model:
    torch.manual_seed(0)
    model.add(stage.adapters)
    (lora,) = model.trained
    lora.peft.peft_config["stage0"].exclude_modules = {f"none{i}" for i in range(20)}
    model.save(Path(sys.argv[1]))
"""


def test_an_adapters_files_are_the_same_bytes_in_every_process(
    small: list[str], tmp_path: Path
) -> None:
    written = []
    for seed in ("1", "2", "3"):
        folder = tmp_path / seed
        asked = ["lora.target_modules=[q_proj,k_proj,v_proj,o_proj,up_proj,down_proj]"]
        command = [sys.executable, "-c", _SAVED, str(folder), *small, "method=lora", *asked]
        subprocess.run(
            command, env=os.environ | {"PYTHONHASHSEED": seed}, check=True, capture_output=True
        )
        written.append({file.name: file.read_bytes() for file in sorted(folder.iterdir())})
    assert {"adapter_config.json", "adapter_model.safetensors"} <= set(written[0])
    assert written[0] == written[1] == written[2]
    assert len(json.loads(written[0]["adapter_config.json"])["exclude_modules"]) == 20
