"""The tiny model: its shape, its first weights, and its pretraining on ``corpus``.

The model is a Llama with biases in its attention (``attention_bias=True``), pretrained with AdamW
on documents that are newly drawn for every step. The first documents only tell their passage
again, so that the model first learns to look up a sentence; the verdicts build on that.

Everything runs on the CPU in float32 with a fixed number of threads; ``build`` fixes everything
else that could change the rounding.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import torch
from safetensors.torch import save_file
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from .corpus import VOCABULARY, Document, Form, make_document, make_retelling
from .language import READ, Kind
from .tokenizer import MAX_LENGTH, save_tokenizer

HIDDEN_SIZE = 128
N_LAYERS = 4
N_HEADS = 4
HEAD_DIM = HIDDEN_SIZE // N_HEADS
INTERMEDIATE_SIZE = 256
ROPE_THETA = 10000.0
LOOKUP_GAIN = 1.0
"""How sharply the heads that look up words start out; larger is closer to a single word."""

PAD, BOS, EOS = (VOCABULARY.index(token) for token in ("[PAD]", "[BOS]", "[EOS]"))


@dataclass(frozen=True)
class Lesson:
    """A stretch of pretraining on one kind of document.

    Attributes:
        max_steps: The most optimizer steps.
        mastered: End the lesson when the words that matter most in it (a claim's verdict; in a
            retelling, each sentence's last word) cost fewer nats each, averaged over ``WINDOW``
            steps.
        kinds: The kinds of claims; none if the documents only retell their passage.
        forms: The probability of each form of remark.
    """

    max_steps: int
    mastered: float = 0.0
    kinds: tuple[Kind, ...] = ()
    forms: Mapping[Form, float] = field(default_factory=dict)


LESSONS = (
    Lesson(600, 0.3),
    Lesson(600, 0.2, ("fact",), {"note": 0.2, "mark": 0.8}),
    Lesson(600, 0.1, READ, {"note": 0.1, "mark": 0.5, "verdict": 0.4}),
    Lesson(
        600,
        0.05,
        READ,
        {"note": 0.1, "mark": 0.15, "verdict": 0.2, "ask": 0.2, "answer": 0.35},
    ),
    Lesson(
        300,
        0.0,
        READ,
        {"note": 0.1, "mark": 0.1, "verdict": 0.1, "ask": 0.2, "answer": 0.35, "guess": 0.15},
    ),
)
"""Each lesson needs what the one before it taught; if they are mixed, none of it is learned."""

WINDOW = 25
BATCH_SIZE = 16
N_RETELLINGS = 3
N_REMARKS = 8
WARMUP_STEPS = 50
LEARNING_RATE = 2e-3
"""The peak; it falls linearly to zero over the last lesson."""


def model_config() -> dict[str, object]:
    """Return the contents of the model's ``config.json``."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "vocab_size": len(VOCABULARY),
        "hidden_size": HIDDEN_SIZE,
        "intermediate_size": INTERMEDIATE_SIZE,
        "num_hidden_layers": N_LAYERS,
        "num_attention_heads": N_HEADS,
        "num_key_value_heads": N_HEADS,
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "attention_bias": True,
        "mlp_bias": False,
        "max_position_embeddings": MAX_LENGTH,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA},
        "tie_word_embeddings": True,
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
    }


def pretrain(
    seed: int,
    held_out: frozenset[str],
    steps: int | None = None,
    on_step: Callable[[int, float, LlamaForCausalLM], None] | None = None,
) -> LlamaForCausalLM:
    """Make the tiny model.

    Args:
        seed: Decides the first weights and every document.
        held_out: Passages that must not occur, as ``language.passage_key`` gives them.
        steps: Stop after this many steps; None for all lessons.
        on_step: Called after each step with the number of steps done, the lesson's loss (see
            ``Lesson.mastered``) and the model.

    Returns:
        The pretrained model, in evaluation mode.
    """
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**model_config(), attn_implementation="sdpa"))
    _first_weights(model)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01
    )
    rng = Random(f"{seed} pretraining")
    model.train()
    done = 0
    for lesson in LESSONS:
        recent: deque[float] = deque(maxlen=WINDOW)
        for step in range(lesson.max_steps):
            if done == steps:
                return model.eval()
            documents = [_draw(rng, lesson, held_out) for _ in range(BATCH_SIZE)]
            loss, asked = _losses(model, documents)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            left = 1 - step / lesson.max_steps if lesson is LESSONS[-1] else 1.0
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * min(left, (done + 1) / WARMUP_STEPS)
            optimizer.step()
            optimizer.zero_grad()
            done += 1
            if on_step:
                on_step(done, asked, model)
            recent.append(asked)
            if len(recent) == WINDOW and sum(recent) / WINDOW < lesson.mastered:
                break
    return model.eval()


def save(model: LlamaForCausalLM, folder: Path) -> None:
    """Write the model and its tokenizer into ``folder``, which ``from_pretrained`` can then load.

    ``save_pretrained`` would also write the version of transformers, and so change the bytes with
    each of its releases.
    """
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    del tensors["lm_head.weight"]  # tied to the embeddings
    weights = folder / "model.safetensors"
    save_file(tensors, weights, metadata={"format": "pt"})
    weights.chmod(0o644)
    text = json.dumps(model_config(), indent=2) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8", newline="\n")
    save_tokenizer(folder)


def _draw(rng: Random, lesson: Lesson, held_out: frozenset[str]) -> Document:
    if not lesson.kinds:
        return make_retelling(rng, N_RETELLINGS, held_out)
    return make_document(rng, N_REMARKS, lesson.kinds, lesson.forms, held_out)


@torch.no_grad()
def _first_weights(model: LlamaForCausalLM) -> None:
    """Draw weights from which a small model learns to look up words within minutes.

    Looking up what was said of the cup takes heads that look a few tokens back, and heads that
    then find the same words earlier in the text and copy what came next (induction heads, arXiv
    2209.11895). From the usual small weights they appear only after many thousands of steps, so
    the attention starts out near them, as in mimetic initialization (arXiv 2305.09828):

    * the embeddings leave the last ``HEAD_DIM`` features free, and the heads of the first layer
      write a projection of the words 1, 2, 3 and 4 tokens back into them: their query and key
      biases differ by exactly that rotation (rotary embeddings, arXiv 2104.09864, section 3.2);
    * the heads of the other layers compare a token and those before it with what came before
      earlier tokens, and copy the word there: output times value projection is near the
      identity. One head of each layer copies from 3 tokens back instead, which is the distance
      from a verdict to its claim.
    """
    word = HIDDEN_SIZE - HEAD_DIM
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            parameter.normal_(0.0, HIDDEN_SIZE**-0.5)
            if name.endswith("down_proj.weight"):
                parameter.mul_((2 * N_LAYERS) ** -0.5)
    model.model.embed_tokens.weight.mul_(0.5 * HIDDEN_SIZE**0.5)
    model.model.embed_tokens.weight[:, word:] = 0.0
    # The output weights are the input embeddings, so this sets the logits' initial scale.
    model.model.norm.weight.fill_(0.2)
    first, *others = (layer.self_attn for layer in model.model.layers)
    project = torch.randn(HEAD_DIM, word) * word**-0.5
    first.v_proj.weight.zero_()
    first.v_proj.weight[:, :word] = project.repeat(N_HEADS, 1)
    first.o_proj.weight.zero_()
    first.o_proj.weight[word:] = torch.eye(HEAD_DIM).repeat(1, N_HEADS)
    first.q_proj.bias.copy_(torch.cat([_looking_back(h + 1) for h in range(N_HEADS)]))
    first.k_proj.bias.copy_(torch.cat([_looking_back(0)] * N_HEADS))
    slow = torch.tensor([float(f < 0.02) for f in _frequencies()] * 2 * N_HEADS)
    for attention in others:
        compare = torch.randn(HIDDEN_SIZE, HEAD_DIM) * LOOKUP_GAIN * HEAD_DIM**-0.5
        compare *= slow[:, None]
        compare[:HEAD_DIM] = 0.0
        attention.q_proj.weight[:, :word] = compare @ project
        attention.q_proj.weight[:, word:] = compare
        attention.k_proj.weight[:, :word] = 0.0
        attention.k_proj.weight[:, word:] = compare
        attention.o_proj.weight.copy_(0.5 * attention.v_proj.weight.T)
        attention.q_proj.bias[:HEAD_DIM] = _looking_back(3)
        attention.k_proj.bias[:HEAD_DIM] = _looking_back(0)


def _looking_back(distance: int) -> torch.Tensor:
    """Return a head's bias, rotated by minus ``distance`` positions; shape [HEAD_DIM].

    The slow rotations, which hardly tell neighbours apart, are left to the content.
    """
    pairs = [(6.0 if frequency > 0.05 else 0.0, frequency) for frequency in _frequencies()]
    real = [strength * math.cos(distance * frequency) for strength, frequency in pairs]
    imaginary = [-strength * math.sin(distance * frequency) for strength, frequency in pairs]
    return torch.tensor(real + imaginary)


def _frequencies() -> list[float]:
    """Return the rotation of each pair of a head's features, in radians per position."""
    half = HEAD_DIM // 2
    return [ROPE_THETA ** (-i / half) for i in range(half)]


def _losses(model: LlamaForCausalLM, documents: list[Document]) -> tuple[torch.Tensor, float]:
    """Return the weighted mean cross-entropy of all tokens, and that of the heaviest, in nats."""
    ids = {word: i for i, word in enumerate(VOCABULARY)}
    length = 1 + max(len(document.words) for document in documents)
    tokens = torch.full((len(documents), length), PAD)
    weights = torch.zeros(len(documents), length)
    tokens[:, 0] = BOS
    for row, document in enumerate(documents):
        end = 1 + len(document.words)
        tokens[row, 1:end] = torch.tensor([ids[word] for word in document.words])
        weights[row, 1:end] = torch.tensor(document.weights)
    # Padding is on the right, so causal attention alone keeps it out of every scored position.
    counted = weights[:, 1:] > 0
    hidden = model.model(input_ids=tokens[:, :-1]).last_hidden_state[counted]
    losses = functional.cross_entropy(
        model.lm_head(hidden), tokens[:, 1:][counted], reduction="none"
    )
    weight = weights[:, 1:][counted]
    asked = losses.detach()[weight == weight.max()].mean().item()
    return (losses * weight).sum() / weight.sum(), asked
