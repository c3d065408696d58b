"""Stages in other people's formats: plain PEFT and pyreft read what is written, and back."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM

from heft_pipeline.adapters.reft.positions import prompt_positions
from heft_pipeline.data.batches import AnsweredPrompt, collate
from heft_pipeline.data.prompts import Task, load_task
from heft_pipeline.errors import UserError
from heft_pipeline.models.base_model import load_tokenizer
from heft_pipeline.plan.graph import Run
from heft_pipeline.plan.stage_spec import StageSpec
from heft_pipeline.stage.run_stage import run_stage
from heft_pipeline.store.stage_folders import Store
from heft_pipeline.use.export import main as export_main

ComposeRun = Callable[..., Run]


def trained(run: Run, store: Store) -> StageSpec:
    for stage in run.stages:
        run_stage(stage, store)
    return run.last


def predictions(store: Store, stage: StageSpec) -> pd.DataFrame:
    return pd.read_parquet(store.folder(stage.fingerprint) / "predictions.parquet")


def log_probabilities(
    logits_of: Callable[[dict[str, torch.Tensor], list[list[int]]], torch.Tensor],
    task: Task,
    positions: str | None,
) -> torch.Tensor:
    """[N, C], one prompt at a time: no padding, no shortcuts."""
    rows = []
    for example in task.eval:
        batch = collate([AnsweredPrompt(example.prompt, (0,))], 0)
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        columns = prompt_positions(batch, positions, "both").tolist() if positions else []
        with torch.no_grad():
            logits = logits_of(inputs, columns)[0, -1]
        rows.append(logits.log_softmax(-1)[[choice[0] for choice in task.eval[0].choices]])
    return torch.stack(rows)


def assert_same(table: pd.DataFrame, expected: torch.Tensor) -> None:
    columns = [c for c in table.columns if c.startswith("logprob_")]
    stored = torch.tensor(table[columns].to_numpy())
    torch.testing.assert_close(stored, expected, rtol=1e-4, atol=1e-4)
    labels = [c.removeprefix("logprob_") for c in columns]
    assert [labels[i] for i in expected.argmax(dim=1)] == table.prediction.tolist()


def test_a_lora_stage_loads_in_plain_peft(
    compose_run: ComposeRun, small: list[str], small_model: Path, store: Store
) -> None:
    from peft import PeftModel

    stage = trained(compose_run(*small, "method=lora", "epochs=2"), store)
    base = AutoModelForCausalLM.from_pretrained(small_model, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, store.adapter(stage)).eval()
    task = load_task(stage.data, load_tokenizer(stage.model), 0)
    expected = log_probabilities(lambda inputs, _: model(**inputs).logits, task, None)
    assert_same(predictions(store, stage), expected)


@pytest.mark.parametrize(
    ("method", "intervention"),
    [
        *itertools.product(["reft", "heft"], ["loreft", "consreft", "lobireft", "direft"]),
        # pyvene takes every hook off the model, and so a parent's edits, after each call.
        ("[red,reft]", "loreft"),
    ],
)
def test_an_exported_fine_stage_loads_in_pyreft(
    compose_run: ComposeRun,
    small: list[str],
    store: Store,
    tmp_path: Path,
    intervention: str,
    method: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = [f"reft.intervention={intervention}", "reft.positions=f2+l3", "red.learning_rate=0.1"]
    which = f"method.stages={method}" if "[" in method else f"method={method}"
    stage = trained(compose_run(*small, which, *asked, "epochs=2"), store)
    to = tmp_path / "exported"
    assert export_main([str(store.folder(stage.fingerprint)), "--to", str(to)]) == 0
    # The lines that LOAD.md tells a person to run, run from that folder.
    code = (to / "LOAD.md").read_text().split("```python\n")[-1].split("```")[0]
    monkeypatch.chdir(to)
    names: dict[str, object] = {}
    exec(code, names)
    reft = names["reft"]

    def logits(inputs: dict[str, torch.Tensor], columns: list[list[int]]) -> torch.Tensor:
        where = [columns] * len(reft.interventions)  # type: ignore[attr-defined]
        _, output = reft(inputs, unit_locations={"sources->base": (None, where)})  # type: ignore[operator]
        result: torch.Tensor = output.logits
        return result

    task = load_task(stage.data, load_tokenizer(stage.model), 0)
    assert_same(predictions(store, stage), log_probabilities(logits, task, "f2+l3"))


@pytest.mark.parametrize("intervention", ["loreft", "consreft", "lobireft", "direft"])
def test_a_pyreft_folder_becomes_a_stages_start(
    compose_run: ComposeRun, small: list[str], store: Store, tmp_path: Path, intervention: str
) -> None:
    from safetensors.torch import load_file

    asked = [*small, "method=reft", f"reft.intervention={intervention}", "reft.positions=f2+l3"]
    first = trained(compose_run(*asked), store)
    to = tmp_path / "exported"
    assert export_main([str(store.folder(first.fingerprint)), "--to", str(to)]) == 0
    # Training that moves nothing: what comes out is what went in.
    still = ["reft.learning_rate=1e-30", "epochs=1", f"reft.init_from={to}", "seed=5"]
    second = trained(compose_run(*asked, *still), store)
    before = load_file(store.adapter(first) / "reft.safetensors")
    after = load_file(store.adapter(second) / "reft.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=1e-5, atol=1e-5)


def test_a_peft_folder_becomes_a_stages_start(
    compose_run: ComposeRun, small: list[str], store: Store
) -> None:
    from safetensors.torch import load_file

    first = trained(compose_run(*small, "method=lora"), store)
    still = ["lora.learning_rate=1e-30", "epochs=1", f"lora.init_from={store.adapter(first)}"]
    second = trained(compose_run(*small, "method=lora", *still), store)
    before = load_file(store.adapter(first) / "adapter_model.safetensors")
    after = load_file(store.adapter(second) / "adapter_model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor)


def test_a_start_of_another_rank_is_refused_before_training(
    compose_run: ComposeRun, small: list[str], store: Store
) -> None:
    from heft_pipeline.stage.preflight import preflight

    first = trained(compose_run(*small, "method=lora", "epochs=1"), store)
    other = compose_run(
        *small, "method=lora", "lora.rank=4", f"lora.init_from={store.adapter(first)}"
    )
    with pytest.raises(UserError, match=r"lora\.init_from.*r=8.*lora\.rank=4; set lora\.rank=8"):
        preflight(other.stages)


@pytest.mark.parametrize(
    ("made_with", "message"),
    [
        ({"lora_alpha": 64}, r"lora_alpha=64.*lora\.alpha=16\.0; set lora\.alpha=64"),
        ({"use_rslora": True}, r"use_rslora=True.*lora\.use_rslora=False; set"),
        ({"use_dora": True}, r"use_dora=True.*lora\.use_dora=False; set"),
        ({"rank_pattern": {"q_proj": 4}}, r"rank_pattern=\{'q_proj': 4\}.*another folder"),
        ({"alpha_pattern": {"q_proj": 4}}, r"alpha_pattern=\{'q_proj': 4\}.*another folder"),
        ({"bias": "lora_only"}, r"bias=lora_only.*bias=none.*another folder"),
    ],
)
def test_weights_are_not_read_with_another_meaning_than_they_were_trained_with(
    compose_run: ComposeRun,
    small: list[str],
    small_model: Path,
    tmp_path: Path,
    made_with: dict[str, object],
    message: str,
) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from heft_pipeline.stage.preflight import preflight

    options = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"} | made_with
    config = LoraConfig(task_type="CAUSAL_LM", **options)
    get_peft_model(AutoModelForCausalLM.from_pretrained(small_model), config).save_pretrained(
        tmp_path / "peft"
    )
    run = compose_run(*small, "method=lora", f"lora.init_from={tmp_path / 'peft'}")
    with pytest.raises(UserError, match=message):
        preflight(run.stages)


def test_interventions_of_other_layers_are_refused(
    compose_run: ComposeRun, small: list[str], store: Store, tmp_path: Path
) -> None:
    from heft_pipeline.stage.preflight import preflight

    asked = [*small, "method=reft", "epochs=1"]
    first = trained(compose_run(*asked, "reft.layers=[0,2]"), store)
    to = tmp_path / "exported"
    assert export_main([str(store.folder(first.fingerprint)), "--to", str(to)]) == 0
    other = compose_run(*asked, "reft.layers=[1,2]", f"reft.init_from={to}")
    with pytest.raises(UserError, match=r"layers 0,2, and .* layers 1,2; set reft\.layers=\[0,2\]"):
        preflight(other.stages)


def test_export_refuses_what_pyreft_cannot_load(
    compose_run: ComposeRun,
    small: list[str],
    store: Store,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = [*small, "method=reft", "reft.intervention=nodireft", "epochs=1"]
    stage = trained(compose_run(*asked), store)
    assert export_main([str(store.folder(stage.fingerprint)), "--to", str(tmp_path / "x")]) == 1
    assert "nodireft" in capsys.readouterr().err


def test_nothing_in_a_stages_folder_is_a_pickle(
    compose_run: ComposeRun, small: list[str], store: Store
) -> None:
    stage = trained(compose_run(*small, "method=joint", "epochs=1"), store)
    files = [p for p in store.folder(stage.fingerprint).rglob("*") if p.is_file()]
    assert {p.suffix for p in files if not p.name.startswith(".")} <= {
        ".json", ".jsonl", ".csv", ".parquet", ".safetensors", ".log", ".md",
    }  # fmt: skip
    assert json.loads((store.folder(stage.fingerprint) / "result.json").read_text())["accuracy"]
