"""What one decoder layer multiplies for each token, read off its modules."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from heft_pipeline.models.decoder import unreached

#: The names that models give to the number of experts that each token is sent to.
_CHOSEN = ("top_k", "num_experts_per_tok", "moe_topk", "moe_top_k", "experts_top_k",
           "num_selected_experts", "num_experts_per_token")  # fmt: skip
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
#: Words in the names of attention modules that compare no pairs of tokens.
_NO_SOFTMAX = ("Delta", "Lightning", "Rwkv")
#: The tokens of a chunk in both implementations of the gated delta rule that transformers uses.
_CHUNK = 64


@dataclass(frozen=True)
class Scan:
    """The products of activations with each other in a layer that carries a state.

    Attributes:
        state: For each token: writing the state and reading it.
        pairs: For each pair of tokens of a chunk.
        chunk: The tokens of a chunk.
    """

    state: int = 0
    pairs: int = 0
    chunk: int = 0

    def multiplications(self, tokens: int) -> int:
        """The multiplications for one sequence of so many tokens."""
        return tokens * (self.state + self.pairs * min(tokens, self.chunk))


@dataclass(frozen=True)
class LayerOperations:
    """The multiplications of one decoder layer.

    Attributes:
        weights: The weights that a token is multiplied with.
        attention: The width of the heads, which each pair of tokens is multiplied over twice.
        activations: The values that a token's products with weights read and write.
        scans: Its scans over a state.
    """

    weights: float
    attention: float
    activations: float
    scans: tuple[Scan, ...] = ()

    def mixing(self, tokens: int, keys: int) -> float:
        """The floating-point operations between the tokens of one sequence.

        Args:
            tokens: Its tokens.
            keys: Those and the earlier ones that they attend to.
        """
        scanned = sum(scan.multiplications(tokens) for scan in self.scans)
        return 4.0 * tokens * keys * self.attention + 2.0 * scanned


def layer_operations(model: Any, layers: nn.ModuleList) -> list[LayerOperations]:
    """The multiplications of each of a model's decoder layers.

    A token is multiplied with the weights of the experts that it is sent to, and of no others.
    Layers of linear attention and of state spaces have no products of all pairs of tokens. Mamba
    writes and reads a state (Gu and Dao 2023, arXiv 2312.00752, algorithm 2); Mamba-2 (Dao and Gu
    2024, arXiv 2405.21060, section 6) and the gated delta rule (Yang et al. 2024, arXiv 2412.06464,
    section 3.3, without its triangular solves) are computed in chunks.

    Args:
        model: A transformers causal language model without adapters.
        layers: Its decoder layers.
    """
    skipped = {id(model.get_submodule(path)) for path in unreached(model)}
    config = model.config.get_text_config()
    kinds = _read(config, "layer_types")
    kinds = kinds if isinstance(kinds, list) and len(kinds) == len(layers) else [""] * len(layers)
    found = []
    for layer, kind in zip(layers, kinds, strict=True):
        parts = [] if id(layer) in skipped else list(_parts(layer, skipped))
        linear = str(kind).startswith("linear")
        found.append(
            LayerOperations(
                weights=sum(
                    count * _share(part, config) for part in parts if (count := _weights(part[2]))
                ),
                attention=0.0 if linear else _attention(parts, config),
                activations=sum(
                    count * _share(part, config) for part in parts if (count := _widths(part[2]))
                ),
                scans=tuple(_scan(module) for _, _, module in parts if hasattr(module, "A_log")),
            )
        )
    return found


#: A module with the names on its way down from the layer, and the modules around it.
Part = tuple[tuple[str, ...], tuple[nn.Module, ...], nn.Module]


def _parts(
    module: nn.Module,
    skipped: set[int],
    names: tuple[str, ...] = (),
    around: tuple[nn.Module, ...] = (),
) -> Iterator[Part]:
    """A module and all in it that a forward pass over text runs."""
    yield names, around, module
    for name, child in module.named_children():
        if id(child) not in skipped:
            yield from _parts(child, skipped, (*names, name), (*around, module))


def _weights(module: nn.Module) -> int:
    """The number of weights in a module's own matrices."""
    return sum(math.prod(shape) for shape in _matrices(module))


def _widths(module: nn.Module) -> int:
    """The sum of what a module's own matrices read and write."""
    return sum(math.prod(shape[:-2]) * sum(shape[-2:]) for shape in _matrices(module))


def _matrices(module: nn.Module) -> list[Sequence[int]]:
    """The shapes of a module's own matrices.

    A 4-bit parameter is packed; its shape is in the state that bitsandbytes keeps beside it.
    """
    if isinstance(module, nn.Embedding):
        return []
    shapes = (
        getattr(getattr(parameter, "quant_state", parameter), "shape", parameter.shape)
        for name, parameter in module.named_parameters(recurse=False)
        if not name.endswith("bias") and name != "A_log"  # the bias of several experts is a matrix
    )
    return [shape for shape in shapes if len(shape) > 1]


def _share(part: Part, config: Any) -> float:
    """The share of a module's weights that a token is multiplied with: less than 1 for experts."""
    names, around, module = part
    chain = (*around, module)
    place = len(chain) - 1 - names[::-1].index("experts") if "experts" in names else len(chain) - 1
    experts = _number_of_experts(chain[place:], config)
    if not experts:
        return 1.0
    for outer in reversed(chain[: place + 1]):
        chosen = [_read(inner, key) for inner in outer.modules() for key in _CHOSEN]
        whole = [number for number in chosen if isinstance(number, int) and number > 0]
        if whole:
            return min(1.0, whole[0] / experts)
    chosen = [_read(config, key) for key in _CHOSEN]
    return min(1.0, next((number / experts for number in chosen if number), 1.0))


def _number_of_experts(chain: tuple[nn.Module, ...], config: Any) -> int:
    """How many experts a module is one of or holds in one tensor; 0 if it is none."""
    container, module = chain[0], chain[-1]
    if isinstance(container, nn.ModuleList):
        return len(container) if len(chain) > 1 else 0
    if isinstance(module, nn.modules.conv._ConvNd):
        return 0
    stacked = [p.shape[0] for p in module.parameters(recurse=False) if p.ndim == 3]
    if stacked:
        return int(stacked[0])
    if len(chain) > 1:
        known = [_read(holder, key) for holder in (container, config) for key in _EXPERTS]
        return int(next((number for number in known if isinstance(number, int)), 0))
    return 0


def _attention(parts: list[Part], config: Any) -> float:
    """The total width of the heads of a layer's softmax attention."""
    total = 0.0
    counted: set[int] = set()
    for _, around, module in parts[1:]:
        name = type(module).__name__
        softmax = any(word in name for word in ("Attention", "MLA")) and not (
            hasattr(module, "A_log") or any(word in name for word in _NO_SOFTMAX)
        )
        if not softmax or counted & {id(outer) for outer in around}:
            continue
        counted.add(id(module))
        heads = _read(module, "num_heads") or _read(config, "num_attention_heads")
        if heads:
            own = _read(module, "head_dim") or _read(config, "head_dim")
            own = own or _read(config, "hidden_size") // heads
            keys, values = (_read(module, key) or own for key in ("qk_head_dim", "v_head_dim"))
            total += heads * (keys + values) / 2
    return total


def _scan(module: nn.Module) -> Scan:
    """The scan of a mixer with a decaying state."""

    def first(*names: str) -> int:
        return next((number for name in names if (number := _read(module, name))), 0)

    heads, state = first("num_v_heads", "num_heads"), first("ssm_state_size")
    chunk = first("chunk_size")
    if not hasattr(module, "D"):  # the gated delta rule
        keys, values = first("head_k_dim", "head_dim"), first("head_v_dim", "head_dim")
        return Scan(3 * heads * keys * values, heads * (2 * keys + values), chunk or _CHUNK)
    if chunk:  # Mamba-2
        width = first("head_dim")
        return Scan(2 * heads * width * state, heads * (width + state), chunk)
    return Scan(2 * first("intermediate_size") * state)


def _read(holder: Any, name: str) -> Any:
    """An attribute, or None if there is none, or none that holds for all layers."""
    try:
        return getattr(holder, name, None)
    except RuntimeError:  # transformers' answer for configurations that differ by layer
        return None
