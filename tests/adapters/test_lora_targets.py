"""Which modules LoRA adapts in each kind of architecture, and what is refused before compute."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from heft_pipeline.adapters.adapted import adapted
from heft_pipeline.data.batches import AnsweredPrompt, collate
from heft_pipeline.errors import UserError
from heft_pipeline.models.base_model import load_base
from heft_pipeline.plan.graph import Run
from heft_pipeline.stage.preflight import preflight
from heft_pipeline.stage.run_stage import run_stage
from heft_pipeline.store.stage_folders import Store
from tests.models.tiny_architectures import save_config, save_tiny, tiny_model

ComposeRun = Callable[..., Run]
CPU = torch.device("cpu")
IDS = torch.randint(3, 60, (2, 24), generator=torch.Generator().manual_seed(1))


def refusal(compose_run: ComposeRun, small: list[str], folder: Path, *asked: str) -> str:
    with pytest.raises(UserError) as refused:
        preflight([compose_run(*small, "method=lora", f"model.id={folder}", *asked).last])
    return str(refused.value)


@pytest.mark.parametrize(
    "name",
    ["llama", "gpt2", "opt", "mixtral", "qwen3_moe", "qwen2_moe", "qwen3_next", "gpt_oss",
     "deepseek_v3", "llama4_text", "mamba", "mamba2", "falcon_h1", "bamba", "jamba", "nemotron_h",
     "bart", "gemma3", "got_ocr2"],
)  # fmt: skip
def test_by_default_every_adapted_matrix_gets_a_gradient_and_plain_peft_loads_the_folder(
    compose_run: ComposeRun, small: list[str], tmp_path: Path, name: str
) -> None:
    stage = compose_run(*small, "method=lora", f"model.id={save_tiny(name, tmp_path / 'base')}",
                        "model.dtype=float32").last  # fmt: skip
    said = preflight([stage])
    base = load_base(stage.model, CPU)
    with adapted(base, []) as model:
        model.add(stage.adapters)
        assert [f"base: {note}" for note in model.notes()] == said
        for parameter in model.parameters().values():
            torch.nn.init.normal_(parameter, std=0.1)
        logits = base.model(IDS, use_cache=False).logits
        logits.float().square().mean().backward()
        without = [n for n, p in model.parameters().items() if p.grad is None or not p.grad.any()]
        assert not without and model.parameters()
        model.finish()
        logits = base.model(IDS, use_cache=False).logits
        model.save(tmp_path / "adapter")
    with adapted(base, [(stage.adapters[0], tmp_path / "adapter")]), torch.no_grad():
        torch.testing.assert_close(base.model(IDS, use_cache=False).logits, logits)
    plain = PeftModel.from_pretrained(tiny_model(name), tmp_path / "adapter").eval()
    with torch.no_grad():
        torch.testing.assert_close(plain(IDS, use_cache=False).logits, logits)


@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("llama", None),
        ("opt", None),
        ("mixtral", r"lora\.dropout is 0 here: lora\.target_modules=all-linear adapts the experts"),
        ("gpt_oss", r"leaves out the experts, which are no linear modules to PEFT"),
        ("mamba", r"leaves out backbone\.layers\.\*\.mixer\.x_proj, .*dt_proj, .*out_proj, which"),
        ("falcon_h1", r"leaves out model\.layers\.\*\.mamba\.out_proj, which has its weights read"),
        ("bamba", r"leaves out model\.layers\.\*\.mamba\.out_proj, which has its weights read"),
        ("llama4_text", r"leaves out model\.layers\.\*\.feed_forward\.router, which is no plain"),
        ("gemma3", r"leaves out model\.vision_tower, which sees no text"),
        ("bart", r"leaves out model\.decoder\.layers\.\*\.encoder_attn, which attends to an enc"),
    ],
)
def test_what_the_default_leaves_out_is_said(
    compose_run: ComposeRun, small: list[str], tmp_path: Path, name: str, note: str | None
) -> None:
    import re

    folder = save_config(name, tmp_path / "shape")
    said = preflight([compose_run(*small, "method=lora", f"model.id={folder}").last])
    assert (note is None) == (not said)
    assert note is None or re.search(note, said[0])


def test_experts_are_trained_and_a_reft_stage_stands_on_them(
    compose_run: ComposeRun, small: list[str], store: Store, tmp_path: Path
) -> None:
    folder = save_tiny("mixtral", tmp_path / "base", initializer_range=0.3)
    run = compose_run(*small, "method=heft", "epochs=2", f"model.id={folder}")
    results = [run_stage(stage, store).result for stage in run.stages]
    assert results[0]["notes"] and not results[1]["notes"]
    config = json.loads((store.adapter(run.stages[0]) / "adapter_config.json").read_text())
    assert config["lora_dropout"] == 0
    assert set(config["target_parameters"]) == {"gate_up_proj", "down_proj", "gate.weight"}
    merged = compose_run(*small, "method=heft", "epochs=2", f"model.id={folder}",
                         "reft.merge_parent=true").last  # fmt: skip
    result = run_stage(merged, store).result
    assert result["merge_error"] < 1e-4
    assert result["accuracy"] == results[1]["accuracy"]


def test_a_stage_can_start_from_saved_experts(
    compose_run: ComposeRun, small: list[str], store: Store, tmp_path: Path
) -> None:
    folder = save_tiny("qwen3_moe", tmp_path / "base")
    asked = [*small, "method=lora", "epochs=1", f"model.id={folder}"]
    first = compose_run(*asked).last
    run_stage(first, store)
    start = f"lora.init_from={store.adapter(first)}"
    second = compose_run(*asked, start).last
    preflight([second])
    base = load_base(second.model, CPU)
    with adapted(base, []) as model:
        model.add(second.adapters)
        values = [p for name, p in model.parameters().items() if "lora_B" in name]
        assert values and all(value.any() for value in values)
    message = refusal(compose_run, small, folder, "lora.rank=4", start)
    assert "lora.rank=4; set lora.rank=8" in message


@pytest.mark.parametrize("asked", ["lora.dropout=0.1", "lora.use_dora=true"])
def test_what_peft_has_not_for_experts_is_refused_with_the_modules_that_have_it(
    compose_run: ComposeRun, small: list[str], tmp_path: Path, asked: str
) -> None:
    folder = save_config("mixtral", tmp_path / "shape")
    message = refusal(compose_run, small, folder, asked)
    assert message.startswith(f"{asked}: PEFT refuses it for shape (lora.ParamWrapper")
    attention = "lora.target_modules=[k_proj,o_proj,q_proj,v_proj]"
    assert message.endswith(attention)
    assert not preflight(
        [compose_run(*small, "method=lora", f"model.id={folder}", asked, attention).last]
    )


@pytest.mark.parametrize(
    ("name", "asked", "message"),
    [
        ("mamba", "[in_proj,out_proj]", r"out_proj of shape cannot be trained, because it has its"),
        ("bamba", "[out_proj]", r"out_proj of shape cannot be trained"),
        ("bart", "[encoder_attn.q_proj]", r"cannot be trained, because it attends to an encoder"),
        ("gemma3", "[fc1]", r"fc1 of shape cannot be trained, because it sees no text"),
        ("llama4_text", "[router]", r"router of shape cannot be trained, because it is no plain"),
        ("llama", "[q_proj,qq]", r"shape has no module qq; its layers have down_proj, gate_proj"),
        ("llama", "[input_layernorm]", r"PEFT refuses it for shape \(Target module LlamaRMSNorm"),
        ("mixtral", "[w1]", r"Cannot convert PEFT target\(s\) w1 without also targeting w3"),
        ("mixtral", "[w1,w2,w3]", r"lora\.dropout=0\.05: PEFT refuses it .* use lora\.dropout=0"),
    ],
)
def test_modules_that_cannot_be_trained_are_refused_by_name(
    compose_run: ComposeRun, small: list[str], tmp_path: Path, name: str, asked: str, message: str
) -> None:
    import re

    folder = save_config(name, tmp_path / "shape")
    refused = refusal(compose_run, small, folder, f"lora.target_modules={asked}")
    assert re.search(message, refused)


def test_a_named_module_is_adapted_only_where_text_passes(
    compose_run: ComposeRun, small: list[str], tmp_path: Path
) -> None:
    folder = save_tiny("gemma3", tmp_path / "base")
    asked = ["lora.target_modules=[q_proj,v_proj]", f"model.id={folder}"]
    stage = compose_run(*small, "method=lora", *asked).last
    assert preflight([stage]) == [
        "base: lora.target_modules=[q_proj,v_proj] leaves out model.vision_tower, which sees no "
        "text"
    ]
    base = load_base(stage.model, CPU)
    with adapted(base, []) as model:
        model.add(stage.adapters)
        names = model.parameters()
        assert len(names) == 4 * 2 * 2
        assert all(".language_model.layers." in name for name in names)


@pytest.mark.parametrize(("name", "largest"), [("llama", 48), ("mixtral", 48)])
def test_a_rank_above_every_matrix_is_refused(
    compose_run: ComposeRun, small: list[str], tmp_path: Path, name: str, largest: int
) -> None:
    folder = save_config(name, tmp_path / "shape")
    message = refusal(compose_run, small, folder, "lora.rank=100000")
    fits = int(message.rsplit("lora.rank=", 1)[1].split()[0])
    assert message.startswith("lora.rank=100000 is more than the rank of any matrix of shape")
    assert fits <= largest
    preflight([compose_run(*small, "method=lora", f"model.id={folder}", f"lora.rank={fits}").last])
    refusal(compose_run, small, folder, f"lora.rank={fits + 1}")


def test_red_is_refused_for_experts_before_any_weights_are_loaded(
    compose_run: ComposeRun, small: list[str], tmp_path: Path
) -> None:
    folder = save_config("mixtral", tmp_path / "shape")
    with pytest.raises(UserError, match="no single feed-forward projection"):
        preflight([compose_run(*small, "method=red", f"model.id={folder}").last])


def test_a_resumable_choice_is_the_same_for_a_model_and_its_skeleton() -> None:
    from heft_pipeline.adapters.lora.settings import LoraSettings
    from heft_pipeline.adapters.lora.targets import choose

    settings: Any = LoraSettings(rank=4, epochs=1).resolved()
    for name in ("gemma3", "falcon_h1", "deepseek_v3", "llama4_text"):
        with torch.device("meta"):
            skeleton = tiny_model(name)
        assert skeleton.device.type == "meta"
        bare, real = (choose(settings, m, name) for m in (skeleton, tiny_model(name)))
        assert bare.notes == real.notes
        assert bare.config.to_dict() == real.config.to_dict()


def test_batches_of_a_mixture_of_experts_do_not_depend_on_padding(
    compose_run: ComposeRun, small: list[str], tmp_path: Path
) -> None:
    stage = compose_run(*small, "method=lora", "model.dtype=float32",
                        f"model.id={save_tiny('qwen3_moe', tmp_path / 'base')}").last  # fmt: skip
    base = load_base(stage.model, CPU)
    short, long = AnsweredPrompt((1, 9, 10), (3,)), AnsweredPrompt((1, 8, 9, 7, 10), (3,))
    with adapted(base, []) as model, torch.no_grad():
        model.add(stage.adapters)
        both = model.logits(collate([short, long], base.pad_token_id))
        alone = model.logits(collate([short], base.pad_token_id))
    torch.testing.assert_close(both[:1], alone, atol=1e-5, rtol=1e-4)
