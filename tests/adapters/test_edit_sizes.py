"""The recorded sizes of ReFT's edits against a computation by hand."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch

from heft_pipeline.adapters.adapted import adapted
from heft_pipeline.adapters.reft.adapter import ReftAdapter
from heft_pipeline.data.batches import AnsweredPrompt, collate
from heft_pipeline.plan.graph import Run
from heft_pipeline.stage.cached_inputs import cached_base
from heft_pipeline.stage.outputs import edit_sizes
from heft_pipeline.stage.run_stage import run_stage
from heft_pipeline.store.stage_folders import Store


def test_edit_sizes_equal_those_by_hand(compose_run: Callable[..., Run], small: list[str]) -> None:
    run = compose_run(*small, "method=reft", "reft.positions=f2+l1", "reft.layers=[0,2]")
    base = cached_base(run.last.model, torch.device("cpu"))
    sequences = [AnsweredPrompt((1, 9, 10, 11, 7), (3,)), AnsweredPrompt((1, 20, 21, 7), (3,))]
    too_short = AnsweredPrompt((1, 7), (3,))  # it has f1 and l1, but not f2
    with adapted(base, []) as model:
        torch.manual_seed(0)
        model.add(run.last.adapters)
        model.finish()
        sizes = edit_sizes(model, sequences, batch_size=1)["reft"]
        with_short = edit_sizes(model, [*sequences, too_short], batch_size=3)["reft"]
        (reft,) = model.trained
        assert isinstance(reft, ReftAdapter)
        edit = reft.interventions.interventions["layer0_both"]
        with torch.no_grad():
            hidden = []
            for sequence in sequences:
                batch = collate([sequence], base.pad_token_id)
                # Outside of editing() the hooks do nothing, and layer 0 is the first edited one.
                states = base.model(batch.input_ids, output_hidden_states=True).hidden_states
                hidden.append(states[1][0, [0, 1, -1]])
            before = torch.stack(hidden)
            added = (edit(before) - before).norm(dim=-1)
            relative = (added / before.norm(dim=-1)).mean(dim=0)
    assert list(sizes.position) == ["f1", "f2", "l1"] * 2
    assert list(sizes.layer) == [0, 0, 0, 2, 2, 2]
    assert list(with_short.examples) == [3, 2, 3] * 2
    assert with_short.edit_norm[1] == pytest.approx(sizes.edit_norm[1], rel=1e-5)
    assert sizes.relative_edit[:3].tolist() == pytest.approx(relative.tolist(), rel=1e-5)
    assert sizes.edit_norm[:3].tolist() == pytest.approx(added.mean(dim=0).tolist(), rel=1e-5)


def test_a_stage_keeps_its_edits_beside_its_result(
    compose_run: Callable[..., Run], small: list[str], store: Store, tmp_path: Path
) -> None:
    run = compose_run(*small, "method=heft", "epochs=1", "reft.positions=l3")
    for stage in run.stages:
        run_stage(stage, store)
    sizes = pd.read_csv(store.folder(run.last.fingerprint) / "reft_edits.csv")
    assert sizes.groupby("layer").position.apply(list).tolist() == [["l3", "l2", "l1"]] * 3
    assert (sizes.relative_edit > 0).all()
    assert not (store.folder(run.stages[0].fingerprint) / "reft_edits.csv").exists()
