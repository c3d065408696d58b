"""RED against a computation by hand with transformers alone."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from heft_pipeline.adapters.adapted import adapted
from heft_pipeline.data.batches import AnsweredPrompt, collate
from heft_pipeline.errors import UserError
from heft_pipeline.models.decoder import feed_forward_outputs
from heft_pipeline.plan.graph import Run
from heft_pipeline.stage.cached_inputs import cached_base, cached_task
from heft_pipeline.stage.preflight import preflight
from heft_pipeline.stage.run_stage import run_stage
from heft_pipeline.store.stage_folders import Store
from heft_pipeline.use.export import main as export_main

ComposeRun = Callable[..., Run]
CPU = torch.device("cpu")
RED = ["method=red", "epochs=2", "red.learning_rate=0.1"]


def test_red_starts_as_the_untouched_model_and_trains_two_numbers_a_unit(
    compose_run: ComposeRun, small: list[str]
) -> None:
    stage = compose_run(*small, *RED, "red.layers=[0,2]").last
    base = cached_base(stage.model, CPU)
    batch = collate([AnsweredPrompt((1, 9, 10, 7), (3, 4))], base.pad_token_id)
    with adapted(base, []) as model:
        before = model.logits(batch)
        model.add(stage.adapters)
        assert torch.equal(model.logits(batch), before)
        assert model.count() == 2 * 2 * 32
        assert sorted(model.parameters())[0] == "red/model.layers.0.mlp.down_proj.bias"


def test_a_trained_red_is_the_feed_forward_output_times_a_scale_plus_a_bias(
    compose_run: ComposeRun, small: list[str], small_model: Path, store: Store
) -> None:
    """At every position, by replacing modules of a plain model, one unpadded prompt at a time."""
    import pandas as pd

    stage = compose_run(*small, *RED).last
    run_stage(stage, store)
    red = load_file(store.adapter(stage) / "red.safetensors")
    plain = AutoModelForCausalLM.from_pretrained(small_model, dtype=torch.float32).eval()

    class Edited(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module, place: str) -> None:
            super().__init__()
            self.inner, self.place = inner, place

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            edited: torch.Tensor = self.inner(x) * red[f"{self.place}.scale"]
            return edited + red[f"{self.place}.bias"]

    for number, layer in enumerate(plain.model.layers):
        place = f"model.layers.{number}.mlp.down_proj"
        layer.mlp.down_proj = Edited(layer.mlp.down_proj, place)
    task = cached_task(stage)
    table = pd.read_parquet(store.folder(stage.fingerprint) / "predictions.parquet")
    for row, example in zip(table.itertuples(), task.eval, strict=True):
        with torch.no_grad():
            logits = plain(torch.tensor([example.prompt])).logits[0, -1].log_softmax(dim=-1)
        assert row.logprob_true == pytest.approx(
            logits[task.eval[0].choices[0][0]].item(), abs=1e-4
        )


def test_an_exported_red_is_applied_by_the_lines_that_come_with_it(
    compose_run: ComposeRun,
    small: list[str],
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage = compose_run(*small, *RED, "method.stages=[lora,red]").last
    for one in stage.chain:
        run_stage(one, store)
    assert export_main([str(store.folder(stage.fingerprint)), "--to", str(tmp_path / "x")]) == 0
    code = (tmp_path / "x" / "LOAD.md").read_text().split("```python\n")[-1].split("```")[0]
    scope: dict[str, object] = {}
    exec(
        code.replace('"parents', f'"{tmp_path}/x/parents').replace('"./', f'"{tmp_path}/x/'), scope
    )
    model: torch.nn.Module = scope["model"]  # type: ignore[assignment]
    base = cached_base(stage.model, CPU)
    batch = collate([AnsweredPrompt((1, 9, 10, 7), (3,))], base.pad_token_id)
    parts = [(s.adapters[0], store.adapter(s)) for s in stage.chain]
    with adapted(base, parts) as ours, torch.no_grad():
        expected = ours.logits(batch)[0, -1]
        found = model.eval()(torch.tensor([[1, 9, 10, 7]])).logits[0, -1]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_weight_decay_leaves_the_scales_alone(
    compose_run: ComposeRun, small: list[str], store: Store
) -> None:
    stage = compose_run(*small, "method=red", "red.learning_rate=1e-6", "red.weight_decay=100").last
    run_stage(stage, store)
    red = load_file(store.adapter(stage) / "red.safetensors")
    scales = torch.cat([value for name, value in red.items() if name.endswith(".scale")])
    torch.testing.assert_close(scales, torch.ones_like(scales), rtol=1e-3, atol=1e-3)


def test_layers_that_the_model_lacks_are_refused(compose_run: ComposeRun, small: list[str]) -> None:
    with pytest.raises(UserError, match=r"red\.layers: .* has no layer 3; it has layers 0 to 2"):
        preflight([compose_run(*small, *RED, "red.layers=[1,3]").last])


@pytest.mark.parametrize(
    ("kind", "last"),
    [
        ("llama", "mlp.down_proj"),
        ("gpt2", "mlp.c_proj"),
        ("opt", "fc2"),
        ("gpt_neox", "mlp.dense_4h_to_h"),
        ("bloom", "mlp.dense_4h_to_h"),
        ("gemma2", "mlp.down_proj"),
        ("phi", "mlp.fc2"),
    ],
)
def test_the_edited_module_is_found_in_each_architecture(kind: str, last: str) -> None:
    sizes = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    if kind == "gpt2":
        sizes = {"vocab_size": 40, "n_embd": 32, "n_layer": 2, "n_head": 4}
    if kind == "opt":
        sizes |= {"word_embed_proj_dim": 32, "ffn_dim": 64}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes))
    assert [
        path.endswith(f".{n}.{last}") for n, path in enumerate(feed_forward_outputs(model))
    ] == [
        True,
        True,
    ]


@pytest.mark.parametrize("kind", ["mixtral", "qwen2_moe"])
def test_a_mixture_of_experts_is_refused(kind: str) -> None:
    sizes = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes))
    with pytest.raises(UserError, match="no single feed-forward projection"):
        feed_forward_outputs(model)
