"""Chat templates, doubled special tokens, and answers as each adapter and evaluation sees them."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from heft_pipeline.data.encode import Encoder, render
from heft_pipeline.data.prompts import Task, load_task
from heft_pipeline.data.settings import DataSettings
from heft_pipeline.errors import UserError
from heft_pipeline.plan.graph import Run
from heft_pipeline.stage.cached_inputs import cached_task
from tests.conftest import make_rows, write_rows
from tests.data.test_encode import trained_tokenizer

ComposeRun = Callable[..., Run]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}<<SYS>>{{ messages[0].content }}<</SYS>>"
    "{% set messages = messages[1:] %}{% endif %}[INST] {{ messages[0].content | trim }} [/INST]"
)
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}<u>{{ messages[0].content }}</u>"
)


@pytest.fixture
def data(compose_run: ComposeRun, small: list[str]) -> DataSettings:
    settings = compose_run(*small).last.data
    return dataclasses.replace(
        settings, chat=True, prompt="{passage}\nQuestion: {question}?\n",
        choices={"true": "Yes", "false": "No"},
    )  # fmt: skip


@pytest.fixture
def chat_tokenizer() -> Any:
    tokenizer = trained_tokenizer()
    tokenizer.add_special_tokens(
        {"bos_token": "<s>", "additional_special_tokens": ["<|im_start|>", "<|im_end|>"]}
    )
    return tokenizer


@pytest.mark.parametrize("template", [CHATML, LLAMA])
@pytest.mark.parametrize("system", [None, "Say yes or no."])
def test_prompts_are_what_the_tokenizer_makes_of_the_conversation(
    data: DataSettings, chat_tokenizer: Any, template: str, system: str | None
) -> None:
    chat_tokenizer.chat_template = template
    asked = dataclasses.replace(data, system=system, special_tokens="as_written")
    task = load_task(asked, chat_tokenizer, 0)
    from heft_pipeline.data.rows import read_splits

    rows = read_splits(asked, 0)["train"]
    messages = [{"role": "system", "content": system}] if system else []
    for example, (id, row) in zip(task.train[:5], rows, strict=False):
        text = f"{row['passage']}\nQuestion: {row['question']}?"
        expected = chat_tokenizer.apply_chat_template(
            [*messages, {"role": "user", "content": text}],
            add_generation_prompt=True, return_dict=False,
        )  # fmt: skip
        assert example.id == id
        assert list(example.prompt) == list(expected)
    own = chat_tokenizer(["Yes", "No"], add_special_tokens=False)["input_ids"]
    assert list(map(list, task.eval[0].choices)) == own


def test_a_rows_text_cannot_end_its_turn(data: DataSettings, chat_tokenizer: Any) -> None:
    from heft_pipeline.data.chat import Chat

    chat_tokenizer.chat_template = CHATML
    prompt = render(data, "train/0", {"passage": "a <|im_end|> b", "question": "c"}).prompt
    (ids,) = Encoder(chat_tokenizer).encode([Chat(chat_tokenizer, None).pieces("train/0", prompt)])
    end = chat_tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert ids.count(end) == 1, "only the template's own"


@pytest.mark.parametrize(
    ("template", "system", "message"),
    [
        (None, None, "has no chat template"),
        (NO_SYSTEM, "x", r"data\.system.*System role not supported"),
        ("{{ messages[0].content | upper }}", None, "leaves the user's turn out"),
        ("{{ messages[0].content | replace('?', '!') }}", None, "changes the text of row train/0"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused(
    data: DataSettings, chat_tokenizer: Any, template: str, system: str | None, message: str
) -> None:
    chat_tokenizer.chat_template = template
    with pytest.raises(UserError, match=message):
        load_task(dataclasses.replace(data, system=system), chat_tokenizer, 0)


def test_a_long_turn_is_cut_inside_the_conversation(
    data: DataSettings, chat_tokenizer: Any
) -> None:
    chat_tokenizer.chat_template = CHATML
    asked = dataclasses.replace(data, max_prompt_tokens=60)
    task = load_task(asked, chat_tokenizer, 0)
    assert task.truncated
    start = chat_tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert all(example.prompt.count(start) == 2 for example in task.train)
    assert max(task.prompt_lengths) <= 60


@pytest.mark.parametrize(
    ("special_tokens", "prompt", "first"),
    [
        ("once", "{passage}", [1]),
        ("once", "<s> {passage}", [1]),
        ("add", "<s> {passage}", [1, 1]),
        ("add", "{passage}", [1]),
        ("as_written", "{passage}", []),
        ("as_written", "<s> {passage}", [1]),
    ],
)
def test_leading_special_tokens_come_once_doubled_or_as_written(
    compose_run: ComposeRun, small: list[str], special_tokens: str, prompt: str, first: list[int]
) -> None:
    asked = [f"data.prompt='{prompt}'", f"data.special_tokens={special_tokens}"]
    task = cached_task(compose_run(*small, *asked).last)
    assert all(e.prompt[: len(first)] == tuple(first) for e in task.train)
    assert all(e.prompt[len(first)] >= 3 for e in task.train)
    assert any("twice" in note for note in task.notes) == (len(first) == 2)


def test_each_adapter_and_the_evaluation_have_answers_of_their_own(
    compose_run: ComposeRun, small: list[str]
) -> None:
    answers = [
        "lora.answer='w1 {choice}'",
        "reft.end_token=true",
        "evaluation.answer='{choice} w2'",
    ]
    run = compose_run(*small, "method=heft", *answers)
    coarse, fine = (cached_task(stage) for stage in run.stages)
    words = [8 + n for n in (1, 2)]
    for one, other in zip(coarse.train, fine.train, strict=True):
        assert one.answer == (words[0], (3, 4)[one.gold])
        assert other.answer == ((3, 4)[other.gold], 2)
        assert one.choices == other.choices == ((3, words[1]), (4, words[1]))


def test_answers_that_make_no_sense_are_refused(compose_run: ComposeRun, small: list[str]) -> None:
    for key, value in (("lora.answer", "'yes'"), ("evaluation.answer", "'{choice} {choice}'")):
        with pytest.raises(UserError, match=rf"{key}=.* must contain {{choice}} once"):
            compose_run(*small, f"{key}={value}")
    with pytest.raises(UserError, match=r"data\.dev_size=0 .*training\.selection=last"):
        compose_run(*small, "data.dev_size=0")
    with pytest.raises(UserError, match=r"data\.system .*data\.chat=true"):
        compose_run(*small, "data.system=x")


def test_an_end_token_that_the_tokenizer_lacks_is_refused(
    compose_run: ComposeRun, small: list[str], small_model: Path
) -> None:
    from heft_pipeline.data.answer_text import AnswerText

    tokenizer = PreTrainedTokenizerFast.from_pretrained(small_model)
    tokenizer.eos_token = None
    stage = compose_run(*small).last
    with pytest.raises(UserError, match="has no end token; use end_token=false"):
        load_task(stage.data, tokenizer, 0, AnswerText(end_token=True))


def test_without_dev_rows_all_rows_are_trained_on(
    compose_run: ComposeRun, small: list[str]
) -> None:
    task: Task = cached_task(compose_run(*small, "data.dev_size=0", "training.selection=last").last)
    assert (len(task.train), len(task.dev)) == (120, 0)
    assert not task.notes


def test_a_template_that_prints_todays_date_has_the_same_one_every_day(
    data: DataSettings, chat_tokenizer: Any
) -> None:
    chat_tokenizer.chat_template = "Today is {{ strftime_now('%d %b %Y') }}.\n" + CHATML
    task = load_task(data, chat_tokenizer, 0)
    assert "Today is 26 Jul 2024." in chat_tokenizer.decode(task.train[0].prompt)


def test_an_empty_prompt_is_refused_with_its_row(
    compose_run: ComposeRun, small: list[str], tmp_path: Path
) -> None:
    rows = make_rows(20, seed=1)
    rows[3]["passage"] = ""
    for split in ("train", "validation"):
        write_rows(tmp_path / f"{split}.jsonl", rows)
    asked = [f"data.path={tmp_path}", "data.prompt='{passage}'", "data.special_tokens=as_written"]
    stage = compose_run(*small, *asked, "data.allow_overlap=true").last
    with pytest.raises(UserError, match=r"row \w+/3 of small makes an empty prompt"):
        cached_task(stage)


def test_nothing_has_to_be_chosen_where_nothing_is_trained(
    compose_run: ComposeRun, small: list[str]
) -> None:
    assert not cached_task(compose_run(*small, "data.dev_size=0", "method.stages=[]").last).dev
