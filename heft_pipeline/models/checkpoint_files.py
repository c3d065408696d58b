"""Which files of a local model folder are read: one list for loading and for the fingerprint.

transformers looks for files under names that differ from class to class, and what is there can
change what it reads. So it is given a folder of links to the files of the list, and sees no others.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from heft_pipeline.errors import UserError
from heft_pipeline.files.untrusted import name_inside, read_untrusted, refuse_special
from heft_pipeline.models.settings import ModelSettings

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_TOKENIZER = "tokenizer_config.json"
_TEMPLATES = ("chat_template.jinja", "additional_chat_templates/*.jinja")
#: Only read if the tokenizer's config does not say which tokens were added.
_ADDED_TOKENS = ("special_tokens_map.json", "added_tokens.json")
#: What tokenizers without a tokenizer.json are made from; each class has names of its own.
_VOCABULARY = (
    "vocab*", "*_vocab.json", "merges.txt", "*.model", "*.model.v*", "*.tiktoken", "tekken.json",
    "*.spm", "*.codes", "dict.txt", "emoji.json", "normalizer.json", "byte_maps.json",
)  # fmt: skip
#: The words that a file begins with when Git LFS has not fetched its content.
_LFS = b"version https://git-lfs"


def model_files(
    folder: Path, trust_remote_code: bool, name: str, *, weights: bool = True
) -> list[Path]:
    """Find the files that a model and its tokenizer are read from.

    Args:
        folder: The model's folder.
        trust_remote_code: Whether the folder's own code may run.
        name: What to call the model in messages, e.g. ``model.id=FOLDER``.
        weights: Whether the weights are read.

    Raises:
        UserError: A file is missing or was not fetched, or there is an adapter beside the weights.
    """
    if (folder / "adapter_config.json").is_file():
        raise adapter_beside(name)
    config = _decoded(folder / "config.json", name)
    tokenizer = _decoded(folder / _TOKENIZER, name) if (folder / _TOKENIZER).is_file() else {}
    listed = _listed(config, "configuration_files", "config.json", name)
    listed += _listed(tokenizer, "fast_tokenizer_files", _TOKENIZER, name)
    names = ["config.json", _TOKENIZER, "tokenizer.json", *_TEMPLATES]
    if "added_tokens_decoder" not in tokenizer:
        names += _ADDED_TOKENS
    own_code = trust_remote_code and bool(config.get("auto_map") or tokenizer.get("auto_map"))
    if own_code or not (folder / "tokenizer.json").is_file():
        names += _VOCABULARY
    if own_code:
        names.append("*.py")
    found = {file for pattern in names for file in folder.glob(pattern) if file.is_file()}
    found |= {folder / one for one in listed if (folder / one).is_file()}
    files = sorted(found | set(_weights(folder, config, name) if weights else ()))
    for file in files:
        _refuse_pointer(file, name)
    return files


def adapter_beside(name: str) -> UserError:
    """The error for a model, called ``name``, that has an adapter in its folder."""
    return UserError(
        f"{name} has an adapter (adapter_config.json) beside its weights, which would be applied "
        "on top of them; move it out of the folder, or start from it with lora.init_from"
    )


def refuse_broken_tokenizer(folder: Path, name: str) -> None:
    """Refuse a folder without the files of a tokenizer, or with one that is broken.

    Args:
        folder: The folder that a tokenizer could not be read from.
        name: What to call the model in messages.

    Raises:
        UserError: The message names the file.
    """
    file = folder / "tokenizer.json"
    if file.is_file():
        _decoded(file, name)
    elif folder.is_dir() and not any(next(folder.glob(one), None) for one in _VOCABULARY):
        raise UserError(
            f"{name} has no tokenizer (tokenizer.json, or the vocabulary of an older one); put the "
            "files of the model's own tokenizer beside its weights"
        )


@contextmanager
def only_read_files(settings: ModelSettings, *, weights: bool = False) -> Iterator[str]:
    """Give transformers nothing but the files of :func:`model_files` to read.

    Args:
        settings: The model.
        weights: Whether the weights are read.

    Yields:
        A temporary folder of links for a local model, and the repository's name for one on the hub.
    """
    folder = Path(settings.id)
    if settings.revision is not None or not folder.is_dir():
        yield settings.id
        return
    name = f"model.id={folder}"
    files = model_files(folder, settings.trust_remote_code, name, weights=weights)
    with tempfile.TemporaryDirectory(prefix="heft-model-") as temporary:
        shown = Path(temporary, folder.name)
        for file in files:
            link = shown / file.relative_to(folder)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file.resolve())
        yield str(shown)


def _weights(folder: Path, config: dict[str, Any], name: str) -> list[Path]:
    """The file of the weights, or their shards and the index that lists them."""
    given = config.get("transformers_weights") or _WEIGHTS
    file = folder / name_inside(given, "config.json", name)
    if not file.is_file() and file.name == _WEIGHTS:
        file = folder / _INDEX
    if not file.is_file():
        raise UserError(
            f"{name} has no {_WEIGHTS} or {_INDEX}; download the whole checkpoint, or save it "
            "again with save_pretrained, which writes safetensors"
        )
    if not file.name.endswith(".index.json"):
        return [file]
    _refuse_pointer(file, name)
    listed = _decoded(file, name).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise UserError(f"{name}: {file.name} lists no weights; download the whole checkpoint")
    shards = sorted({folder / name_inside(one, file.name, name) for one in listed.values()})
    if missing := [shard.name for shard in shards if not shard.is_file()]:
        raise UserError(
            f"{name} lacks {missing[0]}"
            + (f" and {len(missing) - 1} other files" if missing[1:] else "")
            + f", which {file.name} lists; download the whole checkpoint"
        )
    return [file, *shards]


def _decoded(file: Path, name: str) -> dict[str, Any]:
    refuse_special(file, name)
    if file.is_file():
        _refuse_pointer(file, name)
    whole = "give a folder with a whole model, as save_pretrained writes it"
    return read_untrusted(file, name, whole)


def _listed(settings: dict[str, Any], key: str, file: str, name: str) -> list[str]:
    """The names of further files that a file lists."""
    found = settings.get(key) or []
    return [name_inside(one, file, name) for one in (found if isinstance(found, list) else [found])]


def _refuse_pointer(file: Path, name: str) -> None:
    with file.open("rb") as stream:
        if stream.read(len(_LFS)) == _LFS:
            raise UserError(
                f"{name}: {file.name} is a Git LFS pointer, not the file; run `git lfs pull`"
            )
