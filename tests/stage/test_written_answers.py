"""A stage whose answers are written: trained on the whole answer, generated, read and compared."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from heft_pipeline.errors import UserError
from heft_pipeline.plan.graph import Run
from heft_pipeline.stage.cached_inputs import cached_task
from heft_pipeline.stage.run_stage import run_stage
from heft_pipeline.store.beside_predictions import choice_table, right_logprobs
from heft_pipeline.store.stage_folders import Store
from heft_pipeline.training.metrics import read_metrics
from launch.attempt import said_accuracy
from tests.conftest import WORDS, write_rows

ComposeRun = Callable[..., Run]


def rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Questions of one word, which the answer says again after up to three others."""
    source = random.Random(seed)
    made = []
    for _ in range(count):
        word, *others = source.sample(WORDS[:12], 4)
        reasoning = " ".join(others[: source.randint(0, 3)])
        made.append({"question": word, "answer": f"{reasoning} Answer: {word}".strip()})
    return made


@pytest.fixture
def written(small_model: Path, tmp_path: Path) -> list[str]:
    write_rows(tmp_path / "rows" / "train.jsonl", rows(200, seed=1))
    write_rows(tmp_path / "rows" / "test.jsonl", rows(60, seed=2))
    return [
        f"model.id={small_model}",
        "model.dtype=float32",
        "data=gsm8k",
        f"data.path={tmp_path / 'rows'}",
        "data.prompt='Question: {question} yes'",
        "data.extract='Answer: (.+)'",
        "data.dev_size=20",
        "data.allow_overlap=true",
        "lora.learning_rate=1e-2",
        "reft.learning_rate=1e-2",
    ]


def test_what_is_generated_is_read_and_compared(
    compose_run: ComposeRun, written: list[str], small_model: Path, store: Store
) -> None:
    """Text, answer and credit of each row are those of transformers' greedy generation."""
    stage = compose_run(*written, "method=lora", "epochs=8").last
    result = run_stage(stage, store).result
    folder = store.folder(stage.fingerprint)
    table = pd.read_parquet(folder / "predictions.parquet")
    from peft import PeftModel

    tokenizer = AutoTokenizer.from_pretrained(small_model)
    plain = AutoModelForCausalLM.from_pretrained(small_model, dtype=torch.float32).eval()
    tuned = PeftModel.from_pretrained(plain, folder / "adapter").eval()
    right = []
    for row, (_, saved) in zip(rows(60, seed=2), table.iterrows(), strict=True):
        ids = tokenizer(f"Question: {row['question']} yes", return_tensors="pt").input_ids
        output = tuned.generate(
            input_ids=ids, max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=2
        )
        text = tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
        assert saved.text == text
        assert saved.gold == row["question"]
        _, mark, answer = text.partition("Answer: ")
        assert saved.prediction == (answer if mark and answer else None)
        right.append(saved.prediction == saved.gold)
        assert saved.credit == right[-1]
    assert 0.2 < result["accuracy"] == sum(right) / 60, "it has learnt to answer and to stop"
    assert result["written"] and result["unmatched_rows"] == table.prediction.isna().sum()
    epochs = [x for x in read_metrics(folder / "metrics.jsonl") if x["event"] == "epoch"]
    assert epochs[-1]["dev_accuracy"] > epochs[0]["dev_accuracy"]
    logprobs = right_logprobs(table)
    assert logprobs is not None
    assert -logprobs.mean() == pytest.approx(result["eval_loss"], rel=1e-5)
    assert choice_table(table) is None


def test_the_loss_is_that_of_the_whole_answer_and_its_end(
    compose_run: ComposeRun, written: list[str], small_model: Path, store: Store
) -> None:
    asked = ["method=lora", "epochs=1", "lora.batch_size=180", "lora.dropout=0"]
    stage = compose_run(*written, *asked, "training.log_every_steps=1").last
    run_stage(stage, store)
    lines = read_metrics(store.folder(stage.fingerprint) / "metrics.jsonl")
    first = next(line["loss"] for line in lines if line["event"] == "step")
    plain = AutoModelForCausalLM.from_pretrained(small_model, dtype=torch.float32).eval()
    nats, tokens = 0.0, 0
    for example in cached_task(stage).train:
        assert example.answer[-1] == 2
        ids = torch.tensor([example.prompt + example.answer])
        labels = ids.clone()
        labels[:, : len(example.prompt)] = -100
        with torch.no_grad():
            nats += len(example.answer) * plain(input_ids=ids, labels=labels).loss.item()
        tokens += len(example.answer)
    assert first == pytest.approx(nats / tokens, rel=1e-4)


def test_heft_writes_answers_with_its_edits_on_the_prompt(
    compose_run: ComposeRun, written: list[str], store: Store
) -> None:
    run = compose_run(*written, "method=heft", "epochs=4", "evaluation.batch_size=7")
    fine = [run_stage(stage, store).result for stage in run.stages][-1]
    assert fine["n_eval"] == 60
    texts = [
        list(pd.read_parquet(store.folder(s.fingerprint) / "predictions.parquet").text)
        for s in run.stages
    ]
    assert texts[0] != texts[1]


def test_an_answer_that_is_not_there_is_counted_and_said(
    compose_run: ComposeRun, written: list[str], store: Store
) -> None:
    result = run_stage(compose_run(*written, "method.stages=[]").last, store).result
    lost = result["unmatched_rows"]
    assert 0 < lost <= 60
    assert f"({lost} of 60 texts hold no answer)" in said_accuracy(result)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["evaluation.mode=logprob"], r"answers are generated .*leave evaluation\.mode"),
        (["evaluation.normalize=byte"], r"normalize has no effect with evaluation\.mode=generate"),
        (["+data.choices.yes=' yes'"], r"data\.kind=answer is written, not chosen"),
        (["data.extract='('"], r"data\.extract='\(' is no regular expression"),
        (["data.extract=''"], r"data\.extract='' matches nothing; .*null"),
        (["data.kind=choice"], r"data\.extract has no effect without data\.kind=answer"),
        (["data.choices_column=x"], r"data\.choices_column=x has no place"),
    ],
)
def test_settings_that_contradict_written_answers_are_refused(
    compose_run: ComposeRun, written: list[str], asked: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        compose_run(*written, *asked)
