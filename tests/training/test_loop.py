"""The training loop against plain torch, and its parts."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from heft_pipeline.data.batches import epoch_batches
from heft_pipeline.data.prompts import load_task
from heft_pipeline.models.base_model import load_base
from heft_pipeline.plan.graph import Run
from heft_pipeline.stage.run_stage import run_stage
from heft_pipeline.store.stage_folders import Store
from heft_pipeline.training.metrics import MetricsLog, read_metrics

ComposeRun = Callable[..., Run]


def losses(store: Store, fingerprint: str) -> list[float]:
    lines = read_metrics(store.folder(fingerprint) / "metrics.jsonl")
    return [line["loss"] for line in lines if line["event"] == "step"]


def test_a_lora_stage_trains_as_plain_peft_and_torch_do(
    compose_run: ComposeRun, small: list[str], small_model: Path, store: Store
) -> None:
    """The same losses, step by step, from labels over whole sequences and one row at a time."""
    from peft import LoraConfig, get_peft_model

    asked = ["method=lora", "epochs=2", "lora.batch_size=8", "lora.dropout=0"]
    stage = compose_run(*small, *asked, "training.log_every_steps=1").last
    run_stage(stage, store)
    base = load_base(stage.model, torch.device("cpu"))
    task = load_task(stage.data, base.tokenizer, 0)
    torch.manual_seed(0)
    plain = AutoModelForCausalLM.from_pretrained(small_model, dtype=torch.float32)
    torch.manual_seed(0)
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(plain, config)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=3e-3, weight_decay=0.0
    )
    steps = 2 * len(epoch_batches(task.train, 8, 0, 0))
    warmup, step, expected = round(0.1 * steps), 0, []
    for epoch in range(2):
        for batch in epoch_batches(task.train, 8, 0, epoch):
            rate = step / warmup if step < warmup else (steps - step) / (steps - warmup)
            optimizer.param_groups[0]["lr"] = 3e-3 * rate
            total = torch.zeros(())
            for i in batch:
                example = task.train[i]
                answer = example.answer
                ids = torch.tensor([example.prompt + answer])
                labels = ids.clone()
                labels[:, : len(example.prompt)] = -100
                total = total + model(input_ids=ids, labels=labels).loss / len(batch)
            total.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            expected.append(total.item())
            step += 1
    assert losses(store, stage.fingerprint) == pytest.approx(expected, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("method", ["lora", "reft", "joint"])
def test_accumulation_changes_no_loss(
    compose_run: ComposeRun, small: list[str], store: Store, method: str
) -> None:
    asked = [*small, f"method={method}", "epochs=1", "lora.dropout=0"]
    asked += ["lora.batch_size=16", "reft.batch_size=16", "training.log_every_steps=1"]
    asked.append("data.choices.true=' yes w1 w2'")  # answers of different lengths
    whole = compose_run(*asked).last
    parts = compose_run(*asked, "training.micro_batch_tokens=100").last
    for stage in (whole, parts):
        run_stage(stage, store)
    assert losses(store, parts.fingerprint) == pytest.approx(
        losses(store, whole.fingerprint), rel=1e-3, abs=1e-4
    )


def test_adapters_learn_and_the_order_of_stages_is_kept(
    compose_run: ComposeRun, small: list[str], store: Store
) -> None:
    run = compose_run(*small, "method=heft", "epochs=4", "training.log_every_steps=1")
    results = [run_stage(stage, store).result for stage in run.stages]
    for stage in run.stages:
        curve = losses(store, stage.fingerprint)
        assert curve[-1] < curve[0]
    assert results[0]["kind"], results[1]["kind"] == ("lora", "reft")
    fine = losses(store, run.last.fingerprint)
    coarse = losses(store, run.stages[0].fingerprint)
    assert fine[0] < coarse[0], "the fine stage starts from the coarse stage's result"


def test_the_coarse_adapter_is_untouched_by_the_fine_stage(
    compose_run: ComposeRun, small: list[str], store: Store
) -> None:
    run = compose_run(*small, "method=heft", "epochs=1")
    run_stage(run.stages[0], store)
    weights = store.adapter(run.stages[0]) / "adapter_model.safetensors"
    before = weights.read_bytes()
    run_stage(run.last, store)
    assert weights.read_bytes() == before
    assert sorted(p.name for p in store.adapter(run.last).iterdir()) == [
        "reft.safetensors",
        "reft_config.json",
    ]


@pytest.mark.parametrize("stages", ["[reft,lora]", "[lora,lora]", "[lora+reft,reft]", "[]"])
def test_any_list_of_stages_runs(
    compose_run: ComposeRun, small: list[str], store: Store, stages: str
) -> None:
    run = compose_run(*small, f"method.stages={stages}", "epochs=1")
    for stage in run.stages:
        assert 0 <= run_stage(stage, store).result["accuracy"] <= 1


def test_a_resumed_metrics_log_drops_later_steps(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for step in range(1, 6):
        log.write("step", step, 1, loss=float(step))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"event": "st')  # cut off by a crash
    MetricsLog(tmp_path / "metrics.jsonl", keep_steps=3).write("step", 4, 1, loss=0.5)
    assert [x["loss"] for x in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3, 0.5]
