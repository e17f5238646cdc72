"""Our Triton kernels: interpreted on a CPU against the same formulas in torch, compiled offline for real cards.

Interpreted, a rounding step may fall the other way where a value lies half-way between two: one step, in a thousandth
of the places at most. Compiled, the product must use the int8 tensor cores of each generation.
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from tests.interpreted_kernels import BROKEN, PRODUCTS, ROWS, Made
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from nestling.engine.torch import kernels
from nestling.engine.torch.products import LEVELS, PlainProducts

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PLAIN = PlainProducts()
TENSOR_CORE = {80: r"mma\.sync\.\S*s32\.s8\.s8\.s32", 89: r"mma\.sync\.\S*s32\.s8\.s8\.s32", 90: r"wgmma\S*s32\.s8\.s8"}
"""Compute capability -> the instruction that multiplies int8 there."""
ALIGNED = [["tt.divisibility", 16]]


Results = dict[str, Made]


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What the kernels make of every case."""
    out = tmp_path_factory.mktemp("kernels") / "results.pt"
    command = [sys.executable, "-m", "tests.interpreted_kernels", str(out)]
    done = subprocess.run(
        command, env=os.environ | {"TRITON_INTERPRET": "1"}, cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    found: Results = torch.load(out)
    return found


@pytest.mark.parametrize("name", ROWS)
def test_rows_are_quantized_as_the_formulas_say(interpreted: Results, name: str) -> None:
    """After a norm, as they are, after SwiGLU and the rotation."""
    (values, scales), expected = interpreted[name], ROWS[name](PLAIN, torch.float32)
    torch.testing.assert_close(scales, expected[1], rtol=1e-5, atol=0)
    steps = (values.int() - expected[0].int()).abs()
    assert int(steps.max()) <= 1
    assert float(steps.float().mean()) <= 1e-3


@pytest.mark.parametrize("name", PRODUCTS)
def test_the_product_is_exact_but_for_its_rounding(interpreted: Results, name: str) -> None:
    """Rests in every direction; bfloat16 keeps 8 bits, and the interpreter cuts where a card rounds."""
    [expected] = PRODUCTS[name](PLAIN, torch.float32)
    torch.testing.assert_close(interpreted[name][0].float(), expected, rtol=2**-7, atol=1e-6)


@pytest.mark.parametrize("name", BROKEN)
def test_rows_of_zeros_and_of_no_numbers(interpreted: Results, name: str) -> None:
    """Zeros stay zeros; NaN and infinity come out as such, to be refused."""
    for values, scales in (interpreted[name], BROKEN[name](PLAIN, torch.float32)):
        assert scales[0] == 0
        assert not values[0].any()
        assert not scales[1:].isfinite().any()


def compiled(kernel: Any, capability: int, signature: dict[str, str], constants: dict[str, Any], warps: int) -> str:
    """PTX of a kernel whose pointers and sizes are multiples of 16, as ours are."""
    kinds = signature | dict.fromkeys(constants, "constexpr")
    aligned = {(place,): ALIGNED for place, kind in enumerate(kinds.values()) if kind not in ("constexpr", "fp32")}
    source = ASTSource(kernel, signature=kinds, constexprs=constants, attrs=aligned)
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})
    text: str = made.asm["ptx"]
    assert len(made.asm["cubin"]) > 0, "assembled for the card"
    return text


@pytest.mark.parametrize("capability", TENSOR_CORE)
def test_the_product_compiles_to_int8_tensor_cores(capability: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")  # or triton warns of a default that will change
    signature = {"x": "*i8", "w": "*i8", "a": "*fp32", "b": "*fp32", "bias": "*fp32", "y": "*bf16"}
    signature |= {"rows": "i32", "channels": "i32", "depth": "i32"}
    tiles = kernels.TILES[1]
    constants = {"BIAS": True, "R": tiles.rows, "C": tiles.channels, "D": tiles.depth, "GROUP": 8}
    ptx = compiled(kernels.product, capability, signature, constants, tiles.warps)
    assert re.search(TENSOR_CORE[capability], ptx)
    assert "cp.async" in ptx, "tiles are fetched while others are multiplied"


@pytest.mark.parametrize("capability", TENSOR_CORE)
def test_the_others_compile(capability: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
    rows = {"x": "*fp32", "values": "*i8", "scales": "*fp32", "width": "i32", "eps": "fp32"}
    compiled(kernels.quantize, capability, rows, {"NORM": True, "W": 2048, "STEPS": LEVELS}, 4)
    both = {"both": "*bf16", "values": "*i8", "scales": "*fp32", "rows": "i32", "width": "i32"}
    ptx = compiled(kernels.gate, capability, both, {"N": kernels.BLOCK_ROWS, "STEPS": LEVELS}, 4)
    assert re.search(r"mma\S*tf32", ptx), "the rotation runs on tensor cores too"
