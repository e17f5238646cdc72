"""The kind of this processor, by the instruction sets that OpenVINO's kernels may use.

`ONEDNN_MAX_CPU_ISA` caps the kernels and so the kind; with it the choice for an older processor can be tried on a newer
one. The kind is known on Linux with x86 only.
"""

import os
from enum import StrEnum
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
CAP = "ONEDNN_MAX_CPU_ISA"


class Processor(StrEnum):
    """Kinds that may differ in their fastest arithmetic, newest first."""

    AMX = "AMX"
    AVX512_VNNI = "AVX-512 VNNI"
    AVX2_VNNI = "AVX2 VNNI"
    AVX2 = "AVX2"
    OTHER = "another"


_KINDS = {
    Processor.AMX: ("amx_int8", "AVX512_CORE_AMX"),
    Processor.AVX512_VNNI: ("avx512_vnni", "AVX512_CORE_VNNI"),
    Processor.AVX2_VNNI: ("avx_vnni", "AVX2_VNNI"),
    Processor.AVX2: ("avx2", "AVX2"),
}
"""The flag of each kind in /proc/cpuinfo, and the first cap that allows its kernels."""
_CAPS = (
    "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI", "AVX512_CORE_BF16", "AVX512_CORE_FP16",
    "AVX512_CORE_AMX", "AVX512_CORE_AMX_FP16",
)  # fmt: skip
"""oneDNN's names of instruction sets, each of which includes those before it."""
_OLDER = ("SSE41", "AVX")


def flags(cpuinfo: Path = CPUINFO) -> frozenset[str]:
    """The instruction sets of the first processor; empty if there is no such file."""
    try:
        lines = cpuinfo.read_text("utf-8", "replace").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line for line in lines if line.startswith("flags")), "").split())


def kind(cpuinfo: Path = CPUINFO) -> Processor:
    """The newest kind that the processor has and the cap allows; AVX2 VNNI counts as part of AVX-512 VNNI."""
    found = flags(cpuinfo)
    has = found | ({"avx_vnni"} if "avx512_vnni" in found else set())
    fitting = (one for one, (flag, first) in _KINDS.items() if flag in has and _allows(first))
    return next(fitting, Processor.OTHER)


def has_bf16(processor: Processor, cpuinfo: Path = CPUINFO) -> bool:
    """Whether bfloat16 between products saves time: only kinds with AVX-512 can have its instructions."""
    able = bool(flags(cpuinfo) & {"avx512_bf16", "amx_bf16"}) and _allows("AVX512_CORE_BF16")
    return able and processor in (Processor.AMX, Processor.AVX512_VNNI)


def _allows(first: str) -> bool:
    """Whether the cap allows kernels that need this or an older set of instructions."""
    cap = os.environ.get(CAP, "").upper()
    return _CAPS.index(first) <= (_CAPS.index(cap) if cap in _CAPS else -1 if cap in _OLDER else len(_CAPS))
