"""Forgetting: what is measured, against transformers and PEFT alone, and what it cannot break."""

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from heft_pipeline.adapters.adapted import adapted
from heft_pipeline.data import demo
from heft_pipeline.data.demo.held_out_text import held_out_text
from heft_pipeline.data.demo.language import passage_key
from heft_pipeline.data.demo.task import make_splits
from heft_pipeline.data.other_text import WINDOW_TOKENS, OtherText, chosen_text, text_note
from heft_pipeline.data.text_windows import text_windows
from heft_pipeline.errors import UserError
from heft_pipeline.models.base_model import load_base
from heft_pipeline.plan.graph import Run
from heft_pipeline.plan.stage_spec import StageSpec
from heft_pipeline.stage import forgetting
from heft_pipeline.stage.forgetting import measure_finished, window_losses
from heft_pipeline.stage.frozen_parents import finished_adapters
from heft_pipeline.stage.run_stage import run_stage
from heft_pipeline.store.stage_folders import Store
from tests.conftest import WORDS

ComposeRun = Callable[..., Run]


@pytest.fixture
def text(tmp_path: Path) -> OtherText:
    return made_text(tmp_path / "other.txt", seed=1)


def made_text(path: Path, seed: int, words: int = 700) -> OtherText:
    source = random.Random(seed)
    path.write_text(" ".join(source.choice(WORDS) for _ in range(words)))
    found = chosen_text(text_note(str(path)), "any")
    assert found is not None
    return found


def losses(store: Store, stage: StageSpec, text: OtherText) -> list[float]:
    entry = store.text_losses(stage.fingerprint)[text.digest]
    assert "why" not in entry, entry
    found: list[float] = entry["losses"]
    return found


def by_hand(model: Any, tokenizer: Any, text: OtherText) -> list[float]:
    """The mean loss of each window's second half, one window at a time."""
    ids = tokenizer(text.read(), add_special_tokens=False).input_ids
    found = []
    for start in range(0, len(ids) - WINDOW_TOKENS + 2, WINDOW_TOKENS - 1):
        window = torch.tensor([[tokenizer.bos_token_id, *ids[start : start + WINDOW_TOKENS - 1]]])
        with torch.no_grad():
            log_probs = model(window).logits[0].log_softmax(-1)
        half = range(WINDOW_TOKENS // 2, WINDOW_TOKENS)
        found.append(-sum(log_probs[i - 1, window[0, i]].item() for i in half) / len(half))
    return found


def test_a_lora_stages_loss_equals_peft_alone_and_the_untouched_models_transformers(
    compose_run: ComposeRun, small: list[str], small_model: Path, store: Store, text: OtherText
) -> None:
    lora = compose_run(*small, "method=lora", "epochs=1").last
    base = compose_run(*small, "method.stages=[]").last
    for stage in (lora, base):
        run_stage(stage, store, text=text)
    tokenizer = AutoTokenizer.from_pretrained(small_model)
    plain = AutoModelForCausalLM.from_pretrained(small_model, dtype=torch.float32).eval()
    expected = by_hand(plain, tokenizer, text)
    assert len(expected) == 700 // (WINDOW_TOKENS - 1)
    assert losses(store, base, text) == pytest.approx(expected, abs=1e-5)
    trained = PeftModel.from_pretrained(plain, str(store.adapter(lora))).eval()
    changed = by_hand(trained, tokenizer, text)
    assert losses(store, lora, text) == pytest.approx(changed, abs=1e-5)
    assert max(abs(a - b) for a, b in zip(expected, changed, strict=True)) > 1e-3


def test_an_untouched_model_has_forgotten_nothing(
    compose_run: ComposeRun, small: list[str], store: Store, text: OtherText
) -> None:
    """Also after other stages have been on the same model in the same process."""
    base = compose_run(*small, "method.stages=[]").last
    run_stage(base, store, text=text)
    before = losses(store, base, text)
    run_stage(compose_run(*small, "method=heft", "epochs=1").stages[0], store, text=text)
    assert measure_finished(base, store, text) == ""
    assert losses(store, base, text) == before


def test_a_reft_stages_edits_act_on_the_prompt_half_of_a_window_only(
    compose_run: ComposeRun, small: list[str], store: Store, text: OtherText
) -> None:
    """f7+l7: the first 7 and the last 7 tokens of the first half, as on the task's prompts."""
    stage = compose_run(*small, "method=reft", "epochs=1", "reft.positions=f7+l7").last
    run_stage(stage, store, text=text)
    base = load_base(stage.model, torch.device("cpu"))
    windows = text_windows(text, base.tokenizer, 68)
    changed: set[int] = set()
    with adapted(base, finished_adapters(stage.chain, store)) as model:
        (adapter,) = model.adapters

        def see(_module: Any, _arguments: Any, output: Any) -> None:
            states.append((output[0] if isinstance(output, tuple) else output).clone())

        states: list[torch.Tensor] = []
        hook = base.layers[0].register_forward_hook(see)  # after the adapter's own hook
        window_losses(model, windows[:1])
        adapter.remove()
        model.parents.clear()
        window_losses(model, windows[:1])
        hook.remove()
        apart = (states[0] - states[1]).abs().amax(dim=-1)[0]
        changed = {int(i) for i in apart.nonzero().flatten()}
    half = WINDOW_TOKENS // 2
    assert changed == {*range(7), *range(half - 7, half)}
    assert {len(window.prompt) for window in windows} == {half}


def test_a_finished_stage_is_measured_without_training_and_its_result_stays_as_it_was(
    compose_run: ComposeRun,
    small: list[str],
    tmp_path: Path,
    text: OtherText,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = compose_run(*small, "method=heft", "epochs=1")
    fresh, finished = Store(tmp_path / "fresh"), Store(tmp_path / "finished")
    for stage in run.stages:
        run_stage(stage, fresh, text=text)
        run_stage(stage, finished)
    assert not finished.text_losses(run.last.fingerprint)

    def files() -> dict[str, bytes]:
        paths = [p for p in finished.output_dir.glob("stages/*/**/*") if p.is_file()]
        return {str(p): p.read_bytes() for p in paths if p.name != "forgetting.json"}

    before = files()
    monkeypatch.setattr("heft_pipeline.training.loop.Trainer.run", None)  # training would fail
    for stage in run.stages:
        assert measure_finished(stage, finished, text) == ""
        expected = losses(fresh, stage, text)
        assert losses(finished, stage, text) == pytest.approx(expected, abs=1e-6)
    assert files() == before


def test_parents_that_are_merged_in_training_are_merged_when_measured_later(
    compose_run: ComposeRun, small: list[str], store: Store, text: OtherText
) -> None:
    run = compose_run(*small, "method=heft", "epochs=1", "reft.merge_parent=true")
    for stage in run.stages:
        run_stage(stage, store, text=text)
    before = losses(store, run.last, text)
    assert measure_finished(run.last, store, text) == ""
    assert losses(store, run.last, text) == before


def test_another_text_has_another_digest_and_both_are_kept(
    compose_run: ComposeRun, small: list[str], store: Store, text: OtherText, tmp_path: Path
) -> None:
    base = compose_run(*small, "method.stages=[]").last
    run_stage(base, store, text=text)
    other = made_text(tmp_path / "second.txt", seed=2)
    assert other.digest != text.digest
    assert measure_finished(base, store, other) == ""
    assert set(store.text_losses(base.fingerprint)) == {text.digest, other.digest}
    assert losses(store, base, text) != losses(store, base, other)
    copy = made_text(tmp_path / "copy.txt", seed=1)
    assert copy.digest == text.digest, "a text is its content, wherever it lies"


def test_a_failure_costs_no_finished_stage_and_is_noted_with_its_reason(
    compose_run: ComposeRun,
    small: list[str],
    store: Store,
    text: OtherText,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("the GPU fell off\nand more")

    monkeypatch.setattr(forgetting, "window_losses", broken)
    stage = compose_run(*small, "method.stages=[]").last
    outcome = run_stage(stage, store, text=text)
    assert store.result(stage.fingerprint) == outcome.result
    entry = store.text_losses(stage.fingerprint)[text.digest]
    assert entry["why"] == "RuntimeError: the GPU fell off"
    log = (store.folder(stage.fingerprint) / "stage.log").read_text()
    assert "other.txt was not measured: the GPU fell off" in log
    assert "Traceback" in log


def test_a_text_that_ended_a_process_does_not_end_the_next_one(
    compose_run: ComposeRun,
    small: list[str],
    store: Store,
    text: OtherText,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def killed(*_: Any) -> Any:
        raise KeyboardInterrupt  # like a kill, it is no Exception

    stage = compose_run(*small, "method.stages=[]").last
    monkeypatch.setattr(forgetting, "window_losses", killed)
    with pytest.raises(KeyboardInterrupt):
        run_stage(stage, store, text=text)
    assert not store.is_complete(stage.fingerprint)
    run_stage(stage, store, text=text)
    assert "ended before it was done" in store.text_losses(stage.fingerprint)[text.digest]["why"]
    monkeypatch.undo()
    assert measure_finished(stage, store, text) == "", "it is tried again when somebody asks"
    assert losses(store, stage, text)


def test_a_text_that_changes_is_not_measured_under_its_old_digest(
    compose_run: ComposeRun, small: list[str], store: Store, text: OtherText
) -> None:
    Path(text.path).write_text("w1 " * 700)
    stage = compose_run(*small, "method.stages=[]").last
    run_stage(stage, store, text=text)
    why = store.text_losses(stage.fingerprint)[text.digest]["why"]
    assert "has changed since the sweep was planned" in why


def test_windows_begin_with_the_tokenizers_bos_and_read_special_tokens_as_text(
    small_model: Path, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(small_model)
    windows = text_windows(made_text(tmp_path / "long.txt", 1, 40_000), tokenizer, 68)
    assert {window.prompt[0] for window in windows} == {tokenizer.bos_token_id}
    assert {len(w.prompt) + len(w.answer) for w in windows} == {WINDOW_TOKENS}
    assert len(windows) == 256, "of a long text, windows from all over it are read"
    assert sum(tokenizer.bos_token_id in window.prompt[1:] for window in windows) == 0


@pytest.mark.parametrize(
    ("words", "limits", "said"),
    [
        (["w1"] * 200, (68, None), "has 200 tokens, and two windows need 254"),
        (["w1"] * 400, (68, 100), "has 128 tokens and the model reads 100"),
        (["w59"] * 400, (60, None), "has embeddings for tokens 0 to 59"),
        (["w1", "strange"] * 300, (68, None), "does not know 50% of the tokens"),
    ],
)
def test_a_text_that_a_model_cannot_be_measured_on_is_one_message(
    small_model: Path,
    tmp_path: Path,
    words: list[str],
    limits: tuple[int, int | None],
    said: str,
) -> None:
    path = tmp_path / "bad.txt"
    path.write_text(" ".join(words))
    text = chosen_text(text_note(str(path)), "any")
    assert text is not None
    with pytest.raises(UserError, match=said):
        text_windows(text, AutoTokenizer.from_pretrained(small_model), *limits)


def test_the_shipped_model_reads_its_own_language_and_others_read_english() -> None:
    note = text_note("builtin")
    own, other = (chosen_text(note, model) for model in (str(demo.MODEL), "gpt2"))
    assert own is not None and other is not None
    assert own.name == "held_out_text.txt"
    assert other.name == "everyday_english.txt"
    windows = text_windows(own, AutoTokenizer.from_pretrained(demo.MODEL), 64, 512)
    assert len(windows) == 32
    assert dataclasses.replace(own, name="x").digest == own.digest
    assert chosen_text(text_note("off"), "gpt2") is None


def test_the_held_out_text_holds_no_passage_of_the_task_and_no_question() -> None:
    words = set(demo.HELD_OUT_TEXT.read_text().split())
    assert not words & {"question", "answer", "ask", "reply", "yes", "no", "?", "[EOS]"}
    assert {"note", "claim", "verdict"} <= words
    _, passages = make_splits(demo.SEED)
    assert held_out_text(demo.SEED, passages) == demo.HELD_OUT_TEXT.read_text()
    for line in demo.HELD_OUT_TEXT.read_text().splitlines():
        sentences = line.split(" . ")
        assert not any(passage_key(sentences[:n]) in passages for n in range(3, 7))
