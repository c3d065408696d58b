"""The tiny model's tokenizer: one lower-case token per word or punctuation mark.

Word-level tokens make every boundary stable: adding `` yes`` to a text adds one token, however the
text ends. Newlines and runs of blanks separate words and are not tokens.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from .corpus import SPECIAL_TOKENS, VOCABULARY

MAX_LENGTH = 512


def build_tokenizer() -> Tokenizer:
    """Return the tokenizer; it puts [BOS] before every text, as Llama's does."""
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="[UNK]")
    )
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("isolated")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[BOS] $A",
        pair="[BOS] $A $B",
        special_tokens=[("[BOS]", VOCABULARY.index("[BOS]"))],
    )
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer


def save_tokenizer(folder: Path) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json`` into ``folder``."""
    (folder / "tokenizer.json").write_text(
        build_tokenizer().to_str(pretty=True) + "\n", encoding="utf-8"
    )
    pad, unk, bos, eos = SPECIAL_TOKENS
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": MAX_LENGTH,
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        "pad_token": pad,
        "unk_token": unk,
        "bos_token": bos,
        "eos_token": eos,
    }
    text = json.dumps(config, indent=2) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
