"""A loaded model answers as the evaluation did, and writes what whole passes would."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import heft_pipeline
from heft_pipeline.data.batches import AnsweredPrompt, collate
from heft_pipeline.data.rows import read_eval
from heft_pipeline.errors import UserError
from heft_pipeline.plan.stage_spec import StageSpec
from heft_pipeline.store.stage_folders import Store
from heft_pipeline.use.export import main as export
from heft_pipeline.use.loaded import HeftModel
from tests.conftest import composed_run
from tests.use.conftest import trained

#: Of one, two, three and many tokens, so that some have no position to edit and most are padded.
PROMPTS = ["w1", "w2 w3", "w4 w5 w6 Question: w5 Answer:", " ".join(f"w{n}" for n in range(30))]


def rows(stage: StageSpec) -> list[dict[str, object]]:
    """The reported rows without their answers."""
    return [
        {name: value for name, value in row.items() if name != stage.data.answer_column}
        for _, row in read_eval(stage.data)
    ]


def stored(store: Store, stage: StageSpec) -> pd.DataFrame:
    return pd.read_parquet(store.folder(stage.fingerprint) / "predictions.parquet")


def by_hand(model: HeftModel, prompt: str, tokens: int) -> str:
    """The likeliest continuation: one prompt, run whole for each token, edited at its positions."""
    ids = tuple(model.tokenizer(prompt)["input_ids"])
    text: list[int] = []
    base = model.adapted.base
    while len(text) < tokens and model.tokenizer.eos_token_id not in text:
        batch = collate([AnsweredPrompt(ids, (*text, 0))], base.pad_token_id)
        with torch.no_grad(), model.adapted.editing(batch):
            logits = base.model(batch.input_ids, use_cache=False).logits[0, -1]
        text.append(int(logits.argmax()))
    return str(model.tokenizer.decode(text, skip_special_tokens=True))


@pytest.mark.parametrize(
    "asked",
    [
        ["method=lora"],
        ["method=reft"],
        ["method=heft"],
        ["method=joint"],
        ["method.stages=[lora,red,reft]"],
        ["method=heft", "lora.use_dora=true"],
        ["method=heft", "evaluation.normalize=byte", "evaluation.batch_size=7"],
        ["method=heft", "evaluation.mode=generate", "evaluation.max_new_tokens=3"],
        ["method=heft", "evaluation.mode=generate", "reft.answer='{choice} w1 w2'"],
        ["method=heft", "data.special_tokens=add"],
    ],
)
def test_predictions_are_those_of_the_evaluation(
    asked: list[str], small: list[str], store: Store, tmp_path: Path
) -> None:
    stage = trained(composed_run(*small, "epochs=1", *asked), store)
    expected = stored(store, stage)
    assert export([str(store.folder(stage.fingerprint)), "--to", str(tmp_path / "to")]) == 0
    for place in (store.folder(stage.fingerprint), tmp_path / "to"):
        with heft_pipeline.load(place, device="cpu") as model:
            found = model.predict(rows(stage))
        assert [one.prediction for one in found] == expected.prediction.tolist()
        for label in stage.data.labels:
            own = [one.log_probabilities[label] for one in found]
            assert own == expected[f"logprob_{label}"].tolist()


def test_rows_with_choices_of_their_own_and_written_answers(
    small: list[str], store: Store, tmp_path: Path
) -> None:
    for name, count in (("train", 12), ("validation", 6)):
        lines = [
            {"q": f"w{n} w{n + 1}", "options": ["yes", "no", "maybe"][: 2 + n % 2],
             "right": n % 2, "said": ["yes", "no"][n % 2]}
            for n in range(count)
        ]  # fmt: skip
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    own = [*small[:2], f"data.path={tmp_path}", "data.prompt='{q} Answer:'", "method=lora",
           "epochs=1", "data=boolq"]  # fmt: skip
    asked = ["~data.choices.true", "~data.choices.false", "data.truncate_column=null"]
    chosen = trained(
        composed_run(*own, *asked, "data.choices_column=options", "data.answer_column=right",
                     "data.dev_size=2"), store)  # fmt: skip
    expected = stored(store, chosen)
    with heft_pipeline.load(store.folder(chosen.fingerprint)) as model:
        found = model.predict(rows(chosen))
    assert [one.prediction for one in found] == expected.prediction.tolist()
    assert [list(one.log_probabilities.values()) for one in found] == [
        list(one) for one in expected.logprobs
    ]
    # Longer answers than any limit that is made up, and nobody says how long they may be.
    for name in ("train", "validation"):
        lines = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        for line in lines:
            line["said"] = " ".join([str(line["said"])] * 70)
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    written = trained(
        composed_run(*own, *asked, "data.kind=answer", "data.answer_column=said",
                     "data.dev_size=2"), store)  # fmt: skip
    expected = stored(store, written)
    assert written.evaluation.max_new_tokens is None
    assert export([str(store.folder(written.fingerprint)), "--to", str(tmp_path / "to")]) == 0
    for place in (store.folder(written.fingerprint), tmp_path / "to"):
        with heft_pipeline.load(place) as model:
            assert [one.text for one in model.predict(rows(written))] == expected.text.tolist()


def test_what_is_written_is_what_whole_passes_write(heft_folder: Path) -> None:
    with heft_pipeline.load(heft_folder) as model:
        expected = [by_hand(model, prompt, 8) for prompt in PROMPTS]
        assert len(set(expected)) > 1
        assert model.generate(PROMPTS, max_new_tokens=8) == expected
        assert model.generate(PROMPTS, max_new_tokens=8, batch_size=1) == expected
        assert model.generate(PROMPTS[2], max_new_tokens=8) == expected[2]
        # The same through transformers, whose arguments may be any.
        assert model.generate(PROMPTS, max_new_tokens=8, num_beams=1) == expected
        once = model.generate(PROMPTS, max_new_tokens=8, num_beams=1, batch_size=2)
        assert once == expected


def test_every_row_that_transformers_makes_of_a_prompt_is_edited(heft_folder: Path) -> None:
    with heft_pipeline.load(heft_folder) as model:
        likeliest = model.generate(PROMPTS, max_new_tokens=5)
        drawn = model.generate(
            PROMPTS, max_new_tokens=5, do_sample=True, top_k=1, num_return_sequences=3
        )
        assert drawn == [text for text in likeliest for _ in range(3)]
        beams = model.generate(PROMPTS, max_new_tokens=5, num_beams=3)
        alone = [model.generate(prompt, max_new_tokens=5, num_beams=3) for prompt in PROMPTS]
        assert beams == alone
        unedited = model.model.generate(
            torch.tensor([model.tokenizer(PROMPTS[3])["input_ids"]]),
            max_new_tokens=5, num_beams=3, do_sample=False,
        )  # fmt: skip
        assert model.tokenizer.decode(unedited[0], skip_special_tokens=True) != beams[3]


def test_sampling_is_as_in_transformers(heft_folder: Path) -> None:
    with heft_pipeline.load(heft_folder) as model:
        asked = {"max_new_tokens": 6, "do_sample": True, "temperature": 2.0, "top_p": 0.9}
        torch.manual_seed(1)
        first = model.generate(PROMPTS, **asked)
        torch.manual_seed(1)
        assert model.generate(PROMPTS, **asked) == first
        torch.manual_seed(2)
        assert model.generate(PROMPTS, **asked) != first


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"temperature": 0.7}, "temperature has no effect without do_sample=True"),
        ({"use_cache": False}, "use_cache=False reads a prompt again"),
        ({"prompt_lookup_num_tokens": 3}, "prompt_lookup_num_tokens cannot be used here"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"generation_config": None}, "generation_config cannot be used here"),
        ({"temprature": 1.0}, "transformers refuses these arguments"),
    ],
)
def test_arguments_without_a_meaning_are_refused(
    heft_folder: Path, asked: dict[str, object], said: str
) -> None:
    with heft_pipeline.load(heft_folder) as model, pytest.raises(UserError, match=said):
        model.generate("w1 w2", **asked)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_logit(heft_folder: Path, side: str) -> None:
    with heft_pipeline.load(heft_folder) as model:
        tokenizer = model.tokenizer
        ids = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
        width = max(map(len, ids))
        whole = torch.zeros(len(ids), width, dtype=torch.long)
        mask = torch.zeros_like(whole)
        for row, own in enumerate(ids):
            at = slice(width - len(own), width) if side == "left" else slice(0, len(own))
            whole[row, at], mask[row, at] = torch.tensor(own), 1
        with torch.no_grad():
            together = model(whole, mask).logits
            for row, own in enumerate(ids):
                alone = model(torch.tensor([own])).logits[0]
                kept = together[row][mask[row].bool()]
                torch.testing.assert_close(kept, alone, rtol=1e-4, atol=1e-4)


def test_only_the_prompt_of_a_sequence_is_edited(heft_folder: Path) -> None:
    with heft_pipeline.load(heft_folder) as model, torch.no_grad():
        ids = torch.tensor([model.tokenizer(PROMPTS[3])["input_ids"]])
        prompt = ids.shape[1] - 4
        read, rest = (tuple(part.tolist()) for part in (ids[0, :prompt], ids[0, prompt:]))
        with model.adapted.editing(collate([AnsweredPrompt(read, (*rest, 0))], 0)):
            expected = model.model(ids).logits
        found = model(ids, prompt_tokens=[prompt]).logits
        torch.testing.assert_close(found, expected)
        assert not torch.allclose(model(ids).logits, expected, atol=1e-3)
        with pytest.raises(UserError, match="prompt_tokens"):
            model(ids, prompt_tokens=[99])
        with pytest.raises(UserError, match="padding at one end"):
            model(ids, torch.tensor([[0, *[1] * (ids.shape[1] - 2), 0]]))


def test_scores_are_those_of_the_evaluation(
    heft: StageSpec, kept: Store, heft_folder: Path
) -> None:
    expected = stored(kept, heft)
    with heft_pipeline.load(heft_folder) as model:
        prompts = [model.prompt(row) for row in rows(heft)]
        choices = list(heft.data.choices.values())
        found = model.score(prompts, choices)
        each = model.score(prompts, [choices] * len(prompts), batch_size=3)
        single = model.score(prompts[0], [choices[0]])
    columns = [f"logprob_{label}" for label in heft.data.labels]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected[columns].to_numpy(), atol=1e-5)
    np.testing.assert_allclose(each, found, atol=1e-5)
    np.testing.assert_allclose(single, found[:1, :1], atol=1e-5)


def test_prompts_are_tokenised_as_in_training(small: list[str], store: Store) -> None:
    asked = ["method=heft", "epochs=1", "data.special_tokens=add",
             "data.prompt='<s> {passage} Question: {question} Answer: '"]  # fmt: skip
    stage = trained(composed_run(*small, *asked), store)
    expected = stored(store, stage)
    with heft_pipeline.load(store.folder(stage.fingerprint)) as model:
        prompts = [model.prompt(row) for row in rows(stage)]
        found = model.score(prompts, [choice.strip() for choice in stage.data.choices.values()])
        columns = [f"logprob_{label}" for label in stage.data.labels]
        np.testing.assert_allclose(found, expected[columns].to_numpy(), atol=1e-5)
        # White space at the end of a prompt is left to what is written.
        bare = [prompt.rstrip() for prompt in prompts[:4]]
        assert model.generate(prompts[:4], max_new_tokens=3) == model.generate(
            bare, max_new_tokens=3
        )


def test_a_closed_model_answers_nothing(heft_folder: Path) -> None:
    with heft_pipeline.load(heft_folder) as model:
        assert model.score([], ["yes"]).shape[0] == 0
    for ask in (
        lambda: model.generate("w1"),
        lambda: model.score("w1", ["yes"]),
        lambda: model.predict([{"passage": "w1", "question": "w1"}]),
        lambda: model(torch.tensor([[1, 2]])),
    ):
        with pytest.raises(UserError, match="has been closed"):
            ask()
    model.close()


def test_more_sequences_than_were_announced_are_refused(heft_folder: Path) -> None:
    with heft_pipeline.load(heft_folder) as model:
        batch = collate([AnsweredPrompt((1, 5, 6, 7), (0,))], 0)
        with model.adapted.editing(batch), pytest.raises(RuntimeError, match="were announced"):
            model.model(batch.input_ids.repeat(2, 1))


def test_choices_that_are_none_are_refused(heft_folder: Path) -> None:
    with heft_pipeline.load(heft_folder) as model:
        for choices in ("yes", [], [["yes"]], [["yes"], []]):
            with pytest.raises(UserError, match="choices"):
                model.score(["w1", "w2"], choices)
        with pytest.raises(UserError, match="tokenises to nothing"):
            model.score(["w1"], [""])


def test_merging_changes_no_logit_and_leaves_the_edits(heft_folder: Path) -> None:
    with heft_pipeline.load(heft_folder) as model:
        before = model.score(PROMPTS, ["yes", "no"])
        assert model.merge() == ("reft",)
        assert model.merge() == ("reft",)
        np.testing.assert_allclose(model.score(PROMPTS, ["yes", "no"]), before, atol=1e-4)
        names = [name for name, _ in model.model.named_modules() if "lora_A" in name]
        assert names  # they are there, and no longer run
        for name in names:
            module = model.model.get_submodule(name)
            if isinstance(module, torch.nn.Linear):
                module.weight.data.fill_(1e9)
        np.testing.assert_allclose(model.score(PROMPTS, ["yes", "no"]), before, atol=1e-4)


def test_edits_alone_cannot_be_merged(small: list[str], store: Store) -> None:
    stage = trained(composed_run(*small, "method=reft", "epochs=1"), store)
    with (
        heft_pipeline.load(store.folder(stage.fingerprint)) as model,
        pytest.raises(UserError, match="no adapter of weights"),
    ):
        model.merge()


def test_the_package_is_imported_without_torch() -> None:
    code = (
        "import heft_pipeline, sys; heft_pipeline.load; heft_pipeline.HeftModel;"
        "print({'torch', 'transformers', 'pandas'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = heft_pipeline.nothing
