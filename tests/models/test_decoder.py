"""Finding the decoder layers and what no text reaches, in the shapes that models come in."""

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from heft_pipeline.errors import UserError
from heft_pipeline.models.decoder import decoder_layers, unreached
from tests.models.tiny_architectures import tiny_model


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("llama", "model.layers"),
        ("gpt2", "transformer.h"),
        ("mamba", "backbone.layers"),
        ("opt", "model.decoder.layers"),
        ("deepseek_v3", "model.layers"),
        ("gemma3", "model.language_model.layers"),
        ("got_ocr2", "model.language_model.layers"),
        ("bart", "model.decoder.layers"),
        ("longcat_flash", "model.layers"),
    ],
)
def test_the_layers_are_those_of_the_text_model(name: str, path: str) -> None:
    """The towers of gemma3 and got_ocr2 have as many layers, and come first in the model."""
    found, layers = decoder_layers(tiny_model(name))
    assert (found, len(layers)) == (path, 4)


def test_the_number_of_layers_need_not_be_the_configurations() -> None:
    """BART's number is its encoder's, and LongCat-Flash counts two sublayers a layer."""
    for name in ("blenderbot", "longcat_flash"):
        model = tiny_model(name)
        assert len(decoder_layers(model)[1]) != model.config.num_hidden_layers


@pytest.mark.parametrize("name", ["xlm", "blt", "hrm_text"])
def test_pieces_of_layers_are_not_taken_for_layers(name: str) -> None:
    import torch

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name))
    with pytest.raises(UserError, match=r"the decoder layers of \w+ were not found"):
        decoder_layers(model)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("llama", set()),
        ("opt", set()),
        ("mixtral", set()),
        ("gemma3", {"model.vision_tower", "model.multi_modal_projector"}),
        ("got_ocr2", {"model.vision_tower", "model.multi_modal_projector"}),
        ("bart", {f"model.decoder.layers.{n}.encoder_attn" for n in range(4)}),
    ],
)
def test_what_reads_something_else_than_text_is_unreached(name: str, parts: set[str]) -> None:
    assert set(unreached(tiny_model(name))) == parts
