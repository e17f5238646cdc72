"""The real command in processes of its own: what a shell sees when things go wrong. Each costs about a second."""

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from nestling._util import files

COMMAND = [sys.executable, "-c", "from nestling.cli import main; main()"]


def nestling(*arguments: str | Path, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=100, **more
    )


def one_line(done: subprocess.CompletedProcess[str], code: int, *parts: str) -> None:
    assert (done.returncode, done.stdout) == (code, ""), done
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("nestling: ")
    for part in parts:
        assert part in done.stderr


def test_the_console_script_is_the_same_command() -> None:
    script = shutil.which("nestling", path=str(Path(sys.executable).parent))
    assert script is not None
    done = subprocess.run([script, "inspect", "absent.gguf"], capture_output=True, text=True, check=False)
    one_line(done, 1, "absent.gguf: no such file")


def test_wrong_usage_is_exit_code_2() -> None:
    one_line(nestling("embed", "--model", "starter-code:Q9", "a"), 2, "quant='Q9'")


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "cache").write_bytes(b"")
    done = nestling("embed", "a", env=os.environ | {files.CACHE_VARIABLE: str(tmp_path / "cache")})
    one_line(done, 1, str(tmp_path / "cache"))


def full_disk() -> None:
    """No file may grow past 100 kB: a write past it fails, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


def test_a_full_disk_is_one_line_and_leaves_no_half_file(tmp_path: Path) -> None:
    done = nestling("build", "--task", "code", "--quant", "Q8_0", "--out", tmp_path, preexec_fn=full_disk)
    one_line(done, 1, "mmproj-starter-BF16.gguf: cannot be written: File too large")
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_a_full_disk_under_the_vectors_is_one_line(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("a beach\n" * 200, "utf-8")
    arguments = ["--file", str(texts), "--model", str(tiny_models["F32"]), "--engine", "reference", "--format", "npy"]
    one_line(nestling("embed", *arguments, "--out", tmp_path / "v.npy", preexec_fn=full_disk), 1, "File too large")
    assert [path.name for path in tmp_path.iterdir()] == ["texts.txt"]


def test_a_reader_that_goes_away_is_no_traceback(tiny_models: dict[str, Path]) -> None:
    """`nestling embed ... | head -c 1`."""
    arguments = ["embed", "--model", str(tiny_models["F32"]), "--engine", "reference", *["a"] * 100]
    with subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode in (0, 1)  # 0 where the pipe could hold everything


C_LOCALE = {key: value for key, value in os.environ.items() if key != "PYTHONUTF8"} | {"LC_ALL": "C", "LANG": "C"}


def test_texts_are_written_in_utf_8_in_the_c_locale(tiny_models: dict[str, Path]) -> None:
    arguments = ["embed", "海", "--model", str(tiny_models["F32"]), "--engine", "reference", "--format", "jsonl"]
    done = nestling(*arguments, env=C_LOCALE)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["text"] == "海"


def test_tables_are_written_in_utf_8_in_the_c_locale(tiny_models: dict[str, Path]) -> None:
    arguments = ["similarity", "海", "b", "--model", str(tiny_models["F32"]), "--engine", "reference"]
    done = nestling(*arguments, env=C_LOCALE, encoding="utf-8")
    assert (done.returncode, done.stderr) == (0, "")
    assert "海" in done.stdout
