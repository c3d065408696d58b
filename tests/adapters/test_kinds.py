"""What every kind of adapter must do, and that nobody else knows which kinds there are."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from heft_pipeline.adapters.adapted import adapted
from heft_pipeline.adapters.kind import adapter_folder, kinds, kinds_of
from heft_pipeline.data.batches import AnsweredPrompt, collate
from heft_pipeline.errors import Interrupted, UserError
from heft_pipeline.plan.graph import Run
from heft_pipeline.stage.cached_inputs import cached_base, cached_task
from heft_pipeline.stage.run_stage import run_stage
from heft_pipeline.store.stage_folders import Store

ComposeRun = Callable[..., Run]
PACKAGE = Path(__file__).parents[2] / "heft_pipeline"
#: Where kinds may be named: the kinds themselves, the reference, which is plain PEFT and pyreft,
#: and the names of methods.
MAY_NAME_KINDS = {"reference.py", "settings/schema.py"}


def test_every_folder_is_a_kind() -> None:
    assert list(kinds()) == ["lora", "red", "reft"]
    for name, settings in kinds().items():
        assert settings.kind == name
        assert settings.title and settings.__doc__
        assert settings.init_files or "start_files" in vars(settings)


def test_the_rest_of_the_code_names_no_kind() -> None:
    """Comparing with a kind's name, or reading a kind's section, is what the kind is asked for."""
    names = "|".join(kinds())
    pattern = re.compile(
        rf"""(kind\w* *(==|!=|in) *\(?["']({names}|joint))|\.({names})\.\w|\.({names})\b(?! *=)"""
    )
    named = []
    for root in (PACKAGE, PACKAGE.parent / "launch"):
        for path in root.rglob("*.py"):
            inside = path.relative_to(root).as_posix()
            if inside.startswith("adapters/") or inside in MAY_NAME_KINDS:
                continue
            for number, line in enumerate(path.read_text().splitlines(), start=1):
                if "import" not in line and not line.strip().startswith("#"):
                    code = re.sub(r'(?<!f)"[^"{]*"', '""', line)  # text for people may name them
                    if pattern.search(code):
                        named.append(f"{inside}:{number}: {line.strip()}")
    assert not named, "\n".join(named)


def test_a_stage_names_kinds_in_any_order_and_each_once() -> None:
    assert kinds_of("reft+lora") == kinds_of("lora+reft") == ("lora", "reft")
    with pytest.raises(UserError, match=r"method\.stages=lora\+lora names a kind .* twice"):
        kinds_of("lora+lora")
    with pytest.raises(UserError, match=r"method\.stages=prefix is not one of lora, red, reft"):
        kinds_of("prefix")


@pytest.mark.parametrize("stages", [*kinds(), "lora+reft", "lora+red+reft"])
def test_a_saved_adapter_gives_the_logits_it_was_trained_to_give(
    compose_run: ComposeRun, small: list[str], store: Store, stages: str
) -> None:
    """What the store's files hold is all there is to an adapter."""
    stage = compose_run(
        *small, f"method.stages=[{stages}]", "epochs=2", "red.learning_rate=0.1"
    ).last
    result = run_stage(stage, store).result
    base = cached_base(stage.model, torch.device("cpu"))
    task = cached_task(stage)
    sequences = [AnsweredPrompt(e.prompt, (3,)) for e in task.eval]
    batch = collate(sequences, base.pad_token_id)
    folder = store.adapter(stage)
    parts = [(a, adapter_folder(folder, a, stage.adapters)) for a in stage.adapters]
    with adapted(base, []) as model, torch.no_grad():
        untouched = model.logits(batch)
    with adapted(base, parts) as model, torch.no_grad():
        logits = model.logits(batch)[:, -1].log_softmax(dim=-1)
        assert not any(p.requires_grad for a in model.adapters for p in a.parameters().values())
    with adapted(base, []) as model, torch.no_grad():
        assert torch.equal(model.logits(batch), untouched), "the base model is itself again"
    choices = torch.tensor([c[0] for c in task.eval[0].choices])
    chosen = logits[:, choices].argmax(dim=1)
    gold = torch.tensor([e.gold for e in task.eval])
    assert (chosen == gold).double().mean().item() == result["accuracy"]
    assert result["trainable_params"] > 0


@pytest.mark.parametrize("stages", [*kinds(), "lora+red"])
def test_a_resumed_stage_ends_bitwise_as_an_undisturbed_one(
    compose_run: ComposeRun, small: list[str], tmp_path: Path, stages: str
) -> None:
    stage = compose_run(*small, f"method.stages=[{stages}]", "epochs=2").last
    disturbed, undisturbed = Store(tmp_path / "one"), Store(tmp_path / "two")
    asked = 0

    def stop_within_the_second_epoch() -> bool:
        nonlocal asked
        asked += 1
        return asked == 6

    with pytest.raises(Interrupted):
        run_stage(stage, disturbed, should_stop=stop_within_the_second_epoch)
    assert run_stage(stage, disturbed).result["resumes"] == 1
    run_stage(stage, undisturbed)
    files = sorted(undisturbed.adapter(stage).rglob("*.safetensors"))
    assert len(files) == len(stage.adapters)
    for file in files:
        other = disturbed.adapter(stage) / file.relative_to(undisturbed.adapter(stage))
        assert other.read_bytes() == file.read_bytes()


@pytest.mark.parametrize("kind", list(kinds()))
def test_a_stage_can_start_from_a_saved_adapter_and_is_another_stage(
    compose_run: ComposeRun, small: list[str], store: Store, tmp_path: Path, kind: str
) -> None:
    if kind == "reft":
        pytest.skip("it starts from pyreft's own format: tests/test_export.py")
    asked = [*small, f"method.stages=[{kind}]", "epochs=2", "training.log_every_steps=1"]
    first = compose_run(*asked).last
    run_stage(first, store)
    second = compose_run(*asked, f"{kind}.init_from={store.adapter(first)}").last
    assert second.fingerprint != first.fingerprint
    losses = [
        json.loads((store.folder(s.fingerprint) / "metrics.jsonl").read_text().splitlines()[0])
        for s in (first, second)
        if run_stage(s, store)
    ]
    assert losses[1]["loss"] < losses[0]["loss"]
    with pytest.raises(UserError, match=rf"{kind}\.init_from"):
        compose_run(*small, f"method.stages=[{kind}]", f"{kind}.init_from={tmp_path / 'none'}")
