"""The shipped demo: what its task asks is decided by the text, and its files can be rebuilt."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest

from heft_pipeline.data import demo
from heft_pipeline.data.demo import build, corpus
from heft_pipeline.data.demo.language import KINDS, READ, make_claim, make_world, pick, tell
from heft_pipeline.data.demo.task import make_splits

Row = dict[str, Any]


@pytest.fixture(scope="module")
def splits() -> dict[str, list[Row]]:
    return {
        split: [json.loads(line) for line in demo.split_path(split).read_text().splitlines()]
        for split in demo.SPLITS
    }


def prompt(row: Row) -> str:
    return f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:"


# --- an independent reading of passage and question --------------------------------------------


# What the words mean, written here once more, so that a slip in the language is found.
COLOUR = {"ivory": "white", "jade": "green", "navy": "blue", "ruby": "red"}
COUNTRY = {"london": "england", "oslo": "norway", "paris": "france", "rome": "italy"}


class Reader:
    """The facts of a passage, parsed from its text by patterns."""

    def __init__(self, passage: str) -> None:
        self.facts: set[tuple[str, str, str]] = set()
        for sentence in passage.lower().rstrip(".").split(". "):
            self.read(sentence)

    def read(self, sentence: str) -> None:
        match = re.fullmatch(r"the (\w+) is ((?:with|in) )?(\w+)", sentence)
        assert match, f"a sentence that no pattern reads: {sentence}"
        thing, how, value = match[1], match[2] or "", match[3]
        self.facts.add((thing, how, value))
        wider = {"": COLOUR, "in ": COUNTRY}.get(how, {}).get(value)
        if wider:
            self.facts.add((thing, how, wider))

    def answer(self, question: str) -> bool:
        question = question.lower()
        if question.endswith(", is that wrong"):
            return not self.holds(question.removesuffix(", is that wrong"))
        if match := re.fullmatch(r"is (the \w+) ((?:(?:with|in) )?\w+)", question):
            return self.holds(f"{match[1]} is {match[2]}")
        raise AssertionError(f"a question that no pattern reads: {question}")

    def holds(self, statement: str) -> bool:
        match = re.fullmatch(r"the (\w+) is ((?:with|in) )?(\w+)", statement)
        assert match, f"a statement that no pattern reads: {statement}"
        return (match[1], match[2] or "", match[3]) in self.facts


FORMS: dict[corpus.Form, float] = {"note": 0.3, "mark": 0.3, "answer": 0.3, "guess": 0.1}


def draw(rng: Random, n_remarks: int, held_out: frozenset[str] = frozenset()) -> list[str]:
    return corpus.make_document(rng, n_remarks, READ, FORMS, held_out).words


def test_every_answer_follows_from_its_passage(splits: dict[str, list[Row]]) -> None:
    for rows in splits.values():
        for row in rows:
            assert Reader(row["passage"]).answer(row["question"]) is row["answer"], row


def test_a_rebuild_of_the_splits_gives_the_shipped_bytes(tmp_path: Path) -> None:
    build.build_files(tmp_path, tmp_path, demo.SEED, steps=None, data_only=True)
    for split in demo.SPLITS:
        shipped = demo.split_path(split)
        assert (tmp_path / shipped.name).read_bytes() == shipped.read_bytes()


def test_another_seed_gives_other_splits() -> None:
    assert make_splits(demo.SEED + 1)[0]["test"] != make_splits(demo.SEED)[0]["test"]


def test_the_manifest_names_the_bytes_of_every_shipped_file() -> None:
    hashes = json.loads(demo.MANIFEST.read_text())["sha256"]
    shipped = {path.name: path for folder in (demo.FILES, demo.MODEL) for path in folder.iterdir()}
    del shipped[demo.MANIFEST.name]
    assert {name: build.sha256(path) for name, path in shipped.items()} == hashes


def test_check_reports_a_file_that_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build.main(["--check", "--data-only"]) == 0
    manifest = json.loads(demo.MANIFEST.read_text())
    manifest["sha256"]["dev.jsonl"] = "0" * 64
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    monkeypatch.setattr(build, "MANIFEST", tmp_path / "manifest.json")
    assert build.main(["--check", "--data-only"]) == 1
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()[-3:]] == [
        "train.jsonl",
        "dev.jsonl",
        "test.jsonl",
    ]


def test_no_passage_occurs_twice_in_or_across_splits(splits: dict[str, list[Row]]) -> None:
    facts = [
        " ".join(sorted(row["passage"].lower().split(". ")))
        for rows in splits.values()
        for row in rows
    ]
    assert len(set(facts)) == len(facts)


def test_pretraining_text_leaves_the_splits_passages_out() -> None:
    first = draw(Random(1), n_remarks=0)
    sentences = [part.strip() for part in " ".join(first[:-1]).split(" .") if part.strip()]
    held_out = frozenset({" . ".join(sorted(sentences))})
    assert draw(Random(1), 0, held_out) != first


def test_answers_are_balanced_in_every_kind_of_every_split(splits: dict[str, list[Row]]) -> None:
    for rows in splits.values():
        answers = defaultdict(list)
        for row in rows:
            answers[row["kind"]].append(row["answer"])
        assert set(answers) == set(KINDS)
        for given in answers.values():
            assert 0.5 <= sum(given) / len(given) <= 0.55


@pytest.mark.parametrize("columns", [("question",), ("passage",), ("question", "passage")])
def test_word_counts_do_not_predict_the_answer(
    splits: dict[str, list[Row]], columns: tuple[str, ...]
) -> None:
    def features(row: Row) -> set[str]:
        found = set()
        for column in columns:
            words = row[column].lower().replace(".", " .").split()
            found |= {f"{column} {word}" for word in words}
            found |= {f"{column} {pair}" for pair in pairwise(words)}
        return found

    counts: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
    totals = Counter(row["answer"] for row in splits["train"])
    for row in splits["train"]:
        counts[row["answer"]].update(features(row))

    def log_odds(row: Row) -> float:
        return math.log(totals[True] / totals[False]) + sum(
            math.log((counts[True][f] + 1) / (totals[True] + 2))
            - math.log((counts[False][f] + 1) / (totals[False] + 2))
            for f in features(row)
        )

    right = sum((log_odds(row) > 0) == row["answer"] for row in splits["test"])
    # 1,000 rows: four standard errors around the majority's share.
    assert right / len(splits["test"]) < demo.TRUE_SHARE + 4 * 0.0158


# --- the tokenizer and the model ----------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(demo.MODEL)


@pytest.fixture(scope="module")
def model() -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(demo.MODEL).eval()


def test_the_tokenizer_is_fast_and_has_its_special_tokens(tokenizer: Any) -> None:
    assert tokenizer.is_fast
    special = (tokenizer.pad_token, tokenizer.unk_token, tokenizer.bos_token, tokenizer.eos_token)
    assert special == ("[PAD]", "[UNK]", "[BOS]", "[EOS]")


def test_the_tokenizer_knows_every_word_of_the_task(
    tokenizer: Any, splits: dict[str, list[Row]]
) -> None:
    encoded = tokenizer([prompt(row) for rows in splits.values() for row in rows])["input_ids"]
    assert all(tokenizer.unk_token_id not in ids for ids in encoded)
    assert all(ids[0] == tokenizer.bos_token_id for ids in encoded)
    assert 30 <= min(map(len, encoded)) <= max(map(len, encoded)) <= 50


@pytest.mark.parametrize("choice", [" yes", " no"])
def test_a_choice_is_one_token_more(
    tokenizer: Any, splits: dict[str, list[Row]], choice: str
) -> None:
    text = prompt(splits["test"][0])
    alone = tokenizer(choice, add_special_tokens=False)["input_ids"]
    assert len(alone) == 1
    assert tokenizer(text + choice)["input_ids"] == tokenizer(text)["input_ids"] + alone


def test_pretraining_ids_are_the_tokenizers(tokenizer: Any) -> None:
    words = draw(Random(3), n_remarks=8)
    ids = [corpus.VOCABULARY.index(word) for word in words]
    assert tokenizer(" ".join(words), add_special_tokens=False)["input_ids"] == ids


def test_the_weights_are_small() -> None:
    assert (demo.MODEL / "model.safetensors").stat().st_size <= 4_000_000


def last_logits(model: Any, tokenizer: Any, texts: list[str]) -> Any:
    import torch

    encoded = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
    with torch.no_grad():
        logits = model(**encoded).logits
    return logits[torch.arange(len(texts)), encoded["attention_mask"].sum(1) - 1]


def test_the_base_model_reads_the_language(model: Any, tokenizer: Any) -> None:
    import torch

    rng = Random("text that no pretraining step drew")
    texts = [" ".join(draw(rng, n_remarks=6)) for _ in range(64)]
    encoded = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
    labels = encoded["input_ids"].masked_fill(encoded["attention_mask"] == 0, -100)
    with torch.no_grad():
        loss = model(**encoded, labels=labels).loss
    assert math.exp(loss.item()) < 4


def test_the_base_model_judges_claims_in_the_words_of_its_pretraining(
    model: Any, tokenizer: Any
) -> None:
    true, false = tokenizer.convert_tokens_to_ids(["true", "false"])
    rng = Random("text that no pretraining step drew")
    worlds = [make_world(rng) for _ in range(300)]
    claims = [make_claim(rng, world, pick(rng, READ), rng.random() < 0.5) for world in worlds]
    texts = [
        f"{' . '.join(tell(rng, world))} . claim : {claim.statement}"
        for world, claim in zip(worlds, claims, strict=True)
    ]
    logits = last_logits(model, tokenizer, texts)
    said = (logits[:, true] > logits[:, false]).tolist()
    right = sum(a == claim.truth for a, claim in zip(said, claims, strict=True))
    # 0.85 when the shipped model was made; chance is 0.5.
    assert right / len(claims) > 0.75


def test_the_base_model_is_near_chance_on_the_task(
    model: Any, tokenizer: Any, splits: dict[str, list[Row]]
) -> None:
    yes, no = tokenizer.convert_tokens_to_ids(["yes", "no"])
    logits = last_logits(model, tokenizer, [prompt(row) for row in splits["test"]])
    said = (logits[:, yes] > logits[:, no]).tolist()
    right = sum(a == row["answer"] for a, row in zip(said, splits["test"], strict=True))
    assert 0.44 < right / len(said) < 0.58


# --- the rebuild --------------------------------------------------------------------------------


def test_two_pretraining_runs_give_the_same_bits(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "heft_pipeline.data.demo.build", "--steps", "3", "--to"]
    runs = [
        # What the caller's environment says of threads must not matter.
        subprocess.Popen(
            [*command, str(tmp_path / threads)],
            env=os.environ | {"OMP_NUM_THREADS": threads},
            stderr=subprocess.PIPE,
            text=True,
        )
        for threads in ("1", "2")
    ]
    for run in runs:
        _, errors = run.communicate()
        assert run.returncode == 0, errors
    for name in build.MODEL_NAMES:
        assert build.sha256(tmp_path / "1" / name) == build.sha256(tmp_path / "2" / name)


def test_importing_the_demo_loads_neither_torch_nor_tokenizers() -> None:
    code = (
        "import heft_pipeline.data.demo, sys; print({'torch', 'transformers'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert run.stdout.strip() == "set()"
