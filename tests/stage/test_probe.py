"""What a model is tried on before it is trusted: tiny models that fail in one way each."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from heft_pipeline.adapters.adapted import adapted
from heft_pipeline.data.batches import AnsweredPrompt, collate
from heft_pipeline.data.prompts import Example
from heft_pipeline.errors import UserError
from heft_pipeline.models.base_model import Base, load_base
from heft_pipeline.models.forward import cache_name
from heft_pipeline.plan.graph import Run
from heft_pipeline.scoring.generate import Decoding, named
from heft_pipeline.scoring.score import score
from heft_pipeline.stage.cached_inputs import cached_base
from heft_pipeline.stage.probe import probe_adapters, probe_base
from heft_pipeline.stage.run_stage import run_stage
from heft_pipeline.store.stage_folders import Store
from tests.conftest import save_tokenizer
from tests.scoring.given_choices import with_choices

ComposeRun = Callable[..., Run]
CPU = torch.device("cpu")
SMALL = {
    "vocab_size": 68,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
BART = {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 64}
PROMPTS = [tuple(range(8, 8 + n)) for n in (14, 20, 33)]
CHOICES = ((5, 6), (7,))


@pytest.fixture
def made(
    tmp_path: Path, compose_run: ComposeRun, small_data: Path
) -> Callable[..., tuple[Path, list[str]]]:
    """Save a tiny random model of an architecture; gives its folder and the overrides for it."""

    def make(name: str, **more: Any) -> tuple[Path, list[str]]:
        torch.manual_seed(0)
        config = AutoConfig.for_model(name, **SMALL | more)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(8)  # differences show
        model.save_pretrained(tmp_path / name)
        save_tokenizer(tmp_path / name)
        prompt = "data.prompt='{passage} Question: {question} Answer:'"
        asked = [f"model.id={tmp_path / name}", "data=boolq", f"data.path={small_data}", prompt]
        return tmp_path / name, asked

    return make


def alone(folder: Path) -> torch.Tensor:
    """[prompts, choices] log-probabilities from transformers alone, one text at a time."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    table = torch.zeros(len(PROMPTS), len(CHOICES))
    for i, prompt in enumerate(PROMPTS):
        for j, choice in enumerate(CHOICES):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([prompt + choice])).logits[0]
            for k, token in enumerate(choice):
                table[i, j] += logits.log_softmax(-1)[len(prompt) + k - 1, token]
    return table


def greedy(folder: Path, prompt: tuple[int, ...]) -> tuple[int, ...]:
    """What a model writes after a prompt: two tokens, from transformers alone, without a cache."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    text = prompt
    for _ in range(2):
        with torch.no_grad():
            text = (*text, int(model(input_ids=torch.tensor([text])).logits[0, -1].argmax()))
    return text[len(prompt) :]


def words(base: Base, ids: tuple[int, ...]) -> str:
    """A continuation as text, up to the end token."""
    end = base.tokenizer.eos_token_id
    own = ids[: ids.index(end)] if end in ids else ids
    return str(base.tokenizer.decode(own, skip_special_tokens=True))


@pytest.mark.parametrize(
    ("name", "more", "padded"),
    [
        ("gpt2", {}, True),
        ("bart", BART, False),
        ("roberta", {"is_decoder": True}, False),
        ("recurrent_gemma", {"block_types": ["recurrent", "attention"]}, False),
    ],
)
def test_scores_are_the_models_own_whether_it_can_be_padded_or_not(
    made: Callable[..., tuple[Path, list[str]]],
    compose_run: ComposeRun,
    name: str,
    more: dict[str, Any],
    padded: bool,
) -> None:
    folder, asked = made(name, **more)
    base = probe_base(load_base(compose_run(*asked).last.model, CPU), "model.id=x")
    assert (base.no_padding == "") == padded
    examples = [Example(str(i), prompt, 0) for i, prompt in enumerate(PROMPTS)]
    texts = [greedy(folder, prompt) for prompt in PROMPTS]
    with adapted(base, []) as model:
        found = score(model, with_choices(examples, CHOICES), batch_size=3)
        # The choices are what the model writes after the first two prompts.
        choices = (texts[0], texts[1])
        written = tuple(words(base, choice) for choice in choices)
        decoding = Decoding(max(map(len, choices)))
        chosen = with_choices(examples, choices, written)
        generated = score(model, chosen, batch_size=3, decoding=decoding)
    torch.testing.assert_close(found.log_probabilities, alone(folder), rtol=1e-4, atol=1e-4)
    expected = [named(words(base, text), written, "begins") for text in texts]
    assert generated.predictions.tolist() == expected


def test_a_model_that_cannot_be_padded_is_trained_in_batches_of_equal_length(
    made: Callable[..., tuple[Path, list[str]]], compose_run: ComposeRun, store: Store
) -> None:
    _, asked = made("bart", **BART)
    run = compose_run(*asked, "method=reft", "epochs=1")
    result = run_stage(run.last, store).result
    assert "equal length" in result["padding"]
    assert result["padding"] in result["notes"]
    assert "equal length" in result["reuse"]


def test_batches_of_equal_length_have_the_gradients_of_each_sequence(
    small: list[str], compose_run: ComposeRun
) -> None:
    import dataclasses

    from heft_pipeline.training.loss import answer_loss

    run = compose_run(*small, "method=reft")
    base = cached_base(run.last.model, CPU)
    answers = [(3,), (4, 5, 6), (3, 4)]
    sequences = [AnsweredPrompt(p, a) for p, a in zip(PROMPTS, answers, strict=True)]
    batch = collate(sequences, base.pad_token_id)

    def gradients(base: Base) -> list[torch.Tensor]:
        with adapted(base, []) as model:
            torch.manual_seed(0)
            model.add(run.last.adapters)
            answer_loss(model.logits(batch), batch).backward()
            return [p.grad for p in model.parameters().values() if p.grad is not None]

    expected = gradients(base)
    found = gradients(dataclasses.replace(base, no_padding="so it is asked"))
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_a_model_that_sees_the_answer_is_refused(
    made: Callable[..., tuple[Path, list[str]]], compose_run: ComposeRun, name: str
) -> None:
    _, asked = made(name)
    base = load_base(compose_run(*asked).last.model, CPU)
    with pytest.raises(UserError, match=r"model\.id=x: .* is not causal.*is_decoder"):
        probe_base(base, "model.id=x")


def test_logits_that_are_not_numbers_are_refused(small: list[str], compose_run: ComposeRun) -> None:
    base = load_base(compose_run(*small).last.model, CPU)
    base.layers[1].register_forward_hook(lambda _, __, out: out * float("inf"))
    with pytest.raises(UserError, match="logits are NaN or infinite"):
        probe_base(base, "model.id=x")


def test_a_cache_that_the_model_continues_differently_is_not_used(
    small: list[str], compose_run: ComposeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that halves its cached values when it continues."""
    base = load_base(compose_run(*small).last.model, CPU)
    own = base.model.forward

    def forgetful(*args: Any, **kwargs: Any) -> Any:
        cache = kwargs.get(cache_name(base.model))
        if cache is not None and cache.get_seq_length():
            for layer in cache.layers:
                layer.values = layer.values * 0.5
        return own(*args, **kwargs)

    monkeypatch.setattr(base.model, "forward", forgetful)
    assert not base.no_cache
    probed = probe_base(base, "model.id=x")
    assert "cache" in probed.no_cache
    assert not probed.no_padding


def test_adapters_that_no_gradient_reaches_are_refused(
    small: list[str], compose_run: ComposeRun
) -> None:
    """The second layer's output is dropped, so that its edits do nothing."""
    run = compose_run(*small, "method=reft", "reft.layers=[0,1]")
    base = load_base(run.last.model, CPU)
    base.layers[1].register_forward_hook(lambda _, args, out: out * 0 + args[0].detach())
    with pytest.raises(UserError, match=r"reft\.layers: no gradient reaches .*interventions"):
        probe_adapters(base, [run.last.adapters])


def test_adapters_that_act_on_long_prompts_alone_are_not_refused(
    small: list[str], compose_run: ComposeRun
) -> None:
    run = compose_run(*small, "method=reft", "reft.layers=[0,1]")
    base = load_base(run.last.model, CPU)
    base.layers[1].register_forward_hook(
        lambda _, args, out: out if out.shape[1] > 64 else out * 0 + args[0].detach()
    )
    assert probe_adapters(base, [run.last.adapters]) == []


def test_edits_that_no_answer_depends_on_are_noted_or_refused(
    small: list[str], compose_run: ComposeRun
) -> None:
    """pyreft edits the last layer at the first positions too, where nothing can come of it."""
    run = compose_run(*small, "method=reft", "reft.share_weights=false")
    base = cached_base(run.last.model, CPU)
    (note,) = probe_adapters(base, [run.last.adapters])
    assert "3 of its 18 tensors edit the last layer" in note
    useless = compose_run(*small, "method=reft", "reft.layers=[2]", "reft.positions=f3")
    with pytest.raises(UserError, match="no gradient reaches 3 of the 3 tensors"):
        probe_adapters(base, [useless.last.adapters])


@pytest.mark.parametrize("method", ["lora", "reft", "heft", "red", "joint"])
def test_a_probe_leaves_the_model_as_it_was(
    small: list[str], compose_run: ComposeRun, method: str
) -> None:
    run = compose_run(*small, f"method={method}")
    base = cached_base(run.last.model, CPU)
    batch = collate([AnsweredPrompt(p, (5,)) for p in PROMPTS], base.pad_token_id)
    with adapted(base, []) as model, torch.no_grad():
        before = model.logits(batch)
    assert probe_adapters(base, [stage.adapters for stage in run.stages]) == []
    with adapted(base, []) as model, torch.no_grad():
        assert torch.equal(model.logits(batch), before)


def test_a_later_stages_plan_is_tried_before_the_first_is_trained(
    small: list[str], compose_run: ComposeRun, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from heft_pipeline.adapters.reft.interventions import Interventions

    monkeypatch.setattr(Interventions, "attach", lambda *_: [])
    run = compose_run(*small, "method=heft", "epochs=1", "reft.rank=3")
    with pytest.raises(UserError, match=r"reft\.layers: no gradient reaches"):
        run_stage(run.stages[0], store, upcoming=[run.last])
    assert not (store.folder(run.stages[0].fingerprint) / "metrics.jsonl").exists()
