"""What a generated text names, and how tokens are drawn."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch

from heft_pipeline.adapters.adapted import adapted
from heft_pipeline.data.prompts import Example
from heft_pipeline.errors import UserError
from heft_pipeline.models.base_model import load_base
from heft_pipeline.plan.graph import Run
from heft_pipeline.scoring.generate import Decoding, _process, decoding, named
from heft_pipeline.scoring.score import score
from heft_pipeline.stage.cached_inputs import cached_task
from heft_pipeline.stage.preflight import preflight
from heft_pipeline.stage.run_stage import run_stage
from heft_pipeline.store.stage_folders import Store
from launch.attempt import said_accuracy

ComposeRun = Callable[..., Run]
CPU = torch.device("cpu")
GENERATE = ["evaluation.mode=generate", "evaluation.max_new_tokens=3"]


@pytest.mark.parametrize(
    ("text", "begins", "contains"),
    [
        ("Yes", 0, 0),
        (" Yes, it is", 0, 0),
        ("\nNo.", 1, 1),
        ("The answer is No", -1, 1),
        ("No, not Yes", 1, 0),
        ("Not sure", 2, 2),
        ("Nothing", -1, 1),
        ("Yesterday", -1, 0),
        ("yes", -1, -1),
        ("", -1, -1),
    ],
)
def test_what_a_text_names(text: str, begins: int, contains: int) -> None:
    """``contains`` reads like the HEFT paper's script: the first choice that occurs anywhere."""
    choices = [" Yes", " No", " Not sure"]
    assert named(text, choices, "begins") == begins
    assert named(text, choices if contains == 2 else choices[:2], "contains") in (contains, 1)
    if contains < 2:
        assert named(text, choices[:2], "contains") == contains


def test_words_end_where_their_script_ends_them() -> None:
    assert named("是的", ["是", "不是"], "begins") == 0
    assert named("даже если", ["да", "нет"], "begins") == -1
    assert named("да, если", ["да", "нет"], "begins") == 0


def test_a_text_is_compared_with_answers_as_they_are_written(
    compose_run: ComposeRun, small: list[str]
) -> None:
    asked = ["evaluation.mode=generate", "evaluation.answer='w1 {choice}'"]
    stage = compose_run(*small, *asked, "method=lora", "lora.answer='w1 w2 w3 {choice}'").last
    how = decoding(cached_task(stage), stage.data, stage.evaluation, 0)
    assert how is not None
    example = cached_task(stage).eval[0]
    said = [how.read(text, example).choice for text in ("w1  no", "no", "w1  yes w2", "yes")]
    assert said == [1, -1, 0, -1]
    assert how.tokens == 4, "as many as the answers that were trained on"
    anywhere = compose_run(*small, *asked, "evaluation.match=contains").last
    how = decoding(cached_task(anywhere), anywhere.data, anywhere.evaluation, 0)
    assert how is not None
    said = [how.read(text, example).choice for text in ("w1 no", "no", "w2 yes w1 no", "w1")]
    assert said == [1, 1, 0, -1]


def test_memory_that_runs_out_halves_the_batch(
    compose_run: ComposeRun, small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = compose_run(*small, *GENERATE, "evaluation.temperature=1").last
    task, base = cached_task(stage), load_base(stage.model, CPU)
    how = decoding(task, stage.data, stage.evaluation, 0)
    with adapted(base, []) as model:
        expected = score(model, task.eval, batch_size=50, decoding=how)
        real, sizes = base.model.forward, []

        def sometimes(*_: Any, input_ids: torch.Tensor, **more: Any) -> Any:
            sizes.append(len(input_ids))
            # Prompts, and later steps of what was already begun.
            if len(input_ids) > (12 if input_ids.shape[1] > 1 else 5):
                raise torch.OutOfMemoryError("out of memory")
            return real(input_ids=input_ids, **more)

        monkeypatch.setattr(base.model, "forward", sometimes)
        found = score(model, task.eval, batch_size=50, decoding=how)
    assert max(sizes) > 12
    assert found.texts == expected.texts
    assert found.predictions.tolist() == expected.predictions.tolist()


def test_more_tokens_than_the_model_reads_are_refused_beforehand(
    compose_run: ComposeRun, small: list[str]
) -> None:
    asked = ["evaluation.mode=generate", "evaluation.max_new_tokens=120"]
    with pytest.raises(UserError, match=r"data\.max_prompt_tokens"):
        preflight(compose_run(*small, *asked, "method=lora").stages)


def rows(count: int) -> list[Example]:
    return [Example(f"validation/{n}", (8,), 0) for n in range(count)]


def test_drawn_tokens_have_the_distribution_that_was_asked_for() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0]).repeat(4000, 1)

    def drawn(**how: Any) -> list[int]:
        process = _process(rows(4000), Decoding(1, temperature=0.7, **how))
        tokens: list[int] = process([(i, 0) for i in range(4000)], logits).argmax(dim=1).tolist()
        return tokens

    counts = Counter(drawn(seed=3))
    expected = (logits[0] / 0.7).softmax(dim=0)
    for token in range(4):
        assert counts[token] / 4000 == pytest.approx(expected[token].item(), abs=0.025)
    assert set(drawn(top_p=0.9, top_k=3)) == {0, 1}
    assert set(drawn(top_k=1)) == {0}


def test_a_text_that_is_begun_again_draws_the_same_tokens() -> None:
    process, logits = _process(rows(3), Decoding(1, temperature=1.0)), torch.zeros(2, 9)
    first = process([(0, 0), (2, 0)], logits)
    second = process([(2, 1), (0, 1)], logits)
    assert not torch.equal(first, second.flip(0))
    assert torch.equal(process([(2, 0), (0, 0)], logits), first.flip(0))
    assert torch.equal(process([(0, 1), (2, 1)], logits), second.flip(0))


def test_what_is_drawn_depends_on_the_seed_and_the_row_only(
    compose_run: ComposeRun, small: list[str]
) -> None:
    sampled = [*GENERATE, "evaluation.temperature=2.0"]
    stage = compose_run(*small, *sampled).last
    task, base = cached_task(stage), load_base(stage.model, CPU)
    found = []
    with adapted(base, []) as model:
        for size, seed in ((50, 0), (7, 0), (50, 1)):
            how = decoding(task, stage.data, stage.evaluation, seed)
            found.append(score(model, task.eval, batch_size=size, decoding=how))
    one, same, other = (scores.predictions.tolist() for scores in found)
    assert one == same
    assert one != other


def test_text_ends_at_the_end_token_and_what_names_nothing_is_counted(
    compose_run: ComposeRun, small: list[str], store: Store
) -> None:
    asked = [*small, "method.stages=[]", *GENERATE]
    begins = run_stage(compose_run(*asked).last, store).result
    contains = run_stage(compose_run(*asked, "evaluation.match=contains").last, store).result
    assert 0 < contains["unmatched_rows"] <= begins["unmatched_rows"] <= 50
    assert f"({begins['unmatched_rows']} of 50 texts name no choice)" in said_accuracy(begins)
    scored = run_stage(compose_run(*small, "method.stages=[]").last, store).result
    assert begins["logprob_accuracy"] == scored["accuracy"] == scored["logprob_accuracy"]
    assert scored["unmatched_rows"] == 0


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["evaluation.temperature=1"], r"temperature has no effect with evaluation\.mode=logprob"),
        (["evaluation.max_new_tokens=5"], "max_new_tokens has no effect"),
        ([*GENERATE, "evaluation.top_p=0.9"], r"top_p has no effect on greedy .*temperature"),
    ],
)
def test_settings_without_an_effect_are_refused(
    compose_run: ComposeRun, small: list[str], asked: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        compose_run(*small, *asked)
