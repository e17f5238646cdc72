"""The CPU tower: OpenVINO graphs over the mapped weights of an mmproj file, any number of images in a run.

bfloat16 where the processor has it, else float32; `exact` is float32 everywhere. Sections whose attention stays in
windows go through in pieces, whatever image they are of; only attention over whole images takes an image at once. The
plugin copies every matrix into an order of its own when it first computes, after which the mapped pages can go.
"""

import threading
from collections.abc import Iterator, Sequence

import numpy as np

from nestling._util.memory import give_back_freed
from nestling.engine import batching
from nestling.engine.openvino import vision_graph, weight_cache
from nestling.engine.openvino.runtime import ov
from nestling.engine.openvino.vision_graph import Section
from nestling.engine.vision import Grid, check_patches, refuse_not_finite, tokens_of
from nestling.engine.windows import GROUP, Index, Layout, Rectangle
from nestling.formats.mmproj import VisionFile
from nestling.formats.tower_shape import MERGE
from nestling.vectors import Floats

PIECE = 1024
"""Patches that go through a section of windows at once: memory grows with them, speed no more."""
TOGETHER = 3072
"""Patches of images whose attention is computed at once."""
KEPT_SHAPES = 64
"""Kernels that are kept for shapes met before."""


class OpenVINOTower:
    """An mmproj file compiled for this processor."""

    name = "openvino"

    def __init__(self, vision: VisionFile, *, threads: int, exact: bool = False) -> None:
        self._shape, self._lock = vision.shape, threading.Lock()
        has_bf16 = "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        self.products = ov.Type.bf16 if has_bf16 and not exact else ov.Type.f32
        self._data = np.memmap(vision.file.path, np.uint8, "c")  # "c": the plugin wants to be able to write
        self._sections: list[tuple[Section, ov.InferRequest]] = []
        smallest = Layout.of([(MERGE, MERGE)], self._shape)
        states = np.zeros((GROUP, self._shape.patch_values), np.float32)
        for section in vision_graph.sections(self._shape):
            model = vision_graph.build(vision, self._data, section=section, products=self.products)
            self._sections.append((section, _compiled(model, threads)))
            states = _through(*self._sections[-1], states, smallest)  # the plugin makes its own copy now
            weight_cache.release(self._data)

    def rows(self, patches: Sequence[Floats], grids: Sequence[Grid]) -> list[Floats]:
        """Patches and the grid of each image -> (tokens, D) each."""
        check_patches(patches, grids, self._shape)
        if not grids:
            return []
        layout = Layout.of(grids, self._shape)
        states = np.concatenate(patches)[layout.patches]
        with self._lock:
            for section, request in self._sections:
                states = _through(section, request, states, layout)
        found = np.split(states[layout.merged], np.cumsum([tokens_of(grid) for grid in grids])[:-1])
        for image, rows in enumerate(found):
            refuse_not_finite(finite=bool(np.isfinite(rows).all()), image=image)
        return found


def _through(section: Section, request: ov.InferRequest, states: Floats, layout: Layout) -> Floats:
    """All patches through a section, part by part: (N, D) -> (N, D), after the last one (N / 4, out)."""
    parts = _images(layout.images) if section.full else _pieces(layout.windows)
    done: Floats | None = None
    for places, lengths in parts:
        rows = _infer(request, states[places], layout.turns[places], section.kind, Rectangle.of(lengths))
        shrunk = len(places) // len(rows)
        done = np.empty((len(states) // shrunk, rows.shape[1]), np.float32) if done is None else done
        done[places[::shrunk] // shrunk] = rows
    request.get_compiled_model().release_memory()
    give_back_freed()
    assert done is not None
    return done


def _pieces(windows: Index) -> Iterator[tuple[Index, Index]]:
    """Windows one after another, as many as go into a piece: the places of their patches, and their lengths."""
    ends = np.cumsum(windows)
    first = 0
    while first < len(windows):
        start = int(ends[first] - windows[first])
        last = max(first + 1, int(np.searchsorted(ends, start + PIECE, "right")))
        yield np.arange(start, int(ends[last - 1])), windows[first:last]
        first = last


def _images(images: Index) -> Iterator[tuple[Index, Index]]:
    """Images of like size together: the places of their patches, and their lengths."""
    starts = np.cumsum(images) - images
    for run in batching.plan(images.tolist(), TOGETHER):
        yield np.concatenate([starts[image] + np.arange(images[image]) for image in run]), images[run]


def _infer(request: ov.InferRequest, states: Floats, turns: Floats, kind: str, rectangle: Rectangle) -> Floats:
    """Run a section's graph with what it takes: copied, so that the next run may overwrite its own."""
    every: dict[str, Floats | Index] = {"patches": states, "states": states, "turns": turns}
    every |= {f"{kind}_{name}": getattr(rectangle, name) for name in ("rows", "mask", "back")}
    names = [node.any_name for node in request.get_compiled_model().inputs]
    request.infer({name: every[name] for name in names})
    return np.array(request.get_output_tensor(0).data)


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
