"""The peers' side: pyreft's trainer, PEFT with transformers' trainer, pyreft's generation.

They are used as their documentation shows; ``benchmarks/README.md`` says what had to be added for
current versions of the libraries.
"""

import io
import tempfile
from contextlib import redirect_stdout
from dataclasses import replace
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainingArguments,
)

from benchmarks.own import input_tokens
from benchmarks.peer_trainers import (
    CheckedReftTrainer,
    CheckedTrainer,
    CurrentReftTrainer,
    EpochTimes,
    OwnBatches,
    Peer,
    Shapes,
)
from benchmarks.piece import Measured, Piece, composed
from heft_pipeline.adapters.lora.settings import LoraSettings
from heft_pipeline.adapters.reft.settings import ReftSettings
from heft_pipeline.data.prompts import Example, Task
from heft_pipeline.devices.memory import peak_mb, reset_peak
from heft_pipeline.devices.resolve import resolve_device
from heft_pipeline.models.base_model import load_tokenizer, quieten
from heft_pipeline.models.decoder import decoder_layers
from heft_pipeline.plan.stage_spec import StageSpec
from heft_pipeline.stage.cached_inputs import cached_task
from heft_pipeline.training.flops import FlopCounter

with redirect_stdout(io.StringIO()):  # pyvene prints advice about an optional package
    import pyreft
    from pyreft.dataset import (
        get_intervention_locations,
        make_last_position_supervised_data_module,
    )
    from pyreft.reft_trainer import make_data_collator, make_dataloader

#: The batch size of pyreft's examples/loreft/compute_metrics.py.
GENERATE_BATCH = 4


def train(piece: Piece) -> Measured:
    """Train with a peer's trainer.

    Args:
        piece: A piece whose ``work`` is ``reft`` (pyreft) or ``lora`` (PEFT).
    """
    quieten()
    stage = composed(piece).last
    device, tokenizer, task, model = _loaded(piece, stage)
    flops = FlopCounter(model, decoder_layers(model)[1])
    tokenizer.padding_side = "right"
    reset_peak(device)
    torch.manual_seed(stage.seed)
    (adapter,) = stage.adapters
    make = _peft if isinstance(adapter, LoraSettings) else _pyreft
    peer = make(stage, model, tokenizer, task)
    if piece.paper:
        peer = replace(peer, **_as_in_paper(piece, stage, peer.model, tokenizer, task))
    batches = OwnBatches(task, piece.batch_size, stage)
    shapes, clock = Shapes(peer.collator), EpochTimes(device, piece.clock)
    with tempfile.TemporaryDirectory(dir=piece.workdir) as folder:
        trainer = (peer.checked if piece.losses else peer.trainer)(
            model=peer.model,
            args=_arguments(piece, stage, peer.learning_rate, len(batches), device, folder),
            train_dataset=peer.rows,
            data_collator=shapes,
            processing_class=tokenizer,
            callbacks=[clock],
        )
        if piece.losses:
            trainer.step_losses, trainer.batches = [], batches
        with redirect_stdout(io.StringIO()):  # it prints losses
            trainer.train()
    return Measured(
        dtype=piece.dtype,
        epoch_seconds=clock.seconds,
        examples=len(task.train),
        tokens=input_tokens(task),
        peak_memory_mb=peak_mb(device),
        flop=sum(flops.training(b, t, t, peer.lowest_layer) for b, t in shapes.seen),
        losses=trainer.step_losses if piece.losses else [],
    )


def _peft(stage: StageSpec, model: Any, tokenizer: Any, task: Task) -> Peer:
    import peft

    (lora,) = stage.adapters
    assert isinstance(lora, LoraSettings)
    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        task_type="CAUSAL_LM",
    )
    return Peer(
        model=peft.get_peft_model(model, config),
        rows=[_row(task, e) for e in task.train],
        collator=DataCollatorForSeq2Seq(tokenizer, model=model, padding="longest"),
        trainer=Trainer,
        checked=CheckedTrainer,
        learning_rate=lora.learning_rate,
        lowest_layer=0,
    )


def _pyreft(stage: StageSpec, model: Any, tokenizer: Any, task: Task) -> Peer:
    return Peer(
        model=_reft_model(stage, model),
        rows=[_reft_row(task, e, stage, model, tokenizer, True) for e in task.train],
        collator=make_data_collator(tokenizer, model),
        trainer=CurrentReftTrainer,
        checked=CheckedReftTrainer,
        learning_rate=_reft(stage).learning_rate,
        lowest_layer=1 + min(_layers(_reft(stage), model)),
    )


def _as_in_paper(
    piece: Piece, stage: StageSpec, model: Any, tokenizer: Any, task: Task
) -> dict[str, Any]:
    """The rows and the collator of the script in the HEFT paper's appendix."""
    texts = [(e.prompt, e.answer) for e in task.train]
    if isinstance(stage.adapters[0], LoraSettings):
        tokenizer.pad_token = tokenizer.eos_token
        end = tokenizer.eos_token_id  # which the collator leaves out of the loss, as padding
        rows = [
            _padded([*prompt, *answer, end], piece.padded_to, tokenizer) for prompt, answer in texts
        ]
        return {"rows": rows, "collator": DataCollatorForLanguageModeling(tokenizer, mlm=False)}
    rows = [
        {
            "input_ids": [*prompt, *answer],
            "intervention_locations": [[len(prompt) - 1]],
            "labels": [-100] * len(prompt) + list(answer),
        }
        for prompt, answer in texts
    ]
    made = make_last_position_supervised_data_module(tokenizer, model, [], [])
    return {"rows": rows, "collator": made["data_collator"]}


def _padded(tokens: list[int], width: int, tokenizer: Any) -> dict[str, Any]:
    missing = max(0, width - len(tokens))
    return {
        "input_ids": [*tokens, *[tokenizer.pad_token_id] * missing],
        "attention_mask": [1] * len(tokens) + [0] * missing,
    }


def _arguments(
    piece: Piece,
    stage: StageSpec,
    learning_rate: float,
    steps: int,
    device: torch.device,
    folder: str,
) -> Any:
    training, schedule = stage.training, stage.adapters[0]
    assert training is not None
    return TrainingArguments(
        output_dir=folder,
        num_train_epochs=schedule.epochs,
        per_device_train_batch_size=schedule.batch_size // piece.accumulation,
        gradient_accumulation_steps=piece.accumulation,
        learning_rate=learning_rate,
        weight_decay=0.0,
        lr_scheduler_type=training.lr_scheduler,
        warmup_steps=round(schedule.warmup_ratio * schedule.epochs * steps),
        max_grad_norm=training.max_grad_norm,
        optim="adamw_torch",
        logging_steps=training.log_every_steps,
        save_strategy="no",
        report_to="none",
        remove_unused_columns=False,
        dataloader_pin_memory=device.type == "cuda",
        disable_tqdm=True,
        use_cpu=device.type == "cpu",
        seed=stage.seed,
    )


@torch.no_grad()
def generate(piece: Piece) -> Measured:
    """Evaluate as pyreft's ``examples/loreft/compute_metrics.py`` does: greedy generation.

    The validation split is decoded once, after a warm-up batch.

    Args:
        piece: A piece whose ``work`` is ``generate``.
    """
    quieten()
    stage = composed(piece).last
    device, tokenizer, task, model = _loaded(piece, stage)
    tokenizer.padding_side = "left"
    torch.manual_seed(stage.seed)
    reft_model = _reft_model(stage, model)
    reft_model.eval()
    rows = [_reft_row(task, e, stage, model, tokenizer, False) for e in task.eval]
    collator = make_data_collator(tokenizer, model)
    new_tokens = piece.max_new_tokens or max(map(len, task.eval[0].choices)) + 1

    def decoded(some: list[dict[str, Any]]) -> list[int]:
        chosen = []
        for inputs in make_dataloader(some, GENERATE_BATCH, collator, shuffle=False):
            inputs = {k: v.to(device) for k, v in inputs.items() if v is not None}
            # The collator's padding comes before the row's own first padding token.
            padding = inputs["attention_mask"].argmax(dim=1) - 1
            places = inputs["intervention_locations"].permute(1, 0, 2) + padding[None, :, None]
            _, output = reft_model.generate(
                base={k: inputs[k] for k in ("input_ids", "attention_mask")},
                unit_locations={"sources->base": (None, places.tolist())},
                intervene_on_prompt=True,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
                max_new_tokens=new_tokens,
                do_sample=False,
            )
            tokenizer.batch_decode(output, skip_special_tokens=True)
            texts = output[:, inputs["input_ids"].shape[1] :].tolist()
            chosen += [_choice(task, text) for text in texts]
        return chosen

    decoded(rows[:GENERATE_BATCH])
    reset_peak(device)
    started = piece.clock()
    predictions = decoded(rows)
    seconds = piece.clock() - started
    return Measured(
        dtype=piece.dtype,
        epoch_seconds=[seconds],
        examples=len(rows),
        tokens=sum(len(e.prompt) for e in task.eval),
        peak_memory_mb=peak_mb(device),
        predictions=predictions,
        new_tokens=new_tokens,
    )


def _loaded(piece: Piece, stage: StageSpec) -> tuple[torch.device, Any, Task, Any]:
    device = resolve_device(stage.device)
    tokenizer = load_tokenizer(stage.model)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    task = cached_task(stage)
    model = AutoModelForCausalLM.from_pretrained(
        stage.model.id, dtype=getattr(torch, piece.dtype), use_safetensors=True
    )
    return device, tokenizer, task, model.to(device)


def _reft_model(stage: StageSpec, model: Any) -> Any:
    reft = _reft(stage)
    representations = [
        {
            "layer": layer,
            "component": "block_output",
            "low_rank_dimension": reft.rank,
            "intervention": pyreft.LoreftIntervention(
                embed_dim=model.config.hidden_size,
                low_rank_dimension=reft.rank,
                dropout=reft.dropout,
                dtype=model.dtype,
            ),
        }
        for layer in _layers(reft, model)
    ]
    return pyreft.get_reft_model(model, pyreft.ReftConfig(representations=representations))


def _layers(reft: ReftSettings, model: Any) -> list[int]:
    """The edited layers."""
    if isinstance(reft.layers, str):
        return list(range(model.config.num_hidden_layers))
    return list(reft.layers)


def _reft(stage: StageSpec) -> ReftSettings:
    (reft,) = stage.adapters
    assert isinstance(reft, ReftSettings)
    return reft


def _row(task: Task, example: Example) -> dict[str, Any]:
    answer = example.answer
    ids = [*example.prompt, *answer]
    labels = [-100] * len(example.prompt) + list(answer)
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}


def _reft_row(
    task: Task, example: Example, stage: StageSpec, model: Any, tokenizer: Any, answered: bool
) -> dict[str, Any]:
    """A row as pyreft's ``ReftRawDataset`` makes it, with one padding token before its prompt."""
    places = get_intervention_locations(
        last_position=len(example.prompt),
        positions=_reft(stage).positions,
        num_interventions=len(_layers(_reft(stage), model)),
        share_weights=True,
        pad_mode="first",
    )
    row = _row(task, example)
    length = len(row["input_ids"]) if answered else len(example.prompt)
    made = {
        "input_ids": [tokenizer.pad_token_id, *row["input_ids"][:length]],
        "attention_mask": [0, *row["attention_mask"][:length]],
        "intervention_locations": [[place + 1 for place in layer] for layer in places],
    }
    return made | ({"labels": [-100, *row["labels"]]} if answered else {})


def _choice(task: Task, text: list[int]) -> int:
    for index, choice in enumerate(task.eval[0].choices):
        if tuple(text[: len(choice)]) == choice:
            return index
    return -1
