"""Choice scoring against an independent computation with transformers alone."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from heft_pipeline.adapters.adapted import adapted
from heft_pipeline.data.batches import AnsweredPrompt, collate, length_batches
from heft_pipeline.data.prompts import Example, load_task
from heft_pipeline.errors import UserError
from heft_pipeline.models.base_model import Base, load_base
from heft_pipeline.models.reuse.frozen_layers import FrozenLayers
from heft_pipeline.models.reuse.frozen_prompts import FrozenPrompts
from heft_pipeline.plan.graph import Run
from heft_pipeline.scoring.generate import Decoding
from heft_pipeline.scoring.score import Scores, credit, likeliest, score
from heft_pipeline.training.activation_reuse import reuse_activations
from tests.scoring.given_choices import with_choices

ComposeRun = Callable[..., Run]

ONE_TOKEN = "data.choices.true=' yes'"
SEVERAL_TOKENS = "data.choices.true=' yes w1 w2'"


def by_hand(folder: Path, prompts: list[str], choices: list[str]) -> torch.Tensor:
    """Log-probabilities of continuations, one sequence at a time, from all logits."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    table = torch.zeros(len(prompts), len(choices))
    for i, prompt in enumerate(prompts):
        length = len(tokenizer(prompt).input_ids)
        for j, choice in enumerate(choices):
            ids = torch.tensor([tokenizer(prompt + choice).input_ids])
            with torch.no_grad():
                log_probs = model(ids).logits[0].log_softmax(-1)
            for position in range(length, ids.shape[1]):
                table[i, j] += log_probs[position - 1, ids[0, position]]
    return table


@pytest.mark.parametrize("choices", [ONE_TOKEN, SEVERAL_TOKENS])
def test_scores_equal_transformers_alone(
    compose_run: ComposeRun, small: list[str], small_model: Path, small_data: Path, choices: str
) -> None:
    import json

    stage = compose_run(*small, choices).last
    base = load_base(stage.model, torch.device("cpu"))
    task = load_task(stage.data, base.tokenizer, 0)
    with adapted(base, []) as model:
        scores = score(model, task.eval, batch_size=7)
    rows = [json.loads(x) for x in (small_data / "validation.jsonl").read_text().splitlines()]
    prompts = [f"{row['passage']} Question: {row['question']} Answer:" for row in rows]
    expected = by_hand(small_model, prompts, list(stage.data.choices.values()))
    torch.testing.assert_close(scores.log_probabilities, expected, rtol=1e-4, atol=1e-4)
    assert scores.predictions.tolist() == expected.argmax(dim=1).tolist()
    assert scores.gold.tolist() == [0 if row["answer"] else 1 for row in rows]
    right = sum(
        p == g for p, g in zip(scores.predictions.tolist(), scores.gold.tolist(), strict=True)
    )
    assert scores.accuracy == pytest.approx(right / len(rows))


def test_batches_hold_prompts_of_similar_length() -> None:
    lengths = [200 - 7 * (i % 26) for i in range(60)]
    batches = length_batches(lengths, batch_size=16)
    assert sorted(index for batch in batches for index in batch) == list(range(60))
    padded = sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)
    assert padded < 1.2 * sum(lengths)
    assert max(map(len, batches)) <= 16
    assert max(map(len, length_batches([9] * 100, batch_size=64))) == 64


@pytest.mark.parametrize("choices", [ONE_TOKEN, SEVERAL_TOKENS])
def test_batch_size_changes_no_score(
    compose_run: ComposeRun, small: list[str], choices: str
) -> None:
    stage = compose_run(*small, choices).last
    base = load_base(stage.model, torch.device("cpu"))
    task = load_task(stage.data, base.tokenizer, 0)
    with adapted(base, []) as model:
        one = score(model, task.eval, batch_size=1)
        many = score(model, task.eval, batch_size=64)
    torch.testing.assert_close(one.log_probabilities, many.log_probabilities, rtol=1e-4, atol=1e-4)


def test_generation_agrees_with_transformers_generate(
    compose_run: ComposeRun, small: list[str], small_model: Path
) -> None:
    """A choice is predicted where greedy text begins with it, and none where it does not."""
    stage = compose_run(*small).last
    base = load_base(stage.model, torch.device("cpu"))
    task = load_task(stage.data, base.tokenizer, 0)
    plain = AutoModelForCausalLM.from_pretrained(small_model, dtype=torch.float32).eval()
    texts = []
    for example in task.eval:
        ids = torch.tensor([example.prompt])
        output = plain.generate(ids, max_new_tokens=1, do_sample=False, pad_token_id=0)
        texts.append(output[0, -1].item())
    ordinary = [text for text in texts if text not in base.tokenizer.all_special_ids]
    common = max(set(ordinary), key=ordinary.count)
    choices = ((common,), (next(i for i in range(8, 68) if i != common),))
    with adapted(base, []) as model:
        examples = with_choices(task.eval, choices, [*map(base.tokenizer.decode, choices)])
        scores = score(model, examples, batch_size=8, decoding=Decoding(1))
    other = choices[1][0]
    expected = [0 if text == common else 1 if text == other else -1 for text in texts]
    assert scores.predictions.tolist() == expected
    assert {0, -1} <= set(expected)


def with_every_token(examples: Sequence[Example], base: Base) -> list[Example]:
    """The same examples with each token of the vocabulary as a choice."""
    names = base.tokenizer.convert_ids_to_tokens(list(range(68)))
    return with_choices(examples, [(i,) for i in range(68)], names)


def likeliest_words(scores: Scores, base: Base) -> list[int]:
    """The likeliest token of each row; -1 for a special one, which is no text."""
    special = set(base.tokenizer.all_special_ids)
    ids = scores.log_probabilities.argmax(dim=1).tolist()
    return [-1 if id in special else id for id in ids]


def test_generation_is_edited_at_the_prompt(
    compose_run: ComposeRun, small: list[str], small_model: Path
) -> None:
    """With ReFT, the first generated token is the one that edited logits rank highest."""
    stage = compose_run(*small, "method=reft").last
    base = load_base(stage.model, torch.device("cpu"))
    task = load_task(stage.data, base.tokenizer, 0)
    with adapted(base, []) as model:
        torch.manual_seed(1)
        model.add(stage.adapters)
        examples = with_every_token(task.eval, base)
        scores = score(model, examples, batch_size=8, decoding=Decoding(1))
        assert scores.predictions.tolist() == likeliest_words(scores, base)
    with adapted(base, []) as model:
        plain = score(model, examples, batch_size=8, decoding=Decoding(1))
    assert plain.predictions.tolist() != scores.predictions.tolist()


@pytest.mark.parametrize("positions", ["f2+l2", "l3"])
def test_choices_share_their_prompt_with_edits_and_reuse(
    compose_run: ComposeRun,
    small: list[str],
    tmp_path: Path,
    positions: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage = compose_run(*small, "method=reft", SEVERAL_TOKENS, f"reft.positions={positions}").last
    base = load_base(stage.model, torch.device("cpu"))
    task = load_task(stage.data, base.tokenizer, 0)
    passes = 0

    def count(*_: object) -> None:
        nonlocal passes
        passes += 1

    with adapted(base, []) as model:
        torch.manual_seed(0)
        model.add(stage.adapters)
        handle = base.model.register_forward_hook(count)
        shared = score(model, task.eval, batch_size=50)
        batches = len(length_batches([len(e.prompt) for e in task.eval], 50))
        # One over the prompts and one over the choices; one more to find out how.
        assert passes <= 2 * batches + 1
        handle.remove()
        monkeypatch.setattr(type(model), "read_prompts", lambda *_: None)
        alone = score(model, task.eval, batch_size=50)
        monkeypatch.undo()
        sequences = [AnsweredPrompt(e.prompt, (0,)) for e in task.eval]
        assert stage.training is not None
        reuse_activations(
            model,
            stage.training,
            sequences,
            tmp_path,
            advance=lambda *_: None,
            on_pass=lambda *_: None,
        )
        assert isinstance(model.forward, FrozenPrompts if positions == "l3" else FrozenLayers)
        reused = score(model, task.eval, batch_size=50)
    for other in (alone, reused):
        torch.testing.assert_close(
            shared.log_probabilities, other.log_probabilities, rtol=1e-4, atol=1e-4
        )


def test_generation_is_greedy_whatever_the_models_generation_config_says(
    compose_run: ComposeRun, small: list[str], small_model: Path, tmp_path: Path
) -> None:
    """Penalties, sampling and end tokens would change answers, and are in no fingerprint."""
    import json
    import shutil

    shutil.copytree(small_model, tmp_path / "model")
    config = {"repetition_penalty": 1.8, "do_sample": True, "temperature": 3.0, "eos_token_id": 3}
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps(config))
    found = []
    for folder in (small_model, tmp_path / "model"):
        stage = compose_run(*small, SEVERAL_TOKENS, f"model.id={folder}").last
        base = load_base(stage.model, torch.device("cpu"))
        task = load_task(stage.data, base.tokenizer, 0)
        with adapted(base, []) as model:
            examples = with_every_token(task.eval, base)
            scores = score(model, examples, batch_size=8, decoding=Decoding(1))
            assert scores.predictions.tolist() == likeliest_words(scores, base)
            found.append(scores.predictions.tolist())
    assert found[0] == found[1]


def test_scores_of_a_bfloat16_model_are_float32_from_the_head_on(
    compose_run: ComposeRun, small: list[str]
) -> None:
    """Logits that are rounded to bfloat16 tie where the model does not."""
    stage = compose_run(*small, "model.dtype=bfloat16").last
    base = load_base(stage.model, torch.device("cpu"))
    task = load_task(stage.data, base.tokenizer, 0)
    weight = base.model.get_output_embeddings().weight
    with adapted(base, []) as model:
        scores = score(model, task.eval, batch_size=1)
        for row, example in enumerate(task.eval[:10]):
            ids = torch.tensor([example.prompt])
            with torch.no_grad():
                hidden = base.model.model(ids).last_hidden_state[0, -1]
                logits = base.model(ids).logits
            assert logits.dtype == torch.float32
            expected = (weight.float() @ hidden.float()).log_softmax(dim=-1)
            for column, choice in enumerate(example.choices):
                found = scores.log_probabilities[row, column].item()
                assert found == pytest.approx(expected[choice[0]].item(), abs=1e-4)
        batch = collate([AnsweredPrompt(task.eval[0].prompt, (3,))], base.pad_token_id)
        assert model.logits(batch).dtype == torch.bfloat16, "training keeps the weights' dtype"


def test_log_probabilities_that_are_nan_are_refused(
    compose_run: ComposeRun, small: list[str]
) -> None:
    stage = compose_run(*small).last
    base = load_base(stage.model, torch.device("cpu"))
    task = load_task(stage.data, base.tokenizer, 0)
    base.layers[1].register_forward_hook(lambda *_: torch.full((1,), float("nan")) * _[2])
    with adapted(base, []) as model, pytest.raises(UserError, match="NaN for 50 of 50 prompts"):
        score(model, task.eval, batch_size=50)


def test_exact_ties_count_as_chance_and_are_no_prediction(
    compose_run: ComposeRun, small: list[str]
) -> None:
    """All weights of the head are equal, so that every choice is as likely as every other."""
    stage = compose_run(*small).last
    base = load_base(stage.model, torch.device("cpu"))
    torch.nn.init.zeros_(base.model.lm_head.weight)
    task = load_task(stage.data, base.tokenizer, 0)
    with adapted(base, []) as model:
        scores = score(model, task.eval, batch_size=7)
    assert scores.predictions.tolist() == [-1] * len(task.eval)
    assert scores.credit.tolist() == [0.5] * len(task.eval)
    assert (scores.accuracy, scores.tied) == (0.5, len(task.eval))


def test_a_tie_among_wrong_choices_is_wrong() -> None:
    table = torch.tensor([[0.0, 0.0, -1.0], [0.0, 0.0, -1.0], [-2.0, -1.0, -1.5]])
    gold = torch.tensor([2, 0, 1])
    assert likeliest(table).tolist() == [-1, -1, 1]
    assert credit(table, gold).tolist() == [0.0, 0.5, 1.0]
