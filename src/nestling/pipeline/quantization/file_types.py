"""Which type every tensor of a file type gets: the choices of llama.cpp's llama-quantize, written as one table.

A file type has a base type, a type for the output matrix (also used for tied embeddings) and rules for kinds of tensors
and ranges of layers; the first rule that matches decides. The rules are those of `src/llama-quant.cpp`, recorded in
`tests/golden/tensor_types.json`. Mixture-of-experts and fused-attention tensors have no rules: they get the base type.
Does not read or write files.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from nestling.formats.quant_types import QuantType

T = QuantType
_LAYER = re.compile(r"blk\.(\d+)\.")


class Part(StrEnum):
    """The kind of a tensor; the value is a part of its name."""

    EMBEDDING = "token_embd.weight"
    OUTPUT = "output.weight"
    V = "attn_v.weight"
    K = "attn_k.weight"
    Q = "attn_q.weight"
    ATTN_OUT = "attn_output.weight"
    UP = "ffn_up"
    GATE = "ffn_gate"
    DOWN = "ffn_down"
    OTHER = ""

    @classmethod
    def of(cls, name: str) -> "Part":
        """The kind of the tensor with this name."""
        whole = next((part for part in (cls.EMBEDDING, cls.OUTPUT) if name == part), None)
        inner = (cls.V, cls.K, cls.Q, cls.ATTN_OUT, cls.UP, cls.GATE, cls.DOWN)
        return whole or next((part for part in inner if part in name), cls.OTHER)


class Layers(StrEnum):
    """A range of layers."""

    ALL = "all"
    FIRST_2 = "the first two"
    FIRST_4 = "the first four"
    FIRST_16TH = "the first sixteenth"
    FIRST_8TH = "the first eighth"
    MIDDLE = "all but the first and the last eighth"
    MORE_BITS = "the first and the last eighth, and every third between"

    def hold(self, layer: int, layers: int) -> bool:
        """True when `layer` of `layers` is in the range; divisions round down, as in C."""
        return _IN_RANGE[self](layer, layers)


_IN_RANGE: dict[Layers, Callable[[int, int], bool]] = {
    Layers.ALL: lambda _i, _n: True,
    Layers.FIRST_2: lambda i, _n: i in range(2),
    Layers.FIRST_4: lambda i, _n: i in range(4),
    Layers.FIRST_16TH: lambda i, n: i < n // 16,
    Layers.FIRST_8TH: lambda i, n: i < n // 8,
    Layers.MIDDLE: lambda i, n: n // 8 <= i < 7 * n // 8,
    Layers.MORE_BITS: lambda i, n: i not in range(n // 8, 7 * n // 8) or i in range(n // 8 + 2, n, 3),
}


@dataclass(frozen=True, slots=True)
class Rule:
    """`part` gets `kind` in `layers`, if `grouped` and `matrix` are None or equal to the model's.

    `grouped`: four or more query heads share a key-value head. `matrix`: there is an importance matrix.
    """

    part: Part
    kind: QuantType
    layers: Layers = Layers.ALL
    grouped: bool | None = None
    matrix: bool | None = None


@dataclass(frozen=True, slots=True)
class Recipe:
    """A file type: `base` for every tensor, `head` for the output matrix, `embedding` if it is not tied to that."""

    base: QuantType
    rules: tuple[Rule, ...] = ()
    head: QuantType = T.Q6_K
    embedding: QuantType | None = None


def _plain(kind: QuantType) -> Recipe:
    return Recipe(kind, head=kind)


def _tiny(base: QuantType, extra: QuantType, attn_out: QuantType, embedding: QuantType) -> Recipe:
    """The types of one and two bits: `extra` for the most sensitive tensors."""
    rules = (
        Rule(Part.V, T.Q4_K, grouped=True),
        Rule(Part.V, extra),
        Rule(Part.DOWN, extra, Layers.FIRST_8TH),
        Rule(Part.ATTN_OUT, attn_out),
    )
    return Recipe(base, rules, T.Q5_K, embedding)


def _iq4(base: QuantType) -> Recipe:
    down = Rule(Part.DOWN, T.Q5_K, Layers.FIRST_8TH, matrix=False)
    return Recipe(base, (Rule(Part.V, T.Q5_K, grouped=True), down))


RECIPES: dict[str, Recipe] = {
    "F32": _plain(T.F32),
    "F16": _plain(T.F16),
    "BF16": _plain(T.BF16),
    "Q8_0": _plain(T.Q8_0),
    "Q6_K": Recipe(T.Q6_K),
    "Q5_K_M": Recipe(
        T.Q5_K, (Rule(Part.V, T.Q6_K, Layers.MORE_BITS), Rule(Part.DOWN, T.Q6_K, Layers.MORE_BITS))
    ),
    "Q5_K_S": Recipe(T.Q5_K),
    "Q4_K_M": Recipe(
        T.Q4_K, (Rule(Part.V, T.Q6_K, Layers.MORE_BITS), Rule(Part.DOWN, T.Q6_K, Layers.MORE_BITS))
    ),
    "Q4_K_S": Recipe(T.Q4_K, (Rule(Part.V, T.Q5_K, Layers.FIRST_4), Rule(Part.DOWN, T.Q5_K, Layers.FIRST_8TH))),
    "Q4_0": Recipe(T.Q4_0, (Rule(Part.DOWN, T.Q4_1, Layers.FIRST_8TH, matrix=True),)),
    "IQ4_NL": _iq4(T.IQ4_NL),
    "IQ4_XS": _iq4(T.IQ4_XS),
    "Q3_K_L": Recipe(T.Q3_K, (Rule(Part.V, T.Q5_K), Rule(Part.DOWN, T.Q5_K), Rule(Part.ATTN_OUT, T.Q5_K))),
    "Q3_K_M": Recipe(
        T.Q3_K,
        (
            Rule(Part.V, T.Q5_K, Layers.FIRST_2),
            Rule(Part.V, T.Q4_K),
            Rule(Part.DOWN, T.Q5_K, Layers.FIRST_16TH),
            Rule(Part.DOWN, T.Q4_K),
            Rule(Part.ATTN_OUT, T.Q4_K),
        ),
    ),
    "Q3_K_S": Recipe(T.Q3_K),
    "IQ3_M": Recipe(
        T.IQ3_S,
        (Rule(Part.V, T.Q4_K), Rule(Part.DOWN, T.Q4_K, Layers.FIRST_8TH), Rule(Part.ATTN_OUT, T.Q4_K)),
    ),
    "IQ3_S": Recipe(T.IQ3_S, (Rule(Part.V, T.Q4_K, grouped=True),)),
    "IQ3_XS": Recipe(
        T.IQ3_S,
        (
            Rule(Part.V, T.Q4_K, grouped=True),
            Rule(Part.Q, T.IQ3_XXS),
            Rule(Part.K, T.IQ3_XXS),
            Rule(Part.GATE, T.IQ3_XXS, Layers.MIDDLE),
            Rule(Part.UP, T.IQ3_XXS, Layers.MIDDLE),
        ),
    ),
    "IQ3_XXS": Recipe(
        T.IQ3_XXS,
        (
            Rule(Part.V, T.Q4_K, grouped=True),
            Rule(Part.V, T.IQ3_S, matrix=False),
            Rule(Part.Q, T.IQ2_S),
            Rule(Part.K, T.IQ2_S),
            Rule(Part.DOWN, T.Q4_K, Layers.FIRST_8TH, matrix=False),
            Rule(Part.DOWN, T.Q3_K, matrix=False),
            Rule(Part.ATTN_OUT, T.IQ3_S),
        ),
        T.Q5_K,
        T.IQ3_S,
    ),
    "Q2_K": Recipe(
        T.Q2_K,
        (
            Rule(Part.V, T.Q4_K, grouped=True),
            Rule(Part.V, T.Q3_K),
            Rule(Part.DOWN, T.Q3_K),
            Rule(Part.ATTN_OUT, T.Q3_K),
        ),
    ),
    "Q2_K_S": Recipe(T.Q2_K, (Rule(Part.V, T.Q4_K, grouped=True), Rule(Part.DOWN, T.Q4_K, Layers.FIRST_8TH))),
    "IQ2_M": _tiny(T.IQ2_S, T.IQ3_S, T.IQ3_S, T.IQ3_S),
    "IQ2_S": _tiny(T.IQ2_XS, T.IQ3_S, T.IQ3_S, T.IQ3_S),
    "IQ2_XS": _tiny(T.IQ2_XS, T.Q2_K, T.IQ2_XS, T.Q2_K),
    "IQ2_XXS": _tiny(T.IQ2_XXS, T.Q2_K, T.IQ2_XXS, T.Q2_K),
    "IQ1_M": _tiny(T.IQ1_M, T.Q2_K, T.IQ2_XXS, T.Q2_K),
    "IQ1_S": _tiny(T.IQ1_S, T.Q2_K, T.IQ2_XXS, T.Q2_K),
}  # fmt: skip
"""File type -> recipe, in the order of `quant_types.FILE_TYPES`."""

FALLBACKS: dict[QuantType, QuantType] = {
    **dict.fromkeys(
        (T.IQ1_S, T.IQ1_M, T.IQ2_XXS, T.IQ2_XS, T.IQ2_S, T.IQ3_XXS, T.IQ3_S, T.IQ4_XS), T.IQ4_NL
    ),
    T.Q2_K: T.Q4_0,
    T.Q3_K: T.Q4_0,
    T.Q4_K: T.Q5_0,
    T.Q5_K: T.Q5_1,
    T.Q6_K: T.Q8_0,
}  # fmt: skip
"""Replacements for rows that are not a multiple of 256; rows that are not a multiple of 32 get F16."""

_HEAVY = frozenset((T.IQ3_XXS, T.IQ2_S, T.IQ2_XS, T.IQ2_XXS, T.IQ1_M, T.IQ1_S))


def tensor_types(
    shapes: Mapping[str, tuple[int, ...]], *, file_type: str, heads: int, kv_heads: int, has_imatrix: bool
) -> dict[str, QuantType]:
    """The type of every tensor, in the order of `shapes` (name -> (rows, width)).

    `shapes` must be those of the whole model: its names tell the number of layers and whether the embeddings are tied.
    Norms and biases stay F32.
    """
    recipe = RECIPES[file_type]
    layers = 1 + max((int(found[1]) for name in shapes if (found := _LAYER.match(name))), default=-1)
    grouped = heads // kv_heads >= 4  # noqa: PLR2004 - llama-quantize's threshold
    known = _Model(layers, grouped, has_imatrix, tied=Part.OUTPUT not in shapes)
    return {
        name: _chosen(recipe, name, shape[-1], known) if is_quantizable(name, shape) else T.F32
        for name, shape in shapes.items()
    }


def is_quantizable(name: str, shape: tuple[int, ...]) -> bool:
    """True for a weight matrix."""
    return len(shape) > 1 and name.endswith("weight") and not name.endswith("_norm.weight")


def fitting(kind: QuantType, width: int) -> QuantType:
    """The type, or its replacement if rows of `width` do not divide into its blocks."""
    if width % kind.block == 0:
        return kind
    second = FALLBACKS.get(kind, T.F16)
    return second if width % second.block == 0 else T.F16


def demands_imatrix(name: str, kind: QuantType, file_type: str) -> bool:
    """True when llama-quantize requires an importance matrix for this tensor.

    The embedding and output matrices are exempt from its rule, but ggml's quantizers may still require one.
    """
    if Part.of(name) in (Part.EMBEDDING, Part.OUTPUT):
        return kind.needs_imatrix
    return kind in _HEAVY or (file_type == "Q2_K_S" and kind is T.Q2_K)


@dataclass(frozen=True, slots=True)
class _Model:
    layers: int
    grouped: bool
    has_imatrix: bool
    tied: bool


def _chosen(recipe: Recipe, name: str, width: int, model: _Model) -> QuantType:
    part = Part.of(name)
    if part is Part.OUTPUT or (part is Part.EMBEDDING and model.tied):
        return fitting(recipe.head if width % recipe.head.block == 0 else T.Q8_0, width)
    if part is Part.EMBEDDING:
        return fitting(recipe.embedding or recipe.base, width)
    found = _LAYER.match(name)
    layer = int(found[1]) if found else 0
    holding = (rule.kind for rule in recipe.rules if _holds(rule, part, layer, model))
    return fitting(next(holding, recipe.base), width)


def _holds(rule: Rule, part: Part, layer: int, model: _Model) -> bool:
    return (
        rule.part is part
        and rule.layers.hold(layer, model.layers)
        and rule.grouped in (None, model.grouped)
        and rule.matrix in (None, model.has_imatrix)
    )
