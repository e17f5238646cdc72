"""What `import nestling` and `nestling.errors` load; the time itself is measured in `benchmarks/`."""

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = (
    "numpy", "openvino", "xllamacpp", "tokenizers", "typer", "rich", "starlette", "pydantic", "uvicorn", "platformdirs",
    "json", "asyncio",
)  # fmt: skip
MOST_MODULES = 40
"""All of them, Python's own included; a module costs about half a millisecond."""


def loaded_after(statement: str) -> set[str]:
    script = f"import sys; {statement}; print(*sorted(sys.modules), sep='\\n')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("statement", ["import nestling", "import nestling.cli"])
def test_importing_loads_nothing_heavy(statement: str) -> None:
    loaded = loaded_after(statement)
    assert "nestling" in loaded
    assert not loaded.intersection(HEAVY)


def test_the_command_line_loads_what_every_command_needs_alone() -> None:
    loaded = loaded_after("import nestling.cli.commands")
    assert {"typer", "numpy", "huggingface_hub.constants"} <= loaded
    assert not loaded.intersection({"openvino", "xllamacpp", "torch", "starlette", "pyarrow", "scipy", "yaml"})
    assert not {one for one in loaded if one.startswith(("httpx", "httpcore"))}


def test_the_embedder_is_loaded_when_it_is_asked_for_without_an_engine() -> None:
    loaded = loaded_after("import nestling; nestling.Embedder")
    assert {"nestling.models.embedder", "numpy", "tokenizers"} <= loaded
    assert not loaded.intersection({"openvino", "xllamacpp", "typer", "rich", "starlette", "pydantic"})


def test_importing_loads_no_package_of_third_parties() -> None:
    before, after = loaded_after("pass"), loaded_after("import nestling")
    added = {name.partition(".")[0] for name in after - before}
    assert not added - {"nestling", *sys.stdlib_module_names}
    assert len(after - before) <= MOST_MODULES


def test_everything_that_is_public_can_be_fetched() -> None:
    import nestling

    for name in nestling.__all__:
        assert getattr(nestling, name) is not None
    assert dir(nestling) == sorted(nestling.__all__)


def test_every_error_is_public() -> None:
    import nestling
    from nestling import errors

    for name, kind in inspect.getmembers(errors, inspect.isclass):
        assert getattr(nestling, name) is kind
        assert name in nestling.__all__


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    import nestling

    with pytest.raises(AttributeError, match="has no attribute 'Nest'"):
        _ = nestling.Nest
    assert json.dumps(nestling.__version__)


def test_openvino_calls_nobody(tmp_path: Path) -> None:
    """Its telemetry package is not loaded and leaves nothing in the home folder."""
    code = "import sys; import nestling.engine.openvino; sys.exit('openvino_telemetry' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "HOME": str(tmp_path)}, check=True, timeout=60)
    assert not list(tmp_path.iterdir())
