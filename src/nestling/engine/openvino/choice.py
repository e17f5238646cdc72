"""Which arithmetic a file runs in on this processor: by rule where it was measured, by a timed trial elsewhere.

Float files run in float32, so that an F32 or F16 file answers as the original does. Files of 6 bits per weight and more
stay in int8 groups of 32, since rows of int8 would cost them more than they have lost. The others take what is fastest.
A trial runs the file's own first layer in each arithmetic, and is kept in the weight cache's folder; one that was asked
for (`tune`) goes before the rule.
"""

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from nestling._util import files
from nestling.engine import rotary
from nestling.engine.arithmetic import ArithmeticName
from nestling.engine.hyperparameters import Hyperparameters
from nestling.engine.openvino import packing, processor, text_graph, weight_files
from nestling.engine.openvino.arithmetic import MAKERS, Arithmetic, misfit
from nestling.engine.openvino.compiling import compiled
from nestling.engine.openvino.grouping import FINE, group_of, is_quantized, matrices
from nestling.engine.openvino.layers import Products
from nestling.engine.openvino.processor import Processor
from nestling.engine.openvino.runtime import ov
from nestling.errors import NestlingError, UsageError
from nestling.formats.gguf import GGUFFile

RULES: Mapping[Processor, ArithmeticName] = {
    Processor.AMX: ArithmeticName.INT8_GROUPS,
    Processor.AVX512_VNNI: ArithmeticName.INT8_GROUPS,
    Processor.AVX2_VNNI: ArithmeticName.INT8_GROUPS,
    Processor.AVX2: ArithmeticName.INT8_GROUPS,
}
"""The fastest arithmetic for files of less than 6 bits per weight, as measured (docs/performance.md)."""
ROTATED = (ArithmeticName.INT8_ROWS, ArithmeticName.INT8_MIXED)
TRIED = (ArithmeticName.INT8_GROUPS, *ROTATED, ArithmeticName.FLOAT32)
TRIAL_ROWS, TRIALS = 512, 7
"""Tokens of a trial, and its runs, of which the fastest counts."""


@dataclass(frozen=True, slots=True)
class Choice:
    """An arithmetic's name and, in words, why."""

    name: ArithmeticName
    reason: str


def choose(file: GGUFFile, *, threads: int) -> Choice:
    """The arithmetic for a file; a trial takes seconds, once."""
    return expected(file, threads=threads) or tune(file, threads=threads)


def expected(file: GGUFFile, *, threads: int) -> Choice | None:
    """The same without a trial: None where one has to be run."""
    if all(info.kind.is_float for info in matrices(file)):
        return Choice(ArithmeticName.FLOAT32, "a float file")
    if group_of(file) == FINE:
        return Choice(ArithmeticName.INT8_GROUPS, f"a file that is as fine as groups of {FINE}")
    if why := misfit(file):
        return Choice(ArithmeticName.INT8_GROUPS, f"no rotation: {why}")
    if (tried := _trials().get(_key(file, threads))) is not None:
        return _winner(tried)
    rule = RULES.get(kind := processor.kind())
    return Choice(rule, f"the fastest on {kind}") if rule else None


def tune(file: GGUFFile, *, threads: int) -> Choice:
    """Time the arithmetics and remember the fastest; where nothing can be written, nothing is remembered."""
    tried = {str(name): _seconds(file, named(file, name), threads) for name in TRIED}
    with suppress(OSError, NestlingError), files.atomic_write(_place()) as out:
        out.write(json.dumps(_trials() | {_key(file, threads): tried}, indent=1).encode())
    return _winner(tried)


def named(file: GGUFFile, name: ArithmeticName) -> Arithmetic:
    """The arithmetic of this name. UsageError where the model's shape does not allow it."""
    if name in ROTATED and (why := misfit(file)):
        raise UsageError(f"arithmetic='{name}': {file.path} cannot be rotated: {why}", param="arithmetic")
    return MAKERS[name](file, _precision(file))


def unrotated(file: GGUFFile) -> Arithmetic:
    """An arithmetic in which a product's input is that of the file's own channels, in float32 between products."""
    return replace(named(file, ArithmeticName.INT8_GROUPS), precision="f32")


def _precision(file: GGUFFile) -> str:
    """Of what goes between int8 products: bfloat16 where it saves time, unless a matrix is stored as floats."""
    return "bf16" if processor.has_bf16(processor.kind()) and is_quantized(file) else "f32"


def _winner(tried: Mapping[str, float]) -> Choice:
    best = min(tried, key=lambda name: tried[name])
    said = ", ".join(f"{name} {seconds * 1e3:.1f} ms" for name, seconds in tried.items())
    return Choice(ArithmeticName(best), f"by trial, a layer of {TRIAL_ROWS} tokens: {said}")


def _seconds(file: GGUFFile, arithmetic: Arithmetic, threads: int) -> float:
    """The fastest run of the file's first layer over random states."""
    shape = replace(Hyperparameters.of(file), layers=1)
    products = Products(file, shape, threads, arithmetic)
    request = compiled(text_graph.build(products, groups=[range(1)]), arithmetic, threads=threads)
    states = np.random.default_rng(0).standard_normal((TRIAL_ROWS, shape.hidden)).astype(np.float32)
    cos_sin = rotary.Rotary(shape).cos_sin(np.arange(TRIAL_ROWS))
    packed = packing.side_by_side([TRIAL_ROWS], heads=shape.kv_heads).padded(TRIAL_ROWS)
    nothing = np.zeros((0, shape.kv_heads, shape.head_dim), np.float32)
    inputs, found = [states, cos_sin, *packed.inputs(), nothing, nothing], []
    for _ in range(TRIALS + 1):
        began = time.perf_counter()
        request.infer(inputs)
        found.append(time.perf_counter() - began)
    return min(found[1:])


def _place() -> Path:
    return weight_files.folder() / "trials.json"


def _trials() -> dict[str, dict[str, float]]:
    """All trials that are remembered; none where the file is missing or spoilt."""
    try:
        raw = json.loads(_place().read_bytes())
        return {
            str(key): {str(ArithmeticName(name)): float(seconds) for name, seconds in tried.items()}
            for key, tried in raw.items()
            if tried
        }
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}


def _key(file: GGUFFile, threads: int) -> str:
    """What a trial depends on: the processor, the threads, OpenVINO, the model's shape."""
    shape = Hyperparameters.of(file)
    where = f"{ov.Core().get_property('CPU', 'FULL_DEVICE_NAME')}, {processor.kind()}, {threads} threads"
    what = f"{shape.hidden} x {shape.feed_forward}, groups of {group_of(file)}"
    return f"{where}; openvino {ov.__version__}; {what}"
