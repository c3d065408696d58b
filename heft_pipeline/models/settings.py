"""The settings of the frozen base model."""

from dataclasses import dataclass

from omegaconf import MISSING

from heft_pipeline.declare_settings import Settings, found, setting


@dataclass(frozen=True)
class ModelSettings(Settings):
    """The frozen base model. In a stage, planning has resolved ``id`` and ``revision``."""

    id: str = setting(MISSING, "a hub repository, a local folder, or builtin:tiny", identity=False)
    revision: str | None = setting(
        "main", "a branch, tag or commit of the hub repository", identity=False
    )
    name: str | None = setting(
        None, "its name in tables; null: the last part of model.id", identity=False
    )
    dtype: str = setting(
        "auto",
        "the dtype of the frozen weights; auto: bfloat16 where the device that trains a stage has "
        "instructions for it (CUDA from capability 8.0, CPUs with AMX or AVX512-BF16), otherwise "
        "float32",
        choices=("auto", "float32", "bfloat16"),
    )
    quantization: str = setting(
        "none",
        "nf4 keeps the frozen weights in 4 bits (arXiv 2305.14314; CUDA and bitsandbytes)",
        choices=("none", "nf4"),
    )
    attn_implementation: str = setting(
        "auto", "transformers' name for the attention kernel, or grouped (this project's)"
    )
    trust_remote_code: bool = setting(
        False, "whether the repository's own code may run", identity=False
    )
    content: str | None = found(
        "The content of the weights: sha256:DIGEST of a folder, or hub:ID@COMMIT."
    )
