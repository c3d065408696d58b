"""The HEFT paper's two losses against the trainers that its script used, on the same batches."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
)

from heft_pipeline.data.batches import epoch_batches
from heft_pipeline.data.prompts import Task
from heft_pipeline.plan.graph import Run
from heft_pipeline.plan.stage_spec import StageSpec
from heft_pipeline.stage.cached_inputs import cached_task
from heft_pipeline.stage.run_stage import run_stage
from heft_pipeline.store.stage_folders import Store
from heft_pipeline.training.metrics import read_metrics

ComposeRun = Callable[..., Run]
STEPS = 10
#: The paper's recipe: a doubled BOS, no dev split, batches at random, and no warm-up.
PAPER = [
    "data.prompt='<s> {passage} Question: {question} Answer:'",
    "data.special_tokens=add",
    "data.choices.true='yes'",
    "data.choices.false='no'",
    "data.dev_size=0",
    "training.selection=last",
    "training.group_by_length=false",
    "training.log_every_steps=1",
    "epochs=1",
]
LORA = [
    "method=lora", "lora.loss=sequence", "lora.answer=' {choice}'", "lora.batch_size=8",
    "lora.rank=4", "lora.alpha=16", "lora.dropout=0", "lora.target_modules=[q_proj,v_proj]",
    "lora.warmup_ratio=0", "lora.learning_rate=2e-2",
]  # fmt: skip
REFT = [
    "method=reft", "reft.layers=[1]", "reft.positions=l1", "reft.rank=4", "reft.end_token=true",
    "reft.batch_size=8", "reft.warmup_ratio=0", "reft.learning_rate=2e-2",
]  # fmt: skip


class Losses:
    """A mixin for trainers: given batches, and each step's loss at full precision."""

    batches: list[list[int]]
    losses: list[float]

    def get_train_dataloader(self) -> Any:
        trainer: Any = self
        return DataLoader(
            trainer.train_dataset, batch_sampler=self.batches, collate_fn=trainer.data_collator
        )

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(*args, **kwargs)  # type: ignore[misc]
        self.losses.append(loss.item())
        return loss


class PlainTrainer(Losses, Trainer):  # type: ignore[misc, unused-ignore]
    """transformers' trainer."""


@pytest.fixture
def asked(small: list[str]) -> list[str]:
    """The small model and task under the paper's recipe."""
    return [*(text for text in small if not text.startswith("data.prompt=")), *PAPER]


def trained(stage: StageSpec, store: Store) -> tuple[list[float], dict[str, Any]]:
    """The losses of a stage's first steps, and its result."""
    result = run_stage(stage, store).result
    lines = read_metrics(store.folder(stage.fingerprint) / "metrics.jsonl")
    return [line["loss"] for line in lines if line["event"] == "step"][:STEPS], result


def texts(task: Task, tokenizer: Any) -> Iterator[tuple[str, str]]:
    """Prompts and answers as text; the tokenizer adds a BOS to each."""
    for example in task.train:
        yield tokenizer.decode(example.prompt[1:]), example.texts[example.gold]


def run_trainer(trainer: Any, stage: StageSpec, task: Task) -> list[float]:
    schedule = stage.adapters[0]
    batches = epoch_batches(task.train, schedule.batch_size, stage.seed, 0, group_by_length=False)
    trainer.batches, trainer.losses = batches, []
    trainer.train()
    return list(trainer.losses[:STEPS])


def arguments(stage: StageSpec, folder: Path) -> TrainingArguments:
    """The paper's script: everything but the batch and the learning rate is the default."""
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=1,
        per_device_train_batch_size=stage.adapters[0].batch_size,
        learning_rate=stage.adapters[0].learning_rate,
        save_strategy="no",
        report_to="none",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        use_cpu=True,
    )


def test_lora_with_sequence_loss_is_transformers_trainer_with_its_language_modelling_collator(
    compose_run: ComposeRun, asked: list[str], store: Store, tmp_path: Path
) -> None:
    import peft

    stage = compose_run(*asked, *LORA).last
    own, result = trained(stage, store)
    assert result["n_dev"] == 0 and result["best_epoch"] is None
    assert "<s> twice" in " ".join(result["notes"])

    task, tokenizer = cached_task(stage), AutoTokenizer.from_pretrained(stage.model.id)
    tokenizer.pad_token = tokenizer.eos_token
    rows = [
        tokenizer(f"{prompt} {answer}{tokenizer.eos_token}", truncation=True, max_length=128)
        for prompt, answer in texts(task, tokenizer)
    ]
    assert rows[0]["input_ids"][:2] == [1, 1]
    model = AutoModelForCausalLM.from_pretrained(stage.model.id, dtype=torch.float32)
    torch.manual_seed(stage.seed)
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", r=4, lora_alpha=16, lora_dropout=0.0,
        target_modules=["q_proj", "v_proj"],
    )  # fmt: skip
    trainer = PlainTrainer(
        model=peft.get_peft_model(model, config),
        args=arguments(stage, tmp_path),
        train_dataset=Dataset.from_list([dict(row) for row in rows]).with_format(None),
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    )
    expected = run_trainer(trainer, stage, task)
    assert len(own) == STEPS and own[0] - own[-1] > 0.1, "something is learnt"
    assert own == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("more", [[], ["reft.reuse=off"], ["reft.reuse_budget_gib=1e-5"]])
def test_reft_at_the_last_position_is_pyrefts_trainer(
    compose_run: ComposeRun, asked: list[str], store: Store, tmp_path: Path, more: list[str]
) -> None:
    import pyreft

    class ReftTrainer(Losses, pyreft.ReftTrainerForCausalLM):  # type: ignore[misc, unused-ignore]
        def compute_loss(
            self, intervenable: Any, inputs: Any, return_outputs: bool = False, **_: Any
        ) -> Any:
            return super().compute_loss(intervenable, inputs, return_outputs)

    stage = compose_run(*asked, *REFT, *more).last
    own, _ = trained(stage, store)

    task, tokenizer = cached_task(stage), AutoTokenizer.from_pretrained(stage.model.id)
    tokenizer.pad_token, tokenizer.model_max_length = tokenizer.unk_token, 128
    tokenizer.padding_side = "right"
    model = AutoModelForCausalLM.from_pretrained(stage.model.id, dtype=torch.float32)
    torch.manual_seed(stage.seed)
    intervention = pyreft.LoreftIntervention(
        embed_dim=model.config.hidden_size, low_rank_dimension=4, dtype=torch.float32
    )
    config = pyreft.ReftConfig(
        representations={
            "layer": 1, "component": "block_output", "low_rank_dimension": 4,
            "intervention": intervention,
        }
    )  # fmt: skip
    reft = pyreft.get_reft_model(model, config, set_device=False)
    prompts, answers = zip(*texts(task, tokenizer), strict=True)
    # A word-level tokenizer needs a blank between words; Llama's does not.
    spaced = [f" {answer} " for answer in answers]
    data = pyreft.make_last_position_supervised_data_module(tokenizer, model, prompts, spaced)
    del data["eval_dataset"]
    trainer = ReftTrainer(model=reft, args=arguments(stage, tmp_path), **data)
    expected = run_trainer(trainer, stage, task)
    assert len(own) == STEPS and own[0] - own[-1] > 0.02, "something is learnt"
    assert own == pytest.approx(expected, abs=1e-5)
