"""Which kind a processor is, by its flags and the cap on OpenVINO's kernels."""

from pathlib import Path

import pytest

from nestling.engine.openvino.processor import CAP, Processor, has_bf16, kind

FLAGS = {
    Processor.AMX: "fma avx2 avx512f avx512_vnni avx_vnni avx512_bf16 amx_bf16 amx_int8",
    Processor.AVX512_VNNI: "fma avx2 avx512f avx512_vnni avx512_bf16",
    Processor.AVX2_VNNI: "fma avx2 avx_vnni",
    Processor.AVX2: "fma avx2",
    Processor.OTHER: "sse2",
}


def cpuinfo(folder: Path, flags: str) -> Path:
    path = folder / "cpuinfo"
    path.write_text(f"processor\t: 0\nmodel name\t: x\nflags\t\t: fpu {flags}\n\nprocessor\t: 1\nflags\t\t: fpu\n")
    return path


@pytest.fixture(autouse=True)
def _without_a_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CAP, raising=False)


@pytest.mark.parametrize("expected", FLAGS)
def test_each_kind_is_known_by_its_flags(tmp_path: Path, expected: Processor) -> None:
    assert kind(cpuinfo(tmp_path, FLAGS[expected])) is expected


@pytest.mark.parametrize(
    ("cap", "expected"),
    [
        ("AVX2", Processor.AVX2),
        ("avx2_vnni", Processor.AVX2_VNNI),
        ("AVX512_CORE_VNNI", Processor.AVX512_VNNI),
        ("AVX512_CORE_AMX", Processor.AMX),
        ("DEFAULT", Processor.AMX),
        ("SSE41", Processor.OTHER),
    ],
)
def test_a_cap_makes_it_an_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cap: str, expected: Processor
) -> None:
    monkeypatch.setenv(CAP, cap)
    assert kind(cpuinfo(tmp_path, FLAGS[Processor.AMX])) is expected


def test_a_cap_makes_nothing_newer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CAP, "AVX512_CORE_AMX")
    assert kind(cpuinfo(tmp_path, FLAGS[Processor.AVX2])) is Processor.AVX2


def test_elsewhere_than_on_linux_with_x86_it_is_not_known(tmp_path: Path) -> None:
    assert kind(tmp_path / "none") is Processor.OTHER
    assert kind(cpuinfo(tmp_path, "")) is Processor.OTHER
    (tmp_path / "arm").write_text("processor\t: 0\nFeatures\t: fp asimd\n")
    assert kind(tmp_path / "arm") is Processor.OTHER


def test_bfloat16_only_where_avx512_is() -> None:
    assert not has_bf16(Processor.AVX2_VNNI)
    assert not has_bf16(Processor.OTHER)


@pytest.mark.parametrize("cap", ["AVX2", "AVX512_CORE", "AVX512_CORE_VNNI"])
def test_bfloat16_only_where_the_cap_allows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cap: str) -> None:
    """Attention in pages under such a cap crashed the process: it needs bfloat16 kernels."""
    place = cpuinfo(tmp_path, FLAGS[Processor.AVX512_VNNI])
    assert has_bf16(Processor.AVX512_VNNI, place)
    monkeypatch.setenv(CAP, cap)
    assert not has_bf16(Processor.AVX512_VNNI, place)
