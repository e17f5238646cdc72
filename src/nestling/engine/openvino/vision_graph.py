"""A Qwen2.5-VL vision tower as OpenVINO graphs, a section each: patches sorted by window in, rows out.

Attention runs on rectangles, windows x 64 or images x the longest (`windows.Rectangle`), gathered from the rows and
back; masked are the places that a cut window or a shorter image leaves empty. So a run takes any number of images.

In bfloat16 the products and the attention are computed in it; what the blocks add up, the norms and the angles stay
float32, which costs little and keeps the rows closer to the float32 ones than bfloat16 throughout.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nestling.engine.openvino.layers import integer, ints
from nestling.engine.openvino.runtime import Node, op, ov
from nestling.engine.weights import tensor
from nestling.engine.windows import GROUP
from nestling.formats.mmproj import VisionFile
from nestling.formats.quant_types import QuantType
from nestling.formats.tower_shape import CHANNELS, TowerShape

PATCH_EMBEDDING = ("v.patch_embd.weight", "v.patch_embd.weight.1")
_TYPES = {QuantType.F32: ov.Type.f32, QuantType.F16: ov.Type.f16, QuantType.BF16: ov.Type.bf16}


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the tower that runs on its own: `blocks` of which each sees its window alone, or attention over images.

    A section of windows begins with the feed-forward part of the full block before it, if there is one. The section
    that attends over images is `full`, with one block.
    """

    blocks: range
    full: bool

    @property
    def kind(self) -> str:
        """What its attention is laid out by."""
        return "image" if self.full else "window"


def sections(shape: TowerShape) -> list[Section]:
    """The tower's parts in their order; the last one merges."""
    every, found = shape.full_every, []
    for stop in range(every, shape.blocks + 1, every):
        found += [Section(range(stop - every, stop - 1), full=False), Section(range(stop - 1, stop), full=True)]
    return [*found, Section(range(shape.blocks, shape.blocks), full=False)]


def build(vision: VisionFile, data: NDArray[np.uint8], *, section: Section, products: ov.Type) -> ov.Model:
    """A section as a graph that computes its products in this type, bf16 or f32.

    The first takes `patches` (N, values), the others `states` (N, D); the last answers with rows (N / 4, out) in the
    order of the patches, the others with states. `data` are the file's bytes, which must outlive the graph: weights
    that are stored in the type of the products are not copied. The names of the other inputs are those of `windows`.
    """
    blocks, tower = section.blocks, _Tower(vision, data, products, _inputs(vision))
    if section.full:
        x = tower.attention(tower.inputs["states"], blocks.start, "image")
    else:
        x = tower.feed_forward(tower.inputs["states"], blocks.start - 1) if blocks.start else tower.embedding()
        for block in blocks:
            x = tower.feed_forward(tower.attention(x, block, "window"), block)
    if blocks.start == vision.shape.blocks:
        x = tower.merger(x)
    used = [node for node in tower.inputs.values() if node.output(0).get_target_inputs()]
    return ov.Model([x.output(0)], used, "vision")


def _inputs(vision: VisionFile) -> dict[str, Node]:
    floats = {"patches": [-1, vision.shape.patch_values], "states": [-1, vision.shape.hidden]}
    floats["turns"] = [-1, vision.shape.head_dim]
    for kind in ("window", "image"):
        floats |= {f"{kind}_rows": [-1, -1], f"{kind}_mask": [-1, 1, 1, -1], f"{kind}_back": [-1]}
    indices = ("_rows", "_back")
    found = {
        name: op.parameter(sizes, np.int64 if name.endswith(indices) else np.float32) for name, sizes in floats.items()
    }
    for name, node in found.items():
        node.output(0).get_tensor().set_names({name})
    return found


@dataclass(frozen=True, slots=True)
class _Tower:
    """Makes nodes of one file."""

    vision: VisionFile
    data: NDArray[np.uint8]
    products: ov.Type
    inputs: dict[str, Node]

    def embedding(self) -> Node:
        """Patches times the weights of both frames, side by side in every channel as a patch is: -> (N, D).

        In float32: pixels rounded to bfloat16 would weigh on all blocks, and this is one product in a thousand.
        """
        hidden, size = self.vision.shape.hidden, self.vision.shape.patch**2
        side = ints(hidden, CHANNELS, 1, size)
        frames = [
            op.reshape(_to(ov.Type.f32, self._stored(name)), side, special_zero=False) for name in PATCH_EMBEDDING
        ]
        matrix = op.reshape(op.concat(frames, 2), ints(hidden, -1), special_zero=False)
        return _times(self.inputs["patches"], matrix)

    def attention(self, x: Node, block: int, kind: str) -> Node:
        """The first half of a block, over each `window` or each whole `image`: (N, D) -> (N, D)."""
        at = f"v.blk.{block}."
        mixed = self._attention(self._norm(x, at + "ln1.weight"), at, kind)
        return op.add(x, op.convert(self._linear(mixed, at + "attn_out"), "f32"))

    def feed_forward(self, x: Node, block: int) -> Node:
        """The second half of a block: (N, D) -> (N, D)."""
        at = f"v.blk.{block}."
        y = self._norm(x, at + "ln2.weight")
        gate, up = (self._linear(y, at + name) for name in ("ffn_gate", "ffn_up"))
        inner = op.multiply(op.multiply(gate, op.sigmoid(gate)), up)  # op.swish is for float32 alone
        return op.add(x, op.convert(self._linear(inner, at + "ffn_down"), "f32"))

    def merger(self, x: Node) -> Node:
        """The four patches of a group to a row of the text model: (N, D) -> (N / 4, out)."""
        y = op.reshape(
            self._norm(x, "v.post_ln.weight"), ints(-1, GROUP * self.vision.shape.hidden), special_zero=False
        )
        rows = self._linear(op.gelu(self._linear(y, "mm.0"), "erf"), "mm.2")
        return op.convert(rows, "f32")

    def _attention(self, y: Node, at: str, kind: str) -> Node:
        q, k, v = (self._heads(self._linear(y, f"{at}attn_{n}")) for n in "qkv")
        rows, mask, back = (self.inputs[f"{kind}_{name}"] for name in ("rows", "mask", "back"))
        sides = [_to_rectangle(side, rows) for side in (self._turned(q), self._turned(k), v)]
        mixed = op.scaled_dot_product_attention(*sides, self._rounded(mask), causal=False)
        flat = op.reshape(op.transpose(mixed, ints(0, 2, 1, 3)), ints(-1, self.vision.shape.hidden), special_zero=False)
        return op.gather(flat, back, integer(0))

    def _heads(self, flat: Node) -> Node:
        """(N, heads * d) -> (N, heads, d)."""
        return op.reshape(flat, ints(0, self.vision.shape.heads, self.vision.shape.head_dim), special_zero=True)

    def _turned(self, x: Node) -> Node:
        """Turn each pair (i, i + d/2) of a head: (N, H, d) -> (N, H, d)."""
        cos, sin = op.split(op.unsqueeze(self.inputs["turns"], ints(1)), integer(2), 2).outputs()
        a, b = op.split(op.convert(x, "f32"), integer(2), 2).outputs()
        first = op.subtract(op.multiply(a, cos), op.multiply(b, sin))
        return self._rounded(op.concat([first, op.add(op.multiply(b, cos), op.multiply(a, sin))], -1))

    def _linear(self, x: Node, name: str) -> Node:
        """(N, in) -> (N, out), in the type of the products."""
        matrix, bias = (self._rounded(self._stored(f"{name}.{side}")) for side in ("weight", "bias"))
        return op.add(_times(self._rounded(x), matrix), bias)

    def _norm(self, x: Node, name: str) -> Node:
        """RMSNorm in the form that the plugin knows as one operation."""
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


def _times(x: Node, matrix: Node) -> Node:
    return op.matmul(x, matrix, transpose_a=False, transpose_b=True)


def _to_rectangle(side: Node, rows: Node) -> Node:
    """Rows to runs: (N, H, d), (R, S) -> (R, H, S, d)."""
    return op.transpose(op.gather(side, rows, integer(0)), ints(0, 2, 1, 3))
