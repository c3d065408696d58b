"""The loss of whole sequences, computed in chunks, against all logits at once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from heft_pipeline.adapters.adapted import AdaptedModel, adapted
from heft_pipeline.data.batches import IGNORED_LABEL, AnsweredPrompt, collate
from heft_pipeline.errors import UserError
from heft_pipeline.models.base_model import load_base
from heft_pipeline.plan.graph import Run
from heft_pipeline.stage.preflight import preflight
from heft_pipeline.stage.probe import probe_base
from heft_pipeline.stage.run_stage import run_stage
from heft_pipeline.store.stage_folders import Store
from heft_pipeline.training import loss as module
from heft_pipeline.training.loss import backward, sequence_labels, step_loss
from tests.models.tiny_architectures import CONFIGS, save_tiny
from tests.stage.test_probe import BART

ComposeRun = Callable[..., Run]
CPU = torch.device("cpu")
SEQUENCES = [
    AnsweredPrompt(tuple(range(8, 8 + length)), answer)
    for length, answer in ((9, (3,)), (5, (4, 2)), (12, (3, 2)), (2, (4,)))
]
_LLAMA = CONFIGS["llama"]
#: Models whose logits are not what the projection gives (capped, or scaled), and one that cannot
#: be padded.
SPECIAL = {
    "gemma2": _LLAMA | {"final_logit_softcapping": 0.05},
    "cohere": _LLAMA | {"logit_scale": 0.5},
    "granite": _LLAMA | {"logits_scaling": 3.0},
    "bart": BART | {"vocab_size": 68},
}


def by_hand(model: AdaptedModel, sequences: list[AnsweredPrompt]) -> torch.Tensor:
    """The mean cross-entropy of all tokens but each sequence's first, one sequence at a time."""
    losses = []
    for sequence in sequences:
        ids = torch.tensor([sequence.prompt + sequence.answer])
        batch = collate([sequence], model.base.pad_token_id)
        with model.editing(batch):
            logits = model.base.model(input_ids=ids[:, :-1]).logits[0].float()
        losses.append(cross_entropy(logits, ids[0, 1:], reduction="none"))
    return torch.cat(losses).mean()


@pytest.mark.parametrize("positions", [1, 7, 1000])
@pytest.mark.parametrize("name", ["llama", "gpt2", *SPECIAL])
def test_the_loss_and_its_gradients_are_those_of_all_logits(
    compose_run: ComposeRun,
    small: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    positions: int,
) -> None:
    """The projection of gpt2 is tied to its embeddings."""
    monkeypatch.setitem(CONFIGS, name, SPECIAL.get(name, CONFIGS.get(name, {})))
    monkeypatch.setattr(module, "_CPU_LOGITS", positions * 68)
    folder = save_tiny(name, tmp_path / name)
    asked = [f"model.id={folder}", "method=joint", "joint.loss=sequence", "lora.dropout=0"]
    stage = compose_run(*small, *asked, "reft.positions=f1+l1").last
    base = probe_base(load_base(stage.model, CPU), "model.id=x")
    found = []
    for own in (True, False):
        with adapted(base, []) as model:
            torch.manual_seed(0)
            model.add(stage.adapters)
            for parameter_name, parameter in model.parameters().items():
                if "lora_B" in parameter_name:  # at 0 nothing would be seen
                    torch.nn.init.normal_(parameter, std=0.1)
            if own:
                batch = collate(SEQUENCES, base.pad_token_id)
                total = backward(model, batch, step_loss("sequence", SEQUENCES))
            else:
                total = by_hand(model, SEQUENCES)
                total.backward()
            gradients = [p.grad for p in model.parameters().values() if p.grad is not None]
            found.append((total.item(), gradients))
    (one, ours), (other, theirs) = found
    assert one == pytest.approx(other, abs=1e-5)
    assert len(ours) == len(theirs) > 0
    assert any(gradient.abs().max() > 1e-4 for gradient in theirs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)


def test_no_more_logits_than_a_chunks_are_computed_at_once(
    compose_run: ComposeRun, small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CPU_LOGITS", 5 * 68)
    stage = compose_run(*small, "method=lora", "lora.loss=sequence").last
    base = load_base(stage.model, CPU)
    seen: list[int] = []

    def note(_module: Any, _given: Any, output: torch.Tensor) -> None:
        seen.append(output.numel() // output.shape[-1])

    base.model.get_output_embeddings().register_forward_hook(note)
    with adapted(base, []) as model:
        model.add(stage.adapters)
        assert model.vocabulary.logits(torch.zeros(2, 32)).shape == (2, 68)  # tries it once
        seen.clear()
        batch = collate(SEQUENCES, base.pad_token_id)
        backward(model, batch, step_loss("sequence", SEQUENCES))
    assert max(seen) == 5
    assert sum(seen) == step_loss("sequence", SEQUENCES).tokens


def test_each_position_predicts_the_next_token() -> None:
    batch = collate([AnsweredPrompt((5, 6, 7), (8, 9)), AnsweredPrompt((5,), (6,))], 0)
    none = IGNORED_LABEL
    assert sequence_labels(batch).tolist() == [[6, 7, 8, 9], [none, none, none, 6]]
    assert step_loss("sequence", batch.sequences).tokens == 5
    assert step_loss("answer", batch.sequences).tokens == 3


@pytest.mark.parametrize("more", [[], ["training.micro_batch_tokens=60"]])
@pytest.mark.parametrize("method", ["lora", "reft"])
def test_whole_stages_have_the_same_loss_however_they_are_split(
    compose_run: ComposeRun, small: list[str], store: Store, method: str, more: list[str]
) -> None:
    """ReFT of upper layers reuses the layers below, and no earlier position."""
    asked = [*small, f"method={method}", f"{method}.loss=sequence", "lora.dropout=0", "epochs=1"]
    asked += ["reft.layers=[1]", "reft.positions=l1", "training.group_by_length=false"]
    results = [
        run_stage(compose_run(*asked, *extra).last, store).result
        for extra in (more, ["training.micro_batch_tokens=auto", "reft.reuse=off"])
    ]
    assert results[0]["eval_loss"] == pytest.approx(results[1]["eval_loss"], abs=1e-4)
    if method == "reft":
        assert "nothing is trained in the first 2 of 3 layers" in results[0]["reuse"]


def test_pyrefts_engine_is_refused_before_anything_is_loaded(
    compose_run: ComposeRun, small: list[str]
) -> None:
    asked = ["method=reft", "reft.engine=pyreft", "model.dtype=float32", "reft.loss=sequence"]
    with pytest.raises(UserError, match=r"reft\.engine=pyreft .*loss=answer"):
        preflight(compose_run(*small, *asked).stages)
