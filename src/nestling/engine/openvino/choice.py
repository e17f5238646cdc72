"""Choose a file's arithmetic on this processor: by rule on measured kinds of processors, by a timed trial on others.

Float files run in float32, so that an F32 or F16 file gives the original model's vectors. Files of at least 6 bits per
weight use int8 groups of 32, the finest. The others use the fastest arithmetic that is no less exact than int8 groups.
A trial runs the file's first layer in each arithmetic; its results are cached in the weight cache's folder. A cached
trial, such as one the user asked for (`tune`), overrides the rule.
"""

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from nestling._util import files
from nestling.engine import rotary
from nestling.engine.arithmetic import ArithmeticName
from nestling.engine.hyperparameters import Hyperparameters
from nestling.engine.openvino import processor, text_graph, weight_files
from nestling.engine.openvino.arithmetic import MAKERS, Arithmetic, misfit
from nestling.engine.openvino.compiling import compiled
from nestling.engine.openvino.grouping import FINE, group_of, is_quantized, matrices
from nestling.engine.openvino.layers import Products
from nestling.engine.openvino.processor import Processor
from nestling.engine.openvino.rectangles import Rectangles
from nestling.engine.openvino.runtime import ov
from nestling.engine.weights import embedding_rows, tensor
from nestling.errors import NestlingError, UsageError
from nestling.formats.gguf import GGUFFile
from nestling.vectors import Floats

RULES: Mapping[Processor, ArithmeticName] = {
    Processor.AMX: ArithmeticName.INT8_GROUPS,
    Processor.AVX512_VNNI: ArithmeticName.INT8_GROUPS,
    Processor.AVX2_VNNI: ArithmeticName.INT8_GROUPS,
    Processor.AVX2: ArithmeticName.INT8_GROUPS,
}
"""For files of less than 6 bits per weight, as measured (docs/performance.md)."""
ROTATED = (ArithmeticName.INT8_ROWS, ArithmeticName.INT8_MIXED)
TRIED = (ArithmeticName.FLOAT32, ArithmeticName.INT8_GROUPS, *ROTATED)
TRIAL_ROWS, TRIALS = 512, 7
"""Tokens of each run of a trial, and the number of runs; the fastest counts."""
WORTH = 0.8
"""Float32, which takes more memory than int8 groups, is chosen only if it needs at most this share of their time."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The chosen arithmetic, and the reason as a text."""

    name: ArithmeticName
    reason: str


@dataclass(frozen=True, slots=True)
class Trial:
    """Seconds of one layer, and its outputs' mean squared error against float32, relative to their mean square."""

    seconds: float
    error: float


def choose(file: GGUFFile, *, threads: int) -> Choice:
    """The arithmetic for a file; may run a trial, which takes seconds, once."""
    return expected(file, threads=threads) or tune(file, threads=threads)


def expected(file: GGUFFile, *, threads: int) -> Choice | None:
    """As `choose`, without running a trial: None where one is needed."""
    if all(info.kind.is_float for info in matrices(file)):
        return Choice(ArithmeticName.FLOAT32, "a float file")
    if group_of(file) == FINE:
        return Choice(ArithmeticName.INT8_GROUPS, f"groups of {FINE}, the finest")
    if why := misfit(file):
        return Choice(ArithmeticName.INT8_GROUPS, f"no rotation: {why}")
    if (tried := _trials().get(_key(file, threads))) is not None:
        return _winner(tried)
    rule = RULES.get(kind := processor.kind())
    return Choice(rule, f"the fastest on {kind}") if rule else None


def tune(file: GGUFFile, *, threads: int) -> Choice:
    """Run a trial and cache its results; a folder that cannot be written is ignored."""
    outputs, tried = dict[ArithmeticName, Floats](), dict[str, Trial]()
    for name in TRIED if misfit(file) is None else TRIED[:2]:
        seconds, outputs[name] = _layer(file, named(file, name), threads)
        exact = outputs[ArithmeticName.FLOAT32]
        tried[name] = Trial(seconds, float(((outputs[name] - exact) ** 2).mean() / (exact**2).mean()))
    known = {key: {name: asdict(one) for name, one in trials.items()} for key, trials in _trials().items()}
    known[_key(file, threads)] = {str(name): asdict(one) for name, one in tried.items()}
    with suppress(OSError, NestlingError), files.atomic_write(_place()) as out:
        out.write(json.dumps(known, indent=1).encode())
    return _winner(tried)


def named(file: GGUFFile, name: ArithmeticName) -> Arithmetic:
    """The arithmetic of this name. UsageError where the model's shape does not allow it."""
    if name in ROTATED and (why := misfit(file)):
        raise UsageError(f"arithmetic='{name}': {file.path} cannot be rotated: {why}", param="arithmetic")
    return MAKERS[name](file, _precision(file))


def unrotated(file: GGUFFile) -> Arithmetic:
    """An arithmetic without rotation, so that inputs of products have the file's own channels; float32 between them."""
    return replace(named(file, ArithmeticName.INT8_GROUPS), precision="f32")


def _precision(file: GGUFFile) -> str:
    """Precision between int8 products: bfloat16 where it saves time, unless a matrix is stored as floats."""
    return "bf16" if processor.has_bf16(processor.kind()) and is_quantized(file) else "f32"


def _winner(tried: Mapping[str, Trial]) -> Choice:
    """The fastest that is no less exact than int8 groups; float32 only if it is much faster."""
    groups = tried[ArithmeticName.INT8_GROUPS]
    allowed = {
        name: one.seconds / (WORTH if name == ArithmeticName.FLOAT32 else 1)
        for name, one in tried.items()
        if one.error <= groups.error
    }
    best = min(allowed, key=lambda name: allowed[name])
    said = ", ".join(f"{name} {one.seconds * 1e3:.1f} ms, error {one.error:.1e}" for name, one in tried.items())
    return Choice(ArithmeticName(best), f"by trial, a layer of {TRIAL_ROWS} tokens: {said}")


def _layer(file: GGUFFile, arithmetic: Arithmetic, threads: int) -> tuple[float, Floats]:
    """Seconds of the fastest run of the file's first layer over its own embedding rows, and its final states."""
    shape = replace(Hyperparameters.of(file), layers=1)
    products = Products(file, shape, threads, arithmetic)
    form = Rectangles(shape)
    request = compiled(text_graph.build(products, form.nodes(), groups=[range(1)]), arithmetic, threads=threads)
    ids = np.random.default_rng(0).integers(0, shape.vocabulary, TRIAL_ROWS).astype(np.int32)
    rotation, cos_sin = arithmetic.rotation, rotary.Rotary(shape).cos_sin(np.arange(TRIAL_ROWS))
    states = embedding_rows(file, ids) if rotation is None else rotation.enter(embedding_rows(file, ids))
    inputs, found = [states, cos_sin, *form.batch([TRIAL_ROWS], TRIAL_ROWS)], []
    for _ in range(TRIALS + 1):
        began = time.perf_counter()
        request.infer(inputs)
        found.append(time.perf_counter() - began)
    out = np.array(request.get_output_tensor(0).data)
    norm = tensor(file, "output_norm.weight")
    return min(found[1:]), out if rotation is None else rotation.leave(out) * norm


def _place() -> Path:
    return weight_files.folder() / "trials.json"


def _trials() -> dict[str, dict[str, Trial]]:
    """All cached trials; empty if the file is missing or damaged."""
    try:
        raw = json.loads(_place().read_bytes())
        found = {
            str(key): {
                str(ArithmeticName(name)): Trial(float(one["seconds"]), float(one["error"]))
                for name, one in tried.items()
            }
            for key, tried in raw.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
    return {key: tried for key, tried in found.items() if ArithmeticName.INT8_GROUPS in tried}


def _key(file: GGUFFile, threads: int) -> str:
    """What a trial depends on: the processor, the threads, OpenVINO, the file."""
    where = f"{ov.Core().get_property('CPU', 'FULL_DEVICE_NAME')}, {processor.kind()}, {threads} threads"
    return f"{where}; openvino {ov.__version__}; {file.path.name}, {len(file.data)} bytes"
