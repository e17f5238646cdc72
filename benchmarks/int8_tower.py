"""Would int8 make the vision tower faster, and what would it cost in the vector? Decision 016 has the answer.

    python -m benchmarks.int8_tower FILE

FILE is a tower of noise at full size (`benchmarks.images` makes it).

Speed: the products of a block at full width on 1,024 patches, bfloat16 and int8 in turns, one thread, seconds of
processor time (so that others on the machine count for little), the best of the rounds. Vectors: the recorded pictures
(`tests/golden`), by towers of numpy whose chosen products are rounded to int8 and the others to bfloat16, against
transformers in float32, the lowest of all tasks. Their matrices are so narrow that rows are turned in blocks of 16. And
the mean of the rows of one picture through the tower at full size, against float32.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tests.golden import test_recorded_image_vectors as golden
from tests.pictures import page
from tests.tiny_vision import write_vision_checkpoint

from benchmarks import measuring
from nestling.engine.numpy_reference import ReferenceEngine
from nestling.engine.numpy_vision import ReferenceTower
from nestling.engine.openvino.nodes import times
from nestling.engine.openvino.runtime import Node, op, ov
from nestling.engine.openvino.weight_formats.base import WeightFormat, empty
from nestling.engine.openvino.weight_formats.int8_groups import Int8Groups
from nestling.engine.openvino.weight_formats.int8_rows import Int8Rows
from nestling.engine.protocol import Item
from nestling.engine.rotation import spread
from nestling.engine.weights import tensor
from nestling.formats.gguf import GGUFFile
from nestling.formats.mmproj import VisionFile, tower_path
from nestling.inputs import image
from nestling.pipeline.conversion.checkpoint import Checkpoint
from nestling.pipeline.pipeline import Pipeline, model_path
from nestling.spec import Task
from nestling.vectors import Floats, paired_cosine

PATCHES, ROUNDS, TURNED = 1024, 5, 128
PRODUCTS = {"q, k, v": (3840, 1280), "out": (1280, 1280), "gate, up": (6840, 1280), "down": (1280, 3420)}
"""Rows and columns of a block's matrices."""
GROUPS, BLOCK = (32, 64, 128), 16
FORMATS: list[WeightFormat] = [*(Int8Groups(group) for group in GROUPS), Int8Rows(), Int8Rows(block=TURNED)]
PARTS = {
    "no product": "", "every product": "attn ffn mm", "attention": "attn", "feed-forward": "ffn",
    "gate, up": "ffn_gate ffn_up", "down": "ffn_down", "merger": "mm", "attention, gate, up": "attn ffn_gate ffn_up",
}  # fmt: skip
"""Which products are int8, by parts of their names."""


def main() -> None:
    """Measure and write `benchmarks/results/int8-tower.json`."""
    rows = list(_products())
    kinds = dict.fromkeys(row["arithmetic"] for row in rows)
    sums = {kind: sum(row["seconds"] for row in rows if row["arithmetic"] == kind) for kind in kinds}
    faster = {kind: round(sums["bfloat16"] / seconds, 2) for kind, seconds in sums.items()}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("file", type=Path)
    full = list(_full_size(parser.parse_args().file))
    told = {"products": rows, "bfloat16_over": faster, "recorded": list(_recorded()), "full_size": full}
    print(measuring.write("int8-tower", told).read_text())


# Speed.


def _products() -> Iterator[dict[str, Any]]:
    rng = np.random.default_rng(0)
    for name, (rows, columns) in PRODUCTS.items():
        weights = rng.standard_normal((rows, columns), np.float32)
        sides = {"bfloat16": _Product.bfloat16(weights)}
        sides |= {one.name: _Product.int8(weights, one) for one in FORMATS}
        took: dict[str, list[float]] = {kind: [] for kind in sides}
        for _ in range(ROUNDS):
            for kind, side in sides.items():
                took[kind].append(side.run())
        for kind, seconds in took.items():
            yield {"product": name, "arithmetic": kind, "seconds": round(min(seconds[1:]), 4)}


@dataclass(frozen=True, slots=True)
class _Product:
    """One matrix times patches; `held` is what the graph does not copy."""

    request: ov.InferRequest
    states: Floats
    held: object

    @classmethod
    def bfloat16(cls, weights: Floats) -> "_Product":
        stored = (weights.view(np.uint32) >> 16).astype(np.uint16)
        matrix = op.constant(ov.Tensor(stored, ov.Shape(list(stored.shape)), ov.Type.bf16), shared_memory=True)
        x = op.parameter([-1, weights.shape[1]], ov.Type.f32)
        return cls._of(x, op.convert(times(op.convert(x, "bf16"), matrix), "f32"), stored)

    @classmethod
    def int8(cls, weights: Floats, form: WeightFormat) -> "_Product":
        padded = np.pad(weights, ((0, 0), (0, -weights.shape[1] % TURNED)))
        arrays = empty(form.spaces(*padded.shape))
        form.fill(padded, arrays)
        x = op.parameter([-1, padded.shape[1]], ov.Type.f32)
        group = form.group if isinstance(form, Int8Groups) else 0
        return cls._of(x, form.times(form.factor(x), arrays), arrays, DYNAMIC_QUANTIZATION_GROUP_SIZE=group)

    @classmethod
    def _of(cls, x: Node, y: Node, held: object, **more: int) -> "_Product":
        properties = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32", **more}
        model = ov.Model([y.output(0)], [x], "product")
        request = ov.Core().compile_model(model, "CPU", properties).create_infer_request()
        width = x.get_partial_shape()[1].get_length()
        return cls(request, np.random.default_rng(1).standard_normal((PATCHES, width), np.float32), held)

    def run(self) -> float:
        """Seconds of processor time."""
        began = time.process_time()
        self.request.infer([self.states])
        return time.process_time() - began


# Vectors.


class _Rounded(ReferenceTower):
    """A tower whose products named by `parts` are int8, in groups or in turned rows, the others bfloat16."""

    parts: tuple[str, ...] = ()
    exact = False
    group: int | None = None
    block = BLOCK

    def _linear(self, x: Floats, name: str) -> Floats:
        weights, bias = (tensor(self._file, f"{name}.{side}") for side in ("weight", "bias"))
        if self.exact:
            return np.asarray(x @ weights.T + bias)
        if any(part in name for part in self.parts):
            return np.asarray(self._int8(x) @ self._int8(weights).T + bias)
        return _bfloat16(np.asarray(_bfloat16(x) @ _bfloat16(weights).T)) + bias

    def _int8(self, rows: Floats) -> Floats:
        """Rounded to int8 by the largest value of each group, or of each row after a rotation, and back."""
        padded = np.pad(rows, ((0, 0), (0, -rows.shape[1] % (self.group or self.block))))
        turned = padded if self.group else spread(padded, self.block)
        parts = turned.reshape(len(rows), -1, self.group or turned.shape[1])
        scales = np.maximum(np.abs(parts).max(-1, keepdims=True), np.finfo(np.float32).tiny) / 127
        return np.asarray((np.rint(parts / scales) * scales).reshape(len(rows), -1), np.float32)


def _form(group: int | None) -> str:
    return f"groups of {group}" if group else "rows, turned"


def _bfloat16(rows: Floats) -> Floats:
    """Rounded to the nearest bfloat16, ties to even."""
    bits = np.ascontiguousarray(rows).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(np.float32)


def _recorded() -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as name:
        checkpoint, folder = Path(name) / "checkpoint", Path(name) / "models"
        checkpoint.mkdir()
        Pipeline(Checkpoint.open(write_vision_checkpoint(checkpoint)), folder, "tiny", 1).build(list(Task), ["F32"])
        paths = {task: model_path(folder, family="tiny", task=task, file_type="F32") for task in Task}
        engines = {task: ReferenceEngine(GGUFFile.open(path)) for task, path in paths.items()}
        tower = _Rounded(VisionFile.open(tower_path(folder, "tiny")))
        for part, names in PARTS.items():
            for group in (*GROUPS, None) if names else (None,):
                tower.parts, tower.group = tuple(names.split()), group
                cosines = _lowest(engines, golden.items(folder, tower))
                one_colour = cosines.pop("black 56x56")
                told = {"int8": part, "form": _form(group), "lowest": min(cosines.values()), "one_colour": one_colour}
                yield told


def _lowest(engines: Mapping[Task, ReferenceEngine], items: Sequence[Item]) -> dict[str, float]:
    """Each picture's lowest cosine of all tasks."""
    with np.load(golden.HERE / "images-tiny.npz") as arrays:
        wanted = {task: np.stack([arrays[f"{one}/{task}"] for one in golden.NAMES]) for task in engines}
    found = [paired_cosine(engine.pool(items), wanted[task]) for task, engine in engines.items()]
    return dict(zip(golden.NAMES, np.round(np.min(found, 0), 6).tolist(), strict=True))


def _full_size(path: Path) -> Iterator[dict[str, Any]]:
    vision = VisionFile.open(path)
    tower, picture = _Rounded(vision), image.read(page(168, 168), vision.spec)
    patches, grids = [picture.patches(vision.spec)], [picture.grid]
    tower.exact, tower.block = True, TURNED
    wanted = tower.rows(patches, grids)[0]
    tower.exact = False
    for part, group in (("no product", None), *(("every product", group) for group in (*GROUPS, None))):
        tower.parts, tower.group = tuple(PARTS[part].split()), group
        rows = tower.rows(patches, grids)[0]
        lowest, mean = (
            float(paired_cosine(*pair).min()) for pair in ((rows, wanted), (rows.mean(0)[None], wanted.mean(0)[None]))
        )
        yield {"int8": part, "form": _form(group), "lowest_row": round(lowest, 6), "mean_of_rows": round(mean, 6)}


if __name__ == "__main__":
    main()
