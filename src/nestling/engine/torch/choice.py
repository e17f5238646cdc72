"""Choose a file's arithmetic on a device: by rule where the fastest is known, else by a timed trial.

A CPU runs float32, the exact mode. A GPU runs float files and Q8_0 in bfloat16; other quantized files in int8 if our
kernels can be compiled there and are faster than bfloat16 at this model's own products, else in bfloat16.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from nestling.engine.arithmetic import ArithmeticName
from nestling.engine.hyperparameters import LAYER_MATRICES, Hyperparameters
from nestling.engine.rotation import Rotation, misfit
from nestling.engine.torch.arithmetic import Arithmetic, FloatArithmetic, Int8Arithmetic
from nestling.engine.torch.devices import Placement, card_name, first_line
from nestling.engine.torch.products import INNER, Int8Products, PlainProducts, lift
from nestling.errors import EngineError, UsageError
from nestling.formats.gguf import GGUFFile
from nestling.formats.quant_types import QuantType

TRIAL_ROWS = 2048
TRIALS = 5
"""Timed runs of each, after one that compiles; the fastest counts."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The chosen arithmetic, and the reason as a text."""

    arithmetic: Arithmetic
    reason: str


def choose(file: GGUFFile, on: Placement) -> Choice:
    """The arithmetic for a file on a device."""
    if on.is_cpu:
        return Choice(floats(ArithmeticName.FLOAT32), "a CPU computes in float32")
    if not _is_coarse(file):
        return Choice(floats(ArithmeticName.BF16), "a float or Q8_0 file computes in bfloat16")
    shape = Hyperparameters.of(file)
    if why := misfit(shape, inner=INNER) or _no_kernels(on):
        return Choice(floats(ArithmeticName.BF16), f"no int8: {why}")
    return _tried(shape, on)


def _tried(shape: Hyperparameters, on: Placement) -> Choice:
    """The outcome of the trial, of one for all cards of a kind: replicas and a reloaded engine must compute alike."""
    key = shape, card_name(on.device)
    if key not in _OUTCOMES:
        found = _faster(shape, on)
        _OUTCOMES[key] = found.arithmetic.name, found.reason
        return found
    name, reason = _OUTCOMES[key]
    return Choice(forced(name, shape, on).arithmetic, reason)


_OUTCOMES: dict[tuple[Hyperparameters, str], tuple[ArithmeticName, str]] = {}


def forced(name: ArithmeticName, shape: Hyperparameters, on: Placement) -> Choice:
    """The arithmetic of this name. UsageError for one that this engine lacks, EngineError where it cannot run."""
    if name in (ArithmeticName.INT8_GROUPS, ArithmeticName.INT8_MIXED):
        raise UsageError(f"arithmetic='{name}': expected auto, float32, bf16 or int8-rows on torch", param="arithmetic")
    if name is not ArithmeticName.INT8_ROWS:
        return Choice(floats(name), "as asked")
    if why := misfit(shape, inner=INNER):
        raise EngineError(f"no int8: {why}")
    return Choice(int8(shape, on), "as asked")


def floats(name: ArithmeticName) -> Arithmetic:
    """One of the arithmetics without int8."""
    return FloatArithmetic(name, torch.float32 if name is ArithmeticName.FLOAT32 else torch.bfloat16)


def int8(shape: Hyperparameters, on: Placement) -> Arithmetic:
    """int8 after the rotation: by our kernels on a GPU, by the same formulas in float32 on a CPU, for tests."""
    rotation = Rotation.of(shape, lift(on.device))
    if on.is_cpu:
        return Int8Arithmetic(torch.float32, rotation, PlainProducts())
    return Int8Arithmetic(torch.bfloat16, rotation, _tuned(shape, on))


def _is_coarse(file: GGUFFile) -> bool:
    """Whether the layers' matrices are quantized to fewer bits than Q8_0's."""
    kinds = {info.kind for name, info in file.tensors.items() if name.split(".")[-2] in LAYER_MATRICES}
    return any(not kind.is_float and kind is not QuantType.Q8_0 for kind in kinds)


def _no_kernels(on: Placement) -> str | None:
    """Why our kernels do not run on a device; None if they do."""
    if on.device.type != "cuda":
        return f"its kernels are compiled for CUDA and ROCm, not for {on.device.type}"
    try:
        from nestling.engine.torch import kernels
    except ImportError as error:
        return f"its kernels need triton ({error})"
    del kernels
    return None


def _tuned(shape: Hyperparameters, on: Placement) -> Int8Products:
    """The kernels with the tiles that are fastest for the widest product; those that do not fit the GPU are left out.

    Raises the last tiles' RuntimeError if none of them run.
    """
    from nestling.engine.torch.kernels import TILES, KernelProducts

    seconds: dict[int, float] = {}
    failed = RuntimeError("no tiles")
    for place, tiles in enumerate(TILES):
        trial = Int8Arithmetic(torch.bfloat16, Rotation.of(shape), KernelProducts(tiles))
        try:
            seconds[place] = _seconds(trial, shape, on)
        except RuntimeError as error:  # more shared memory than this GPU has
            failed = error
    if not seconds:
        raise failed
    return KernelProducts(TILES[min(seconds, key=lambda place: seconds[place])])


def _faster(shape: Hyperparameters, on: Placement) -> Choice:
    """The faster of int8 and bfloat16 on this GPU, at this model's feed-forward part."""
    plain = floats(ArithmeticName.BF16)
    try:
        rounded = int8(shape, on)
    except RuntimeError as error:
        return Choice(plain, f"no int8: its kernels do not run here ({first_line(error)})")
    took, plain_took = _seconds(rounded, shape, on), _seconds(plain, shape, on)
    said = f"{TRIAL_ROWS} rows took int8 {took * 1e3:.2f} ms, bfloat16 {plain_took * 1e3:.2f} ms"
    return Choice(rounded if took < plain_took else plain, said)


def _seconds(arithmetic: Arithmetic, shape: Hyperparameters, on: Placement) -> float:
    """The fastest of a few runs of norm, `gate_up`, SwiGLU and `down` over random rows."""
    x = torch.randn(TRIAL_ROWS, shape.hidden, device=on.device)
    norm = torch.ones(shape.hidden, device=on.device)
    gate_up = arithmetic.pack(torch.randn(2 * shape.feed_forward, shape.hidden, device=on.device))
    down = arithmetic.pack(torch.randn(shape.hidden, shape.feed_forward, device=on.device))

    def run() -> None:
        both = arithmetic.times(arithmetic.normed(x, norm, shape.rms_eps), gate_up, None)
        arithmetic.times(arithmetic.gated(both), down, None)

    return fastest(run, on)


def fastest(run: Callable[[], object], on: Placement) -> float:
    """Seconds of the fastest of a few runs, after one that may compile."""
    found = []
    for _ in range(TRIALS + 1):
        on.wait()
        began = time.perf_counter()
        run()
        on.wait()
        found.append(time.perf_counter() - began)
    return min(found[1:])
