"""The CPU tower: OpenVINO graphs over the mapped weights of an mmproj file, any number of images in a run.

bfloat16 where the processor has it, else float32; `exact` is float32 everywhere. Graphs with weights run on batches of
whole windows of any images. Full attention takes whole images, in one graph without weights that all full blocks share,
since every graph keeps scratch memory of its own. The plugin copies every matrix into its own layout on its first run,
after which the mmapped pages are dropped.
"""

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from nestling._util.memory import give_back_freed
from nestling.engine import batching
from nestling.engine.openvino import vision_graph, weight_cache
from nestling.engine.openvino.runtime import ov
from nestling.engine.vision import Grid, check_patches, refuse_not_finite, tokens_of
from nestling.engine.windows import GROUP, Index, Layout, Rectangle
from nestling.formats.mmproj import VisionFile
from nestling.formats.tower_shape import MERGE
from nestling.vectors import Floats

PIECE = 768
"""Patches per run of a section: 1,024 are 2 % faster and take 55 MiB more at full size, 512 are 6 % slower."""
TOGETHER = 3072
"""Patches per run of full attention, unless a single image has more."""
KEPT_SHAPES = 64
"""Kernels cached by shape."""


class OpenVINOTower:
    """An mmproj file compiled for this processor."""

    name = "openvino"

    def __init__(self, vision: VisionFile, *, threads: int, exact: bool = False) -> None:
        self._shape, self._lock = vision.shape, threading.Lock()
        has_bf16 = "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        self.products = ov.Type.bf16 if has_bf16 and not exact else ov.Type.f32
        self._data = np.memmap(vision.file.path, np.uint8, "c")  # copy-on-write: the plugin asks for writable memory
        self._attention = _compiled(vision_graph.build_attention(self._shape, products=self.products), threads)
        self._sections: list[ov.InferRequest] = []
        smallest = Layout.of([(MERGE, MERGE)], self._shape)
        states, heads = np.zeros((GROUP, self._shape.patch_values), np.float32), None
        for section in vision_graph.sections(self._shape):
            model = vision_graph.build(vision, self._data, section=section, products=self.products)
            self._sections.append(_compiled(model, threads))
            states, heads = self._through(self._sections[-1], states, heads, smallest)
            weight_cache.release(self._data)  # the plugin has its own copy now

    def rows(self, patches: Sequence[Floats], grids: Sequence[Grid]) -> list[Floats]:
        """Patches and the grid of each image -> (tokens, D) each."""
        check_patches(patches, grids, self._shape)
        if not grids:
            return []
        layout = Layout.of(grids, self._shape)
        with self._lock:
            states, heads = np.concatenate(patches)[layout.patches], None
            for section in self._sections:
                states, heads = self._through(section, states, heads, layout)
        found = np.split(states[layout.merged], np.cumsum([tokens_of(grid) for grid in grids])[:-1])
        for image, one in enumerate(found):
            refuse_not_finite(finite=bool(np.isfinite(one).all()), image=image)
        return found

    def _through(
        self, section: ov.InferRequest, states: Floats, heads: Floats | None, layout: Layout
    ) -> tuple[Floats, Floats | None]:
        """Run the pending attention, if any, and one section on all patches: -> (states, heads of the next attention).

        The first section takes patches, the last returns rows.
        """
        inputs = {"patches": states, "states": states, "cos_sin": layout.cos_sin}
        if heads is not None:
            [inputs["mixed"]] = _run(self._attention, _images(layout.images), {"heads": heads})
        states, *more = _run(section, _pieces(layout.windows), inputs)
        return states, more[0] if more else None


def _run(request: ov.InferRequest, parts: Iterable[tuple[Index, Index]], inputs: Mapping[str, Floats]) -> list[Floats]:
    """Run all patches through a graph, in parts (places, lengths of their runs): -> its outputs for all patches.

    The graph's scratch memory is freed afterwards.
    """
    given = {node.any_name: node for node in request.get_compiled_model().inputs}
    patches, done = len(next(iter(inputs.values()))), list[Floats]()
    for places, lengths in parts:
        every: dict[str, Floats | Index] = {name: one[places] for name, one in inputs.items() if name in given}
        rectangle = Rectangle.of(lengths)
        every |= {"rows": rectangle.rows, "mask": rectangle.mask, "back": rectangle.back}
        request.infer({name: _tensor(every[name], node.element_type) for name, node in given.items()})
        found = [tensor.data for tensor in request.output_tensors]
        done = done or [np.empty((patches * len(one) // len(places), *one.shape[1:]), one.dtype) for one in found]
        for whole, one in zip(done, found, strict=True):
            merged = len(places) // len(one)
            whole[places[::merged] // merged] = one
    request.get_compiled_model().release_memory()
    give_back_freed()
    return done


def _tensor(array: Floats | Index, kind: ov.Type) -> ov.Tensor:
    """An array as an input tensor; bfloat16, which numpy lacks, is any 2-byte type."""
    whole = np.ascontiguousarray(array)
    return ov.Tensor(whole, ov.Shape(whole.shape), kind)


def _pieces(windows: Index) -> Iterator[tuple[Index, Index]]:
    """Batches of consecutive windows, as many as fit a piece: the places of their patches, and their lengths."""
    ends = np.cumsum(windows)
    first = 0
    while first < len(windows):
        start = int(ends[first] - windows[first])
        last = max(first + 1, int(np.searchsorted(ends, start + PIECE, "right")))
        yield np.arange(start, int(ends[last - 1])), windows[first:last]
        first = last


def _images(images: Index) -> Iterator[tuple[Index, Index]]:
    """Batches of images of similar size: the places of their patches, and their lengths."""
    starts = np.cumsum(images) - images
    for run in batching.plan(images.tolist(), TOGETHER, spare_pairs=batching.SPARE_PAIRS):
        yield np.concatenate([starts[image] + np.arange(images[image]) for image in run]), images[run]


def _compiled(model: ov.Model, threads: int) -> ov.InferRequest:
    properties = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,  # or the threads of several processes would share the first processors
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",  # the graph says itself what is computed in bfloat16
        "CPU_RUNTIME_CACHE_CAPACITY": KEPT_SHAPES,
    }
    return ov.Core().compile_model(model, "CPU", properties).create_infer_request()
