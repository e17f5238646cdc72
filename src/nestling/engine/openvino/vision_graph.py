"""A Qwen2.5-VL vision tower as OpenVINO graphs, a section each: patches sorted by window in, rows out.

Attention runs on rectangles, windows x 64 or images x the longest (`windows.Rectangle`), gathered from the rows and
back; places that a cut window or a shorter image leaves empty are masked. So a run takes any number of images.

With bfloat16, only matrix products and attention are computed in it. The residual stream, the norms and the rotary
angles stay float32, which costs little and brings the rows closer to float32's than bfloat16 throughout.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nestling.engine.openvino.nodes import integer, ints, times
from nestling.engine.openvino.runtime import Node, op, ov
from nestling.engine.weights import tensor
from nestling.engine.windows import GROUP
from nestling.formats.mmproj import VisionFile
from nestling.formats.quant_types import QuantType
from nestling.formats.tower_shape import CHANNELS, TowerShape

PATCH_EMBEDDING = ("v.patch_embd.weight", "v.patch_embd.weight.1")
_TYPES = {QuantType.F32: ov.Type.f32, QuantType.F16: ov.Type.f16, QuantType.BF16: ov.Type.bf16}


def sections(shape: TowerShape) -> list[range]:
    """The tower's sections in order, as ranges of blocks with window attention; the last one is empty.

    Full attention over whole images runs between two sections: it belongs to the block that follows the first one.
    """
    every = shape.full_every
    return [
        *(range(stop - every, stop - 1) for stop in range(every, shape.blocks + 1, every)),
        range(shape.blocks, shape.blocks),
    ]


def build(vision: VisionFile, data: NDArray[np.uint8], *, section: range, products: ov.Type) -> ov.Model:
    """A section as a graph; `products` is the type of its matrix products, bf16 or f32.

    The first section takes `patches` (N, values), the others `states` (N, D) and the attention's output `mixed` (N, D).
    The last returns rows (N / 4, out) in the order of the patches, the others states (N, D) and the heads (N, 3 H, d)
    of the next attention. `data`: the file's bytes, which must outlive the graph, since weights stored in the type of
    the products are not copied. Other inputs are named as in `windows`.
    """
    shape = vision.shape
    tower = _Tower(vision, data, products, _inputs(shape, products))
    x = tower.after_attention(section.start - 1) if section.start else tower.embedding()
    for block in section:
        at = f"v.blk.{block}."
        mixed = _attention(tower.heads(x, at), shape, tower.inputs)
        x = tower.feed_forward(tower.joined(x, mixed, at), at)
    last = section.start == shape.blocks
    out = [tower.merger(x)] if last else [x, tower.heads(x, f"v.blk.{section.stop}.")]
    return ov.Model([node.output(0) for node in out], _used(tower.inputs), "vision")


def build_attention(shape: TowerShape, *, products: ov.Type) -> ov.Model:
    """Attention over whole images, one graph for all full blocks: heads (N, 3 H, d) -> mixed (N, D)."""
    inputs = _inputs(shape, products)
    return ov.Model([_attention(inputs["heads"], shape, inputs).output(0)], _used(inputs), "attention")


def _inputs(shape: TowerShape, products: ov.Type) -> dict[str, Node]:
    wide, heads = shape.hidden, [-1, 3 * shape.heads, shape.head_dim]
    kinds: dict[str, tuple[list[int], ov.Type]] = {
        "patches": ([-1, shape.patch_values], ov.Type.f32), "states": ([-1, wide], ov.Type.f32),
        "mixed": ([-1, wide], products), "heads": (heads, products), "cos_sin": ([-1, shape.head_dim], ov.Type.f32),
        "rows": ([-1, -1], ov.Type.i64), "mask": ([-1, 1, 1, -1], ov.Type.f32), "back": ([-1], ov.Type.i64),
    }  # fmt: skip
    found = {name: op.parameter(sizes, kind) for name, (sizes, kind) in kinds.items()}
    for name, node in found.items():
        node.output(0).get_tensor().set_names({name})
    return found


def _used(inputs: dict[str, Node]) -> list[Node]:
    return [node for node in inputs.values() if node.output(0).get_target_inputs()]


def _attention(heads: Node, shape: TowerShape, inputs: dict[str, Node]) -> Node:
    """Attention over the queries, keys and values of all heads: (N, 3 H, d) -> (N, D)."""
    parts = op.split(heads, integer(1), 3).outputs()
    sides = [op.transpose(op.gather(part, inputs["rows"], integer(0)), ints(0, 2, 1, 3)) for part in parts]
    mask = _to(heads.get_output_element_type(0), inputs["mask"])
    mixed = op.scaled_dot_product_attention(*sides, mask, causal=False)
    flat = op.reshape(op.transpose(mixed, ints(0, 2, 1, 3)), ints(-1, shape.hidden), special_zero=False)
    return op.gather(flat, inputs["back"], integer(0))


@dataclass(frozen=True, slots=True)
class _Tower:
    """Makes nodes of one file."""

    vision: VisionFile
    data: NDArray[np.uint8]
    products: ov.Type
    inputs: dict[str, Node]

    def embedding(self) -> Node:
        """Patch embedding: patches times the weights of both frames, ordered as a patch's values are: -> (N, D).

        In float32: rounding pixels to bfloat16 would cost accuracy in all blocks, and this is a thousandth of the work.
        """
        hidden, size = self.vision.shape.hidden, self.vision.shape.patch**2
        side = ints(hidden, CHANNELS, 1, size)
        frames = [
            op.reshape(_to(ov.Type.f32, self._stored(name)), side, special_zero=False) for name in PATCH_EMBEDDING
        ]
        matrix = op.reshape(op.concat(frames, 2), ints(hidden, -1), special_zero=False)
        return times(self.inputs["patches"], matrix)

    def heads(self, x: Node, at: str) -> Node:
        """A block's queries and keys, rotary positions applied, and values: (N, D) -> (N, 3 H, d)."""
        y = self._norm(x, at + "ln1.weight")
        q, k, v = (self._by_head(self._linear(y, f"{at}attn_{n}")) for n in "qkv")
        return op.concat([self._turned(q), self._turned(k), v], 1)

    def joined(self, x: Node, mixed: Node, at: str) -> Node:
        """Residual plus attention output: two of (N, D) -> (N, D)."""
        return op.add(x, _to(ov.Type.f32, self._linear(mixed, at + "attn_out")))

    def feed_forward(self, x: Node, at: str) -> Node:
        """The second half of a block: (N, D) -> (N, D)."""
        y = self._norm(x, at + "ln2.weight")
        gate, up = (self._linear(y, at + name) for name in ("ffn_gate", "ffn_up"))
        inner = op.multiply(op.multiply(gate, op.sigmoid(gate)), up)  # op.swish takes float32 only
        return op.add(x, _to(ov.Type.f32, self._linear(inner, at + "ffn_down")))

    def after_attention(self, block: int) -> Node:
        """The rest of a full block, after its attention: -> (N, D)."""
        at = f"v.blk.{block}."
        return self.feed_forward(self.joined(self.inputs["states"], self.inputs["mixed"], at), at)

    def merger(self, x: Node) -> Node:
        """The four patches of a group to a row of the text model: (N, D) -> (N / 4, out)."""
        y = op.reshape(
            self._norm(x, "v.post_ln.weight"), ints(-1, GROUP * self.vision.shape.hidden), special_zero=False
        )
        rows = self._linear(op.gelu(self._linear(y, "mm.0"), "erf"), "mm.2")
        return _to(ov.Type.f32, rows)

    def _by_head(self, flat: Node) -> Node:
        """(N, heads * d) -> (N, heads, d)."""
        return op.reshape(flat, ints(0, self.vision.shape.heads, self.vision.shape.head_dim), special_zero=True)

    def _turned(self, x: Node) -> Node:
        """Rotate each pair (i, i + d/2) of a head: (N, H, d) -> (N, H, d)."""
        cos, sin = op.split(op.unsqueeze(self.inputs["cos_sin"], ints(1)), integer(2), 2).outputs()
        a, b = op.split(op.convert(x, "f32"), integer(2), 2).outputs()
        first = op.subtract(op.multiply(a, cos), op.multiply(b, sin))
        return self._rounded(op.concat([first, op.add(op.multiply(b, cos), op.multiply(a, sin))], -1))

    def _linear(self, x: Node, name: str) -> Node:
        """(N, in) -> (N, out), in the type of the products."""
        matrix, bias = (self._rounded(self._stored(f"{name}.{side}")) for side in ("weight", "bias"))
        return op.add(times(self._rounded(x), matrix), bias)

    def _norm(self, x: Node, name: str) -> Node:
        """RMSNorm in the pattern that the plugin fuses into one operation."""
        mean = op.reduce_mean(op.multiply(x, x), ints(-1), keep_dims=True)
        root = op.sqrt(op.add(mean, op.constant(np.float32(self.vision.shape.rms_eps))))
        return op.multiply(op.divide(x, root), op.constant(tensor(self.vision.file, name)))

    def _stored(self, name: str) -> Node:
        """A tensor of the file, in its type."""
        info = self.vision.file.tensors[name]
        kind, raw = _TYPES[info.kind], self.data[info.offset : info.offset + info.size_bytes]
        values = raw.view(np.float32 if kind == ov.Type.f32 else np.uint16)
        return op.constant(ov.Tensor(values, ov.Shape(info.shape), kind), shared_memory=True)

    def _rounded(self, x: Node) -> Node:
        return _to(self.products, x)


def _to(kind: ov.Type, x: Node) -> Node:
    return x if x.get_output_element_type(0) == kind else op.convert(x, kind)
