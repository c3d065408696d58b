"""What transformers would refuse while it loads a model is refused before, without weights."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from heft_pipeline.errors import UserError
from heft_pipeline.models.base_model import check_model
from heft_pipeline.models.settings import ModelSettings
from tests.models.tiny_architectures import save_config

CPU = torch.device("cpu")
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}
NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}

Shape = Callable[..., ModelSettings]


@pytest.fixture
def shape(tmp_path: Path) -> Shape:
    """Makes the settings of a model folder that has a configuration and no weights."""

    def made(name: str = "llama", written: dict[str, Any] | None = None, **asked: Any) -> Any:
        folder = save_config(name, tmp_path / name)
        config = json.loads((folder / "config.json").read_text()) | (written or {})
        (folder / "config.json").write_text(json.dumps(config))
        return ModelSettings(id=str(folder), revision=None, name=name, **asked)

    return made


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (GPTQ, r"weights quantised with gptq, .*optimum.*or use the checkpoint that is not quant"),
        (NF4, r"weights quantised with bitsandbytes, which cannot be loaded here: .*bitsandbytes"),
        ({"quant_method": "awq", "bits": 4}, r"weights quantised with awq, .*gptqmodel"),
        ({"quant_method": "compressed-tensors"}, r"with compressed-tensors, .*pip install"),
        ({"quant_method": "made_up"}, r"weights quantised with made_up, which cannot be loaded"),
        ({"quant_method": "fbgemm_fp8"}, r"with fbgemm_fp8, which cannot be loaded here: .*GPU"),
    ],
)
def test_a_quantised_checkpoint_that_cannot_be_loaded_is_refused(
    shape: Shape, stored: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        check_model(shape(written={"quantization_config": stored}), CPU)


def test_a_checkpoint_that_transformers_dequantises_is_allowed(shape: Shape) -> None:
    check_model(shape(written={"quantization_config": FP8}), CPU)


def test_quantised_weights_are_not_quantised_again(shape: Shape) -> None:
    model = shape(written={"quantization_config": FP8}, quantization="nf4")
    message = r"model\.quantization=nf4: the weights of .* already \(fp8"
    with pytest.raises(UserError, match=message):
        check_model(model, CPU)


def test_four_bits_need_a_gpu(shape: Shape) -> None:
    with pytest.raises(UserError, match=r"model\.quantization=nf4 needs a CUDA GPU"):
        check_model(shape(quantization="nf4"), CPU)


@pytest.mark.parametrize(
    ("asked", "device", "message"),
    [
        ("flash_attention_2", "cuda", r"flash_attention_2 cannot be used: .*Flash"),
        ("flash_attention_2", "cpu", r"flash_attention_2 cannot be used: it needs a GPU"),
        ("fastest", "cpu", r"fastest cannot be used: .*use model\.attn_implementation=auto"),
    ],
)
def test_an_attention_that_is_missing_is_refused(
    shape: Shape, asked: str, device: str, message: str
) -> None:
    with pytest.raises(UserError, match=rf"model\.attn_implementation={message}"):
        check_model(shape(attn_implementation=asked), torch.device(device))


@pytest.mark.parametrize("asked", ["auto", "eager", "sdpa", "grouped"])
def test_an_attention_that_is_there_is_allowed(shape: Shape, asked: str) -> None:
    check_model(shape(attn_implementation=asked), CPU)


@pytest.mark.parametrize(
    ("name", "written", "message"),
    [
        ("t5", {}, r"t5 is not a causal language model"),
        ("bert", {}, r"bert reads in both directions"),
        ("llama", {"auto_map": {"AutoConfig": "own.OwnConfig"}, "model_type": "own"},
         r"needs the code in its own repository; .*model\.trust_remote_code=true"),
        ("llama", {"model_type": "unheard_of"}, r"has no configuration that transformers can read"),
        ("llama", {"num_attention_heads": 0}, r"cannot be built from its config\.json|has no conf"),
    ],
)  # fmt: skip
def test_what_is_no_causal_language_model_is_refused(
    shape: Shape, name: str, written: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        check_model(shape(name, written), CPU)


def test_a_decoder_of_a_bidirectional_architecture_is_allowed(shape: Shape) -> None:
    check_model(shape("bert", {"is_decoder": True}), CPU)
