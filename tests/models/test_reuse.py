"""Reuse of frozen activations, and R computed for all layers at once, against doing neither."""

import resource
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from heft_pipeline.adapters.adapted import adapted
from heft_pipeline.adapters.reft.interventions import Interventions
from heft_pipeline.adapters.reft.rotations import computed_once
from heft_pipeline.adapters.reft.settings import ReftSettings
from heft_pipeline.data.batches import AnsweredPrompt, collate
from heft_pipeline.errors import Interrupted
from heft_pipeline.models.reuse import kept_activations
from heft_pipeline.models.reuse.estimate import Choice, kept_key, kept_sizes
from heft_pipeline.models.reuse.frozen_prompts import FrozenPrompts
from heft_pipeline.models.reuse.kept_activations import Kept
from heft_pipeline.models.reuse.start_reuse import differs
from heft_pipeline.plan.graph import Run
from heft_pipeline.stage.cached_inputs import cached_base
from heft_pipeline.stage.forecast import Forecast, forecasts
from heft_pipeline.stage.run_stage import run_stage
from heft_pipeline.store.stage_folders import Store
from heft_pipeline.training.activation_reuse import reusable, reuse_activations
from heft_pipeline.training.loss import answer_loss
from heft_pipeline.training.metrics import read_metrics
from tests.models.tiny_architectures import save_tiny

ComposeRun = Callable[..., Run]
SUFFIX = ["reft=suffix", "reft.positions=l3", "training.log_every_steps=1", "epochs=3"]


def chosen(run: Run, num_layers: int) -> Choice:
    """What a run's last stage reuses."""
    stage = run.last
    parents = [adapter for parent in stage.chain[:-1] for adapter in parent.adapters]
    assert stage.training is not None
    return reusable(stage.adapters, parents, num_layers, stage.training)


def losses(store: Store, run: Run) -> list[float]:
    lines = read_metrics(store.folder(run.last.fingerprint) / "metrics.jsonl")
    return [line["loss"] for line in lines if line["event"] == "step"]


@pytest.mark.parametrize("method", ["reft", "heft"])
@pytest.mark.parametrize(
    ("more", "saved"),
    [
        ((), 0.5),
        (("reft.layers=[1]",), 0.5),
        (("reft.layers=[1]", "reft.positions=l1", "reft.end_token=true"), 0.5),
        (("reft.layers=[2]",), 0.4),  # the last: no keys and values above it
        (("reft.batch_size=7",), 0.5),
        (("reft.positions=f2+l2",), 0.02),
        (("reft.positions=f2+l2", "reft.layers=[1,2]"), 0.15),
    ],
)
def test_a_stage_has_the_same_losses_with_reuse_as_without(
    compose_run: ComposeRun,
    small: list[str],
    store: Store,
    method: str,
    more: tuple[str, ...],
    saved: float,
) -> None:
    asked = [*small, f"method={method}", *SUFFIX, *more]
    with_reuse = compose_run(*asked)
    without = compose_run(*asked, "reft.reuse=off")
    for stage in (*with_reuse.stages, without.last):
        run_stage(stage, store)
    assert losses(store, with_reuse) == pytest.approx(losses(store, without), abs=1e-5)
    kept, all_computed = (store.result(r.last.fingerprint) or {} for r in (with_reuse, without))
    assert "120 of 120 prompts kept" in kept["reuse"]
    assert ("kept is the output of layer 1" in kept["reuse"]) == any(
        "budget" in one for one in more
    )
    assert "reft.reuse=off" in all_computed["reuse"]
    assert kept["train_tflop"] < all_computed["train_tflop"] * (1 - saved)
    assert kept["accuracy"] == pytest.approx(all_computed["accuracy"], abs=0.041)


@pytest.mark.parametrize("more", [[], ["reft.end_token=true", "reft.layers=[0,2]"]])
def test_where_keys_and_values_are_too_large_the_lower_layers_output_is_kept(
    compose_run: ComposeRun, small: list[str], store: Store, tmp_path: Path, more: list[str]
) -> None:
    """Without grouped attention, they are six times as large; the forecast knows it too."""
    folder = save_tiny("llama", tmp_path / "llama", num_key_value_heads=4)
    asked = [*small, f"model.id={folder}", "method=reft", *SUFFIX, "reft.layers=[0]", *more]
    kept, off = (
        compose_run(*asked, "reft.reuse_budget_gib=5e-4"),
        compose_run(*asked, "reft.reuse=off"),
    )
    with_reuse, without = (run_stage(run.last, store).result for run in (kept, off))
    assert losses(store, kept) == pytest.approx(losses(store, off), abs=1e-5)
    assert "120 of 120 prompts kept in" in with_reuse["reuse"]
    assert "kept is the output of layer 0 for all tokens" in with_reuse["reuse"]
    assert with_reuse["train_tflop"] < 0.8 * without["train_tflop"]
    ((_, expected),) = forecasts([kept.last])
    assert isinstance(expected, Forecast)
    assert expected.train_flop / 1e12 == pytest.approx(with_reuse["train_tflop"], rel=1e-9)
    assert expected.kept_instead in with_reuse["reuse"]


@pytest.mark.parametrize("asked", [["reft.positions=l1"], ["reft.positions=f1+l1"]])
def test_a_model_without_attention_reuses_its_lower_layers_only(
    compose_run: ComposeRun, small: list[str], store: Store, tmp_path: Path, asked: list[str]
) -> None:
    folder = save_tiny("mamba", tmp_path / "mamba")
    run = compose_run(*small, f"model.id={folder}", "method=reft", "reft.layers=[2]", *asked)
    result = run_stage(run.last, store).result
    assert "120 of 120 prompts kept" in result["reuse"] or "recomputed" in result["reuse"]
    ((_, expected),) = forecasts([run.last])
    assert isinstance(expected, Forecast)
    lora = compose_run(*small, f"model.id={folder}", "method=lora", "lora.target_modules=[in_proj]")
    ((_, expected),) = forecasts([lora.last])
    assert isinstance(expected, Forecast)


@pytest.mark.parametrize("lengths", [(6, 9, 7), (5, 9, 2), (3, 1, 2)])
@pytest.mark.parametrize("more", [SUFFIX, ["reft.positions=f1+l2", "reft.layers=[1,2]"]])
def test_answers_and_prompts_of_any_length_have_the_same_gradients(
    compose_run: ComposeRun,
    small: list[str],
    tmp_path: Path,
    more: list[str],
    lengths: tuple[int, ...],
) -> None:
    """Some prompts are shorter than the positions, so that only a part of them is edited."""
    run = compose_run(*small, "method=reft", *more)
    base = cached_base(run.last.model, torch.device("cpu"))
    prompts = [tuple(range(8, 8 + n)) for n in lengths]
    answers = [(3,), (4, 5, 6), (3, 4)]
    sequences = [AnsweredPrompt(p, a) for p, a in zip(prompts, answers, strict=True)]
    batch = collate(sequences, base.pad_token_id)

    def gradients(reuse: bool) -> tuple[float, list[torch.Tensor]]:
        with adapted(base, []) as model:
            torch.manual_seed(0)
            model.add(run.last.adapters)
            if reuse:
                assert run.last.training is not None
                said = reuse_activations(
                    model,
                    run.last.training,
                    sequences,
                    tmp_path,
                    advance=_nothing,
                    on_pass=_nothing,
                )
                assert "3 of 3 prompts kept" in said
            with model.between_steps():
                loss = answer_loss(model.logits(batch), batch)
                loss.backward()
            found = [p.grad for p in model.parameters().values()]
        return loss.item(), [g for g in found if g is not None]

    loss, found = gradients(reuse=True)
    expected_loss, expected = gradients(reuse=False)
    assert loss == pytest.approx(expected_loss, abs=1e-5)
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-4)


def test_what_finds_no_room_is_computed_again_or_read_from_a_file(
    compose_run: ComposeRun, small: list[str], tmp_path: Path
) -> None:
    run = compose_run(*small, "method=reft", *SUFFIX)
    base = cached_base(run.last.model, torch.device("cpu"))
    prompts = [tuple(range(8, 8 + n)) for n in range(4, 14)]
    sequences = [AnsweredPrompt(prompt, (3,)) for prompt in prompts]

    choice = Choice(3, 0, "")
    keys = [kept_key(sequence, choice) for sequence in sequences]

    def frozen(budget: float, folder: Path | None = None, ram: float = 1e9) -> FrozenPrompts:
        kept = Kept(base.device, budget, folder, operations=1.0)
        kept._ram_left = ram
        made = FrozenPrompts(base, choice, kept)
        sizes = kept_sizes(base.model.config, len(base.layers), 4, choice)
        size = partial(sizes.bytes, keys_values=True)
        assert kept.fill(keys, 64, made.compute, _nothing, size=size) == 10
        return made

    everything = frozen(1e9)
    assert len(everything.kept) == 10
    some = frozen(everything.kept.bytes / 2)
    assert 0 < len(some.kept) < 10
    filed = frozen(1e9, folder=tmp_path, ram=0)
    assert len(filed.kept) == 10
    assert filed.kept._file.seek(0, 2) == filed.kept.bytes
    assert not list(tmp_path.iterdir()), "the file has no name, so that nothing is left behind"
    again = frozen(1e9, folder=tmp_path, ram=0)  # another process's, as it were
    assert again.kept._file.fileno() != filed.kept._file.fileno()
    nowhere = frozen(1e9, ram=0)
    assert len(nowhere.kept) == 0
    backwards = keys[::-1]
    expected, mask = everything.cache(backwards)
    assert mask.sum(dim=1).tolist() == [len(p) - 3 for p in prompts[::-1]]
    for other in (some, filed, nowhere):
        cache, found = other.cache(backwards)
        assert torch.equal(found, mask)
        if other is not some:  # what is free changes no bit; the budget is a setting
            for one, two in zip(cache.layers, expected.layers, strict=True):
                assert torch.equal(one.keys, two.keys)
                assert torch.equal(one.values, two.values)
        for one, two in zip(cache.layers, expected.layers, strict=True):
            assert torch.allclose(one.keys, two.keys, atol=1e-5)
            assert torch.allclose(one.values, two.values, atol=1e-5)


@pytest.mark.parametrize("more", [[], ["reft.positions=l3", "reft.layers=[1]"]])
def test_what_is_free_in_memory_decides_no_bit_of_a_result(
    compose_run: ComposeRun,
    small: list[str],
    tmp_path: Path,
    more: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage = compose_run(*small, "method=reft", *SUFFIX, *more).last
    weights, reused = [], []
    for number, (ram, disk) in enumerate([(1e9, 0.0), (2e5, 0.0), (0.0, 0.0), (2e5, 1e9)]):
        monkeypatch.setattr(kept_activations, "_free_bytes", lambda _, ram=ram: (0.0, ram))
        monkeypatch.setattr(Kept, "_free_disk", lambda _, disk=disk: disk)
        store = Store(tmp_path / str(number))
        reused.append(run_stage(stage, store).result["reuse"])
        weights.append((store.adapter(stage) / "reft.safetensors").read_bytes())
    assert "no room" not in reused[0] + reused[3] and "a file" in reused[3]
    assert "computed again at each use" in reused[1] and "computed again at each use" in reused[2]
    assert len(set(weights)) == 1


@pytest.mark.parametrize("more", [[], ["reft.positions=f2+l2", "reft.layers=[1]"]])
def test_a_resumed_stage_with_reuse_ends_bitwise_as_an_undisturbed_one(
    compose_run: ComposeRun, small: list[str], tmp_path: Path, more: list[str]
) -> None:
    stage = compose_run(*small, "method=reft", *SUFFIX, *more).last
    disturbed, undisturbed = Store(tmp_path / "one"), Store(tmp_path / "two")
    asked = 0

    def stop_in_the_second_epoch() -> bool:
        nonlocal asked
        asked += 1
        return asked == 7

    with pytest.raises(Interrupted):
        run_stage(stage, disturbed, should_stop=stop_in_the_second_epoch)
    assert run_stage(stage, disturbed).result["resumes"] == 1
    run_stage(stage, undisturbed)
    one, two = (
        (s.adapter(stage) / "reft.safetensors").read_bytes() for s in (disturbed, undisturbed)
    )
    assert one == two
    assert not list(disturbed.folder(stage.fingerprint).glob("checkpoint"))


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (["method=lora"], "LoRA changes"),
        (["method=joint", "reft=suffix"], "LoRA changes"),
        (["method=reft", "reft=suffix", "reft.reuse=off"], "reft.reuse=off"),
        (["method=reft", "reft=suffix", "reft.engine=pyreft"], "pyreft's engine"),
        (["method.stages=[reft,reft]", "reft=suffix"], "parent stage"),
    ],
)
def test_where_nothing_can_be_reused_the_reason_is_said(
    compose_run: ComposeRun, small: list[str], overrides: list[str], why: str
) -> None:
    choice = chosen(compose_run(*small, *overrides), num_layers=3)
    assert (choice.suffix, choice.layers) == (0, 0)
    assert why in choice.why


@pytest.mark.parametrize(
    ("overrides", "layers", "expected"),
    [
        (["reft=suffix"], 32, (7, 0)),
        (["reft=suffix", "training.gradient_checkpointing=true"], 4, (0, 1)),
        (["reft=suffix"], 4, (7, 1)),
        (["reft=suffix", "reft.loss=sequence"], 4, (0, 1)),
        (["reft=suffix", "reft.layers=[3]"], 4, (0, 4)),
        (["reft=suffix", "reft.layers=[15]", "reft.positions=l1"], 32, (1, 16)),
        ([], 30, (0, 0)),
        ([], 4, (0, 1)),
        (["reft.layers=[9,5]"], 30, (0, 6)),
        (["method.stages=[red,reft]", "reft=suffix"], 32, (7, 0)),
    ],
)
def test_what_is_reused_follows_from_positions_and_layers(
    compose_run: ComposeRun,
    small: list[str],
    overrides: list[str],
    layers: int,
    expected: tuple[int, int],
) -> None:
    """Above an edit of the last layer, there are no keys and values."""
    choice = chosen(compose_run(*small, "method=reft", *overrides), num_layers=layers)
    assert (choice.suffix, choice.layers) == expected


@pytest.mark.parametrize("kind", ["loreft", "consreft", "lobireft"])
def test_all_projections_at_once_are_torchs_own(
    compose_run: ComposeRun, small: list[str], kind: str
) -> None:
    (settings,) = compose_run(*small, "method=reft", f"reft.intervention={kind}").last.adapters
    assert isinstance(settings, ReftSettings)
    torch.manual_seed(0)
    adapter = Interventions(settings, hidden_size=32, num_layers=3)
    with torch.no_grad():  # away from where they begin
        for parameter in adapter.parameters():
            noise = 0.1 * torch.randn_like(parameter)
            parameter.add_(noise.tril(-1) if parameter.dim() == 2 else noise)
    direction = torch.randn(3, 32, settings.rank)

    def projections() -> torch.Tensor:
        layers: list[Any] = [i.rotate_layer for i in adapter.each().values()]
        return torch.stack([layer.weight for layer in layers])

    def gradients() -> list[torch.Tensor]:
        found = [p.grad.clone() for p in adapter.parameters() if p.grad is not None]
        adapter.zero_grad()
        return found

    own = projections()
    (own * direction).sum().backward()
    expected = gradients()
    with computed_once(list(adapter.each().values())):
        for _ in range(2):  # as two micro-batches would
            together = projections()
            (together * direction).sum().div(2).backward()
    assert torch.allclose(together, own, atol=1e-6)
    assert torch.allclose(together.mT @ together, torch.eye(settings.rank), atol=1e-5)
    for one, other in zip(gradients(), expected, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_a_difference_is_seen_below_a_large_offset_of_all_logits() -> None:
    """Raw logits near -100 would make 0.6 nats look small."""
    torch.manual_seed(0)
    logits = torch.randn(2, 1, 500)
    wrong = logits + 0.6 * torch.randn(2, 1, 500).sign()
    for offset in (0.0, -100.0):
        for dtype in (torch.float32, torch.bfloat16):
            assert differs(wrong + offset, logits + offset, dtype)
            assert not differs(logits + 3.0 + offset, logits + offset, dtype)
    assert differs(torch.full_like(logits, float("nan")), logits, torch.bfloat16)


def _nothing(*_: Any) -> None:
    pass


def test_a_file_of_activations_leaves_half_of_the_disk_to_others(
    compose_run: ComposeRun, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = _frozen(compose_run(*small, "method=reft", *SUFFIX))
    everything = made(None, 1e9)
    size = everything.kept.bytes
    free = SimpleNamespace(free=size)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    some = made(tmp_path, 0.0)
    assert 0 < some.kept.bytes <= size / 2
    assert some.kept._file.seek(0, 2) == some.kept.bytes


def test_a_file_of_activations_that_cannot_grow_is_cut_back_and_still_read(
    compose_run: ComposeRun, small: list[str], tmp_path: Path
) -> None:
    made = _frozen(compose_run(*small, "method=reft", *SUFFIX))
    everything = made(None, 1e9)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (everything.kept.bytes // 2, limit[1]))
    try:
        some = made(tmp_path, 0.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert 0 < len(some.kept) < len(everything.kept)
    assert some.kept._file.seek(0, 2) == some.kept.bytes, "what belongs to nothing is given back"
    keys = list(everything.kept._tensors)
    for one, two in zip(some.cache(keys)[0].layers, everything.cache(keys)[0].layers, strict=True):
        assert torch.allclose(one.keys, two.keys, atol=1e-5)


def _frozen(run: Run) -> Callable[[Path | None, float], FrozenPrompts]:
    """Ten prompts whose lower layers are kept in a folder's file, or in so much memory."""
    base = cached_base(run.last.model, torch.device("cpu"))
    choice = Choice(3, 0, "")
    prompts = [tuple(range(8, 8 + n)) for n in range(4, 14)]
    keys = [kept_key(AnsweredPrompt(prompt, (3,)), choice) for prompt in prompts]

    def made(folder: Path | None, ram: float) -> FrozenPrompts:
        kept = Kept(base.device, 1e9, folder, operations=1.0)
        kept._ram_left = ram
        frozen = FrozenPrompts(base, choice, kept)
        sizes = kept_sizes(base.model.config, len(base.layers), 4, choice)
        size = partial(sizes.bytes, keys_values=True)
        kept.fill(keys, 64, frozen.compute, _nothing, size=size)
        return frozen

    return made
