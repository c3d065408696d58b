"""lm-evaluation-harness finds what the evaluation found, and its other requests are edited too."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import heft_pipeline
from heft_pipeline.errors import UserError
from heft_pipeline.store.stage_folders import Store
from heft_pipeline.use.harness_command import main
from tests.conftest import composed_run
from tests.use.conftest import trained
from tests.use.test_loaded import PROMPTS

pytest.importorskip("lm_eval", reason="needs the extra lm-eval")


@pytest.fixture(autouse=True)
def quiet_datasets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))


@pytest.mark.parametrize("method", ["lora", "reft", "heft"])
def test_it_agrees_with_the_evaluation_example_by_example(
    method: str, small: list[str], store: Store, capfd: pytest.CaptureFixture[str]
) -> None:
    stage = trained(composed_run(*small, f"method={method}", "epochs=1"), store)
    folder = str(store.folder(stage.fingerprint))
    assert main(["agree", folder]) == 0
    out = capfd.readouterr().out
    assert out.startswith("50 examples: 0 answered differently; ")
    assert float(out.rsplit(" ", 1)[1]) < 1e-4
    assert main(["agree", folder, "--limit", "7", "--batch-size", "3"]) == 0
    assert capfd.readouterr().out.startswith("7 examples")


def test_it_agrees_where_choices_have_several_tokens(
    small: list[str], store: Store, capfd: pytest.CaptureFixture[str]
) -> None:
    asked = ["data.choices.true=' yes w1 w2'", "data.choices.false=' no w3'"]
    stage = trained(composed_run(*small, "method=heft", "epochs=1", *asked), store)
    assert main(["agree", str(store.folder(stage.fingerprint))]) == 0
    assert "0 answered differently" in capfd.readouterr().out


def test_rows_that_were_cut_are_left_out_and_counted(
    small: list[str], store: Store, capfd: pytest.CaptureFixture[str]
) -> None:
    asked = ["data.max_prompt_tokens=30", "data.truncate_column=passage"]
    stage = trained(composed_run(*small, "method=heft", "epochs=1", *asked), store)
    assert main(["agree", str(store.folder(stage.fingerprint))]) == 0
    first, second = capfd.readouterr().out.splitlines()
    compared, left_out = int(first.split()[0]), int(second.split()[0])
    assert compared + left_out == 50 and min(compared, left_out) > 0
    assert "0 answered differently" in first and float(first.rsplit(" ", 1)[1]) < 1e-4


def test_a_model_without_its_edits_does_not_agree(
    heft_folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from contextlib import nullcontext

    from heft_pipeline.adapters.adapted import AdaptedModel

    monkeypatch.setattr(AdaptedModel, "editing", lambda self, batch: nullcontext())
    assert main(["agree", str(heft_folder)]) == 1
    assert "differ by at most" in capfd.readouterr().out


def test_what_it_writes_is_what_generate_writes(heft_folder: Path) -> None:
    from heft_pipeline.use.harness import HeftLM

    lm = HeftLM(str(heft_folder), device="cpu", batch_size=2)
    asked = {"until": ["never"], "max_gen_toks": 5, "do_sample": False}
    requests = [SimpleNamespace(args=(prompt, dict(asked))) for prompt in PROMPTS]
    found = lm.generate_until(requests, disable_tqdm=True)
    with heft_pipeline.load(heft_folder) as model:
        expected = model.generate(PROMPTS, max_new_tokens=5)
    assert found == expected
    beams = [SimpleNamespace(args=(p, {**asked, "num_beams": 2})) for p in PROMPTS]
    with pytest.raises(UserError, match="num_beams=2"):
        lm.generate_until(beams, disable_tqdm=True)


def test_a_likeliest_continuation_is_called_so(heft_folder: Path) -> None:
    from heft_pipeline.use.harness import HeftLM

    lm = HeftLM(str(heft_folder), device="cpu", batch_size="auto")
    context = lm.tok_encode(PROMPTS[2])
    with heft_pipeline.load(heft_folder) as model:
        written = model.generate(PROMPTS[2], max_new_tokens=3)
    likeliest = lm.tokenizer(written, add_special_tokens=False)["input_ids"]
    other = [likeliest[0], likeliest[1], (likeliest[2] + 1) % 60]
    asked: Any = [(("", ""), context, likeliest), (("", ""), context, other)]
    (first, is_first), (second, is_second) = lm._loglikelihood_tokens(asked)
    assert (is_first, is_second) == (True, False) and first > second


def test_the_harnesss_own_command_knows_the_model(heft_folder: Path, tmp_path: Path) -> None:
    rows = [{"q": f"w{n} w{n + 1}", "a": n % 2} for n in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "mine.yaml").write_text(
        f"""
task: mine
dataset_path: json
dataset_kwargs: {{data_files: {{validation: {tmp_path}/rows.jsonl}}, cache_dir: {tmp_path}/cache}}
validation_split: validation
output_type: multiple_choice
doc_to_text: q
doc_to_choice: ["yes", "no"]
doc_to_target: a
"""
    )
    done = subprocess.run(
        [sys.executable, "-m", "heft_pipeline", "lm-eval", "run", "--model", "heft",
         "--model_args", f"adapter={heft_folder}", "--device", "cpu", "--batch_size", "2",
         "--include_path", str(tmp_path), "--tasks", "mine"],
        capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "|mine" in done.stdout and "acc" in done.stdout


def test_what_cannot_be_compared_is_refused(
    heft_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from heft_pipeline.use.export import main as export

    assert export([str(heft_folder), "--to", str(tmp_path / "to")]) == 0
    assert main(["agree", str(tmp_path / "to")]) == 1
    assert "has no predictions.parquet" in capsys.readouterr().err
