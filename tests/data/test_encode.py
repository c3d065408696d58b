"""What a row's text and a template become: special tokens, the boundary of answers, and cuts."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from heft_pipeline.data.answer_text import PLAIN
from heft_pipeline.data.answers import answer_tokens
from heft_pipeline.data.encode import Encoder, render
from heft_pipeline.data.prompts import _cut
from heft_pipeline.data.row_choices import Piece
from heft_pipeline.data.settings import DataSettings
from heft_pipeline.data.text_rows import Number
from heft_pipeline.errors import UserError
from heft_pipeline.plan.graph import Run

TEXTS = [
    "Question: is the sky blue? Answer: yes no",
    "天空是蓝色的吗 草是绿色的",
    "ab cab wab\nab",
] * 3


def trained_tokenizer(metaspace: bool = False, template: str = "<s> $A </s>") -> Any:
    """A small BPE with a leading and a trailing special token, as BERT and T5 have them."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>" if metaspace else None))
    if metaspace:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        alphabet = []
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<unk>", "<s>", "</s>", "<|user|>"]
    tokenizer.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


@pytest.fixture
def data(compose_run: Callable[..., Run], small: list[str]) -> DataSettings:
    return compose_run(*small).last.data


def prompted(data: DataSettings, template: str, **row: Any) -> list[Piece]:
    return render(dataclasses.replace(data, prompt=template), "train/0", row).prompt


def test_a_prompt_starts_with_the_special_token_and_does_not_end_with_one(
    data: DataSettings,
) -> None:
    tokenizer = trained_tokenizer()
    (ids,) = Encoder(tokenizer).encode([prompted(data, "Answer: {x}", x="yes")])
    assert ids[0] == 1
    assert 2 not in ids
    assert tokenizer.decode(ids[1:]) == "Answer: yes"


def test_a_template_with_its_own_bos_gets_no_second_one(data: DataSettings) -> None:
    encoder = Encoder(trained_tokenizer())
    with_own, without = encoder.encode(
        [prompted(data, "<s>Answer: {x}", x="yes"), prompted(data, "Answer: {x}", x="yes")]
    )
    assert with_own == without


@pytest.mark.parametrize("template", ["$A", "<s> $A", "$A </s>"])
def test_any_rule_of_the_tokenizer_is_followed_at_the_start_alone(
    data: DataSettings, template: str
) -> None:
    encoder = Encoder(trained_tokenizer(template=template))
    (ids,) = encoder.encode([prompted(data, "Answer: {x}", x="yes")])
    assert (ids[0] == 1) == template.startswith("<s>")
    assert ids[-1] != 2


@pytest.mark.parametrize("token", ["</s>", "<s>", "<|user|>"])
def test_a_rows_text_never_becomes_a_special_token(data: DataSettings, token: str) -> None:
    tokenizer = trained_tokenizer()
    special = tokenizer.convert_tokens_to_ids(token)
    text = f"{token} is {token}"
    plain, guarded = Encoder(tokenizer).encode(
        [
            prompted(data, "Question: {x} Answer:", x=text),
            prompted(data, "Question: {x} <|user|>Answer:", x=text),
        ]
    )
    assert special not in plain[1:]
    assert tokenizer.decode(plain[1:]) == f"Question: {text} Answer:"
    # The template's own token is special, and once.
    user = tokenizer.convert_tokens_to_ids("<|user|>")
    assert guarded.count(user) == 1
    assert tokenizer.decode(guarded[1:]) == f"Question: {text} <|user|>Answer:"


def test_a_row_without_special_tokens_is_tokenised_as_ever(data: DataSettings) -> None:
    tokenizer = trained_tokenizer()
    prompts = [prompted(data, "<|user|>Question: {x} Answer:", x=x) for x in TEXTS]
    for ids, x in zip(Encoder(tokenizer).encode(prompts), TEXTS, strict=True):
        whole = tokenizer(f"<|user|>Question: {x} Answer:")["input_ids"]
        assert list(ids) == whole[:-1]


def test_a_special_token_that_is_also_a_word_of_the_vocabulary_is_refused(
    data: DataSettings,
) -> None:
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "yes": 2}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>")
    with pytest.raises(UserError, match="a row has </s> in its text"):
        Encoder(fast).encode([prompted(data, "{x}", x="yes </s> yes")])


@pytest.mark.parametrize("metaspace", [False, True])
@pytest.mark.parametrize("blank", [" ", "\n", "  "])
def test_a_blank_at_the_prompts_end_moves_to_every_choice(
    data: DataSettings, metaspace: bool, blank: str
) -> None:
    encoder = Encoder(trained_tokenizer(metaspace))
    choices = {"true": "yes", "false": "blue sky"}
    ends = dataclasses.replace(data, prompt=f"{{x}} Answer:{blank}", choices=choices)
    moved = dataclasses.replace(
        ends, prompt="{x} Answer:", choices={k: blank + v for k, v in choices.items()}
    )
    row = {"x": "the sky"}
    one, other = (render(task, "train/0", row).prompt for task in (ends, moved))
    assert encoder.encode([one]) == encoder.encode([other])
    assert answer_tokens(ends, encoder, one, PLAIN) == answer_tokens(moved, encoder, other, PLAIN)


def test_all_choices_have_one_boundary(data: DataSettings) -> None:
    """If one choice merges with the prompt, all are tokenised by themselves."""
    encoder = Encoder(trained_tokenizer(metaspace=True))
    asked = dataclasses.replace(data, prompt="{x}", choices={"true": "ab", "false": "?"})
    found = answer_tokens(asked, encoder, render(asked, "train/0", {"x": "w"}).prompt, PLAIN)
    assert found == tuple(encoder.alone([(text, False)]) for text in ("ab", "?"))


@pytest.mark.parametrize("x", ["天空是蓝色的吗草是绿色的" * 8, "the sky is blue " * 12])
def test_a_text_of_any_script_is_cut_at_its_tokens(data: DataSettings, x: str) -> None:
    tokenizer = trained_tokenizer()
    encoder, limit = Encoder(tokenizer), 30
    asked = dataclasses.replace(
        data, prompt="{x} Answer:", truncate_column="x", max_prompt_tokens=limit
    )
    (whole,) = encoder.encode([render(asked, "train/0", {"x": x}).prompt])
    _, ids = _cut(asked, encoder, None, "train/0", {"x": x}, len(whole))
    kept = tokenizer.decode(ids[1:]).removesuffix(" Answer:")
    assert x.startswith(kept)
    # As much is kept as fits: a character has up to three tokens here.
    assert limit - 3 < len(ids) <= limit


@pytest.mark.parametrize(
    ("value", "said"),
    [(None, r"nothing \(null\) in x"), (["a"], "a list in x"), ({"a": 1}, "a dict in x")],
)
def test_what_is_no_text_is_refused_with_its_row_and_column(
    data: DataSettings, value: Any, said: str
) -> None:
    asked = dataclasses.replace(data, prompt="{x} Answer:")
    with pytest.raises(UserError, match=rf"row train/7 of small has {said}"):
        render(asked, "train/7", {"x": value})


def test_numbers_and_parts_of_a_column_are_text(data: DataSettings) -> None:
    asked = dataclasses.replace(data, prompt="{n:.1f} {x[text][0]} {flag} {{}}:")
    row = {"n": 0.25, "x": {"text": ["blue"]}, "flag": True}
    assert render(asked, "train/0", row).text == "0.2 blue True {}:"


@pytest.mark.parametrize(
    "prompt",
    [
        "{n.__new__.__globals__[sys].modules[os].environ[HF_TOKEN]}",
        "{x.__class__}",
        "{x[0].__class__}",
        "{x:>9999999999}",
    ],
)
def test_a_prompt_reaches_no_further_than_its_row(data: DataSettings, prompt: str) -> None:
    with pytest.raises(UserError, match="or a part of one as"):
        render(dataclasses.replace(data, prompt=prompt), "train/0", {"x": "a", "n": Number("0.5")})
