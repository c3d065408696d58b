"""Any text makes a prompt of allowed length in which only the column that may be cut is cut."""

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from heft_pipeline.data.prompts import Task, load_task
from heft_pipeline.data.settings import DataSettings
from heft_pipeline.errors import UserError

PROPERTY = settings(deadline=None, derandomize=True, max_examples=150)
TEMPLATE = "{passage}\nQuestion: {question}\nAnswer:"
ANSWERS = {"true": " yes", "false": " no"}
#: Any unicode, with what tokenizers and templates could take for something else.
TEXT = st.lists(
    st.one_of(
        st.text(max_size=12),
        st.sampled_from(
            ["<s>", "</s>", "<s", "{question}", "{{", "\0", "\r\n", "\u2028", " ", "Answer:", "é",
             "e\u0301", "👩\u200d👩\u200d👧", "\ufeff", "\U0010ffff"]
        ),
    ),
    max_size=8,
).map("".join)  # fmt: skip


def tokenizer() -> Any:
    """A byte-level tokenizer, which loses no text, with a BOS token before it and some merges."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("A", "n"), ("An", "s"), ("Ġ", "y"), ("e", "s"), ("Ġ", "n"), ("Ã", "©")]
    words = ["<s>", "</s>", *letters, *("".join(merge) for merge in merges)]
    made = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")


TOKENIZER = tokenizer()


def task(passage: str, question: str, limit: int, column: str | None = "passage") -> Task:
    """A task whose first reported row has these texts."""
    rows = [{"passage": f"p{n}", "question": f"q{n}", "answer": n % 2 == 0} for n in range(4)]
    asked = {"passage": passage, "question": question, "answer": True}
    with tempfile.TemporaryDirectory() as folder:
        for split, own in (("train", rows[:2]), ("validation", [asked, rows[3]])):
            text = "".join(json.dumps(row) + "\n" for row in own)
            Path(folder, f"{split}.jsonl").write_text(text)
        data = DataSettings(
            path=folder, location=folder, revision=None, name="mine", prompt=TEMPLATE,
            choices=ANSWERS, truncate_column=column, max_prompt_tokens=limit, dev_size=0.0,
            allow_overlap=True,
        )  # fmt: skip
        return load_task(dataclasses.replace(data), TOKENIZER, seed=0)


def filled(passage: str, question: str) -> str:
    return TEMPLATE.format(passage=passage, question=question)


def shown(prompt: tuple[int, ...]) -> str:
    assert prompt[0] == TOKENIZER.bos_token_id
    return TOKENIZER.decode(prompt[1:], clean_up_tokenization_spaces=False)


@PROPERTY
@given(passage=TEXT, question=TEXT, limit=st.integers(30, 120))
@example(passage="é" * 30, question="q", limit=40)
@example(passage="<s>" * 9, question="</s>", limit=50)
def test_only_the_end_of_the_passage_is_cut_and_no_more_than_must_be(
    passage: str, question: str, limit: int
) -> None:
    whole = task(passage, question, 2**20).eval[0]
    try:
        cut = task(passage, question, limit)
    except UserError as error:
        assert "even without its passage" in str(error)
        assert len(task("", question, 2**20).eval[0].prompt) > limit
        return
    row = cut.eval[0]
    assert len(row.prompt) == min(len(row.prompt), limit)
    assert row.prompt.count(TOKENIZER.bos_token_id) == 1, "a row's own text is only text"
    assert TOKENIZER.eos_token_id not in row.prompt
    assert (row.gold, row.answer, row.choices) == (whole.gold, whole.answer, whole.choices)
    if len(whole.prompt) <= limit:
        assert row == whole
        return
    assert cut.truncated == 1
    end = filled("", question)
    assert shown(row.prompt).endswith(end)
    kept = shown(row.prompt).removesuffix(end)
    assert passage.startswith(kept)
    # Whatever ends where the next tokens do would not have fitted.
    longer = next(n for n in range(len(kept) + 1, len(passage) + 1) if n in ends(passage))
    assert len(task(passage[:longer], question, 2**20).eval[0].prompt) > limit


def ends(text: str) -> set[int]:
    found = TOKENIZER(
        text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
    )
    return {end for _, end in found["offset_mapping"]}


@PROPERTY
@given(passage=TEXT, question=TEXT)
def test_a_prompt_that_fits_is_the_template_with_the_rows_own_text(
    passage: str, question: str
) -> None:
    row = task(passage, question, 2**20).eval[0]
    assert shown(row.prompt) == filled(passage, question)
    assert [TOKENIZER.decode(ids) for ids in row.choices] == [" yes", " no"]
    assert row.answer == row.choices[row.gold]


@PROPERTY
@given(passage=TEXT, question=TEXT, limit=st.integers(1, 60))
def test_without_a_column_to_cut_a_long_prompt_is_an_error(
    passage: str, question: str, limit: int
) -> None:
    assume(len(task(passage, question, 2**20).eval[0].prompt) > limit)
    with pytest.raises(UserError, match=f"more than data.max_prompt_tokens={limit}"):
        task(passage, question, limit, column=None)
