"""Choices that each row has of its own: scored as transformers alone scores them."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from heft_pipeline.adapters.adapted import adapted
from heft_pipeline.data.prompts import Example
from heft_pipeline.models.base_model import load_base
from heft_pipeline.plan.graph import Run
from heft_pipeline.scoring.score import Scores, score
from heft_pipeline.stage.cached_inputs import cached_task
from heft_pipeline.stage.run_stage import run_stage
from heft_pipeline.store.stage_folders import Store
from heft_pipeline.training.metrics import read_metrics
from tests.conftest import WORDS, write_rows
from tests.models.tiny_architectures import save_tiny

ComposeRun = Callable[..., Run]
CPU = torch.device("cpu")


def rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Rows with 2 to 5 choices of 1 to 7 words; the right one has the question's word."""
    source = random.Random(seed)
    made = []
    for _ in range(count):
        word, *others = source.sample(WORDS, 40)
        passage = " ".join(source.choices(others[20:], k=source.randint(2, 30)))
        endings = [
            " ".join(source.choices(others[:20], k=source.randint(1, 7)))
            for _ in range(source.randint(2, 5))
        ]
        right = source.randrange(len(endings))
        endings[right] = f"{word} {endings[right]}"
        made.append({"passage": passage, "question": word, "endings": endings, "label": right})
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own-choices")
    write_rows(folder / "train.jsonl", rows(64, seed=1))
    write_rows(folder / "validation.jsonl", rows(40, seed=2))
    return folder


@pytest.fixture(scope="module")
def own(folder: Path, small_model: Path) -> list[str]:
    return [
        f"model.id={small_model}",
        "model.dtype=float32",
        "data=hellaswag",
        f"data.path={folder}",
        "data.prompt='{passage} Question: {question} Answer:'",
        "data.truncate_column=passage",
        "lora.learning_rate=3e-3",
        "reft.learning_rate=3e-3",
    ]


def alone(model: Any, example: Example) -> list[float]:
    """Each choice's log-probability, one unpadded sequence at a time."""
    found = []
    for number, choice in enumerate(example.choices):
        ids = torch.tensor([example.prompt + choice])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0].float().log_softmax(dim=-1)
        start = len(example.prompt) + (example.given[number] if example.given else 0)
        places = range(start, ids.shape[1])
        found.append(sum(logits[at - 1, ids[0, at]].item() for at in places))
    return found


def padded(model: Any, example: Example, side: str) -> list[float]:
    """The same with all choices of an example in one padded batch."""
    sequences = [[*example.prompt, *choice] for choice in example.choices]
    width = max(map(len, sequences))
    ids, mask = torch.zeros(2, len(sequences), width, dtype=torch.long)
    for row, sequence in enumerate(sequences):
        own = slice(width - len(sequence), width) if side == "left" else slice(len(sequence))
        ids[row, own], mask[row, own] = torch.tensor(sequence), 1
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits
    table = logits.float().log_softmax(dim=-1)
    found = []
    for row, choice in enumerate(example.choices):
        end = width if side == "left" else len(sequences[row])
        places = range(end - len(choice), end)
        found.append(sum(table[row, at - 1, ids[row, at]].item() for at in places))
    return found


def rows_of(scores: Scores, examples: Sequence[Example]) -> list[list[float]]:
    counts = [len(example.choices) for example in examples]
    table = scores.log_probabilities.tolist()
    assert all(set(row[n:]) <= {float("-inf")} for row, n in zip(table, counts, strict=True))
    return [row[:count] for row, count in zip(table, counts, strict=True)]


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_oss", "mamba"])
def test_choices_are_scored_as_transformers_scores_each_alone(
    compose_run: ComposeRun, own: list[str], tmp_path: Path, name: str
) -> None:
    save_tiny(name, tmp_path)
    stage = compose_run(*own, f"model.id={tmp_path}", "method.stages=[]").last
    task = cached_task(stage)
    assert {len(e.choices) for e in task.eval} == {2, 3, 4, 5}
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    expected = [alone(plain, example) for example in task.eval]
    base = load_base(stage.model, CPU)
    for size in (1, 64):
        with adapted(base, []) as model:
            found = rows_of(score(model, task.eval, batch_size=size), task.eval)
        for one, other in zip(found, expected, strict=True):
            assert one == pytest.approx(other, rel=1e-4, abs=1e-4)
    if name == "llama":
        for side in ("left", "right"):
            for one, example in zip(expected, task.eval, strict=True):
                assert padded(plain, example, side) == pytest.approx(one, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("positions", ["f2+l2", "l3"])
def test_a_heft_run_scores_own_choices_as_its_saved_adapters_do(
    compose_run: ComposeRun, own: list[str], store: Store, positions: str
) -> None:
    """What a stage writes is what its reloaded adapters give, one prompt at a time."""
    from heft_pipeline.stage.frozen_parents import finished_adapters

    asked = ["method=heft", "epochs=2", f"reft.positions={positions}", "evaluation.normalize=byte"]
    run = compose_run(*own, *asked)
    results = [run_stage(stage, store).result for stage in run.stages]
    stage, task = run.last, cached_task(run.last)
    table = pd.read_parquet(store.folder(stage.fingerprint) / "predictions.parquet")
    with adapted(load_base(stage.model, CPU), finished_adapters(run.stages, store)) as model:
        again = score(model, task.eval, batch_size=1, normalize="byte")
    for one, other in zip(table.logprobs, rows_of(again, task.eval), strict=True):
        assert list(one) == pytest.approx(other, rel=1e-4, abs=1e-4)
    assert results[-1]["normalize"] == "byte"
    assert results[-1]["accuracy"] == results[-1]["accuracies"]["byte"]
    # What is in the file suffices to compute the accuracies again.
    for name, divisor in (("none", None), ("token", "tokens"), ("byte", "bytes")):
        best = [
            max(range(len(p)), key=lambda i: p[i] / (row[divisor][i] if divisor else 1))
            for _, row in table.iterrows()
            for p in [row.logprobs]
        ]
        right = ["ABCDE"[i] == gold for i, gold in zip(best, table.gold, strict=True)]
        assert sum(right) / len(right) == pytest.approx(results[-1]["accuracies"][name])
    lengths = [[len(ending.encode()) for ending in row["endings"]] for row in rows(40, seed=2)]
    assert [list(map(int, own)) for own in table.bytes] == lengths
    assert [list(map(int, own)) for own in table.tokens] == [
        [len(ending.split()) for ending in row["endings"]] for row in rows(40, seed=2)
    ]


def test_training_minimises_the_loss_of_the_right_choices_tokens(
    compose_run: ComposeRun, own: list[str], small_model: Path, store: Store
) -> None:
    """The first step's loss is the untouched model's mean over all tokens of right choices."""
    asked = ["method=lora", "epochs=1", "lora.batch_size=64", "training.log_every_steps=1"]
    stage = compose_run(*own, *asked, "lora.dropout=0").last
    result = run_stage(stage, store).result
    lines = read_metrics(store.folder(stage.fingerprint) / "metrics.jsonl")
    first = next(line["loss"] for line in lines if line["event"] == "step")
    plain = AutoModelForCausalLM.from_pretrained(small_model, dtype=torch.float32).eval()
    task = cached_task(stage)
    assert all(e.answer == e.choices[e.gold] for e in task.train)
    nats = -sum(alone(plain, example)[example.gold] for example in task.train)
    assert first == pytest.approx(nats / sum(len(e.answer) for e in task.train), rel=1e-4)
    chance = sum(1 / len(row["endings"]) for row in rows(40, seed=2)) / 40
    assert result["chance_accuracy"] == pytest.approx(chance)


def test_what_follows_a_blank_is_scored_alone(
    compose_run: ComposeRun, small_model: Path, tmp_path: Path
) -> None:
    source = random.Random(0)
    sentences = [
        {
            "sentence": f"{' '.join(source.choices(WORDS, k=source.randint(2, 20)))} _ "
            + " ".join(source.choices(WORDS, k=source.randint(1, 6))),
            "option1": "yes no maybe",
            "option2": "no",
            "answer": source.choice("12"),
        }
        for _ in range(40)
    ]
    for split in ("train", "validation"):
        write_rows(tmp_path / f"{split}.jsonl", sentences)
    asked = ["data=winogrande", f"data.path={tmp_path}", "data.allow_overlap=true"]
    model_asked = [f"model.id={small_model}", "model.dtype=float32", "method.stages=[]"]
    stage = compose_run(*asked, *model_asked).last
    task = cached_task(stage)
    assert {e.given for e in task.eval} == {(3, 1)}
    plain = AutoModelForCausalLM.from_pretrained(small_model, dtype=torch.float32).eval()
    expected = [alone(plain, example) for example in task.eval]
    tokenizer = AutoTokenizer.from_pretrained(small_model)
    before, after = sentences[0]["sentence"].split(" _ ")
    ids = tokenizer(f"{before} no {after}").input_ids
    assert list(task.eval[0].prompt + task.eval[0].choices[1]) == ids
    with adapted(load_base(stage.model, CPU), []) as model:
        for size in (1, 64):
            found = rows_of(score(model, task.eval, batch_size=size), task.eval)
            for one, other in zip(found, expected, strict=True):
                assert one == pytest.approx(other, rel=1e-4, abs=1e-4)


def test_generated_text_is_looked_through_for_the_rows_own_choices(
    compose_run: ComposeRun, own: list[str], store: Store
) -> None:
    # The tokenizer knows no letters; numbers among its words stand for the choices.
    listed = ["data.option='w{number} {choice}'", "data.choice=' w{number}'"]
    asked = ["data.prompt='{options} Question: {question}'", "data.truncate_column=null", *listed]
    lost = []
    for more in ([], ["evaluation.match=contains"]):
        generate = ["evaluation.mode=generate", *more, "method.stages=[]"]
        stage = compose_run(*own, *asked, *generate).last
        result = run_stage(stage, store).result
        table = pd.read_parquet(store.folder(stage.fingerprint) / "predictions.parquet")
        answers = zip(table.text, table.prediction, rows(40, seed=2), strict=True)
        for text, prediction, source in answers:
            names = [f"w{number + 1}" for number in range(len(source["endings"]))]
            first = (str(text).split() or [""])[0]
            at = names.index(first) if first in names else -1
            if more:
                at = next((i for i, name in enumerate(names) if name in str(text)), -1)
            assert prediction == (None if at < 0 else "ABCDE"[at])
        lost.append(result["unmatched_rows"])
    assert lost[0] >= lost[1]
