"""Every command that wants an extra says so in one line when it is not installed."""

import subprocess
import sys
from pathlib import Path

import pytest

MISSING = [
    ("uvicorn", "serve", ("serve", "--port", "0")),
    ("starlette", "serve", ("serve", "--port", "0")),
    ("bpe_openai", "cl100k", ("serve", "--port", "0", "--token-input", "cl100k")),
    ("ir_measures", "eval", ("eval", "quality", "starter-retrieval:Q8_0")),
    ("matplotlib", "eval", ("report", "results", "--out", "report")),
    ("pyarrow", "bulk", ("bulk", "texts.txt", "--out", "vectors")),
    ("nestling_data", "data", ("embed", "hello")),
    ("nestling_data", "data", ("build",)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("package", "extra", "arguments"), MISSING, ids=lambda one: one if isinstance(one, str) else " ".join(one)
)
def test_a_missing_extra_is_one_line(package: str, extra: str, arguments: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("one text\n", "utf-8")
    code = f"import sys; sys.modules[{package!r}] = None; from nestling.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=tmp_path,
        env={"PATH": "", "PYTHONPATH": ":".join(sys.path), "NESTLING_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2, done.stderr
    [line] = done.stderr.splitlines()
    assert package in line
    assert f"pip install 'nestling[{extra}]'" in line
