"""Clients of other APIs against `nestling serve`: the vectors and the order of Python, to the rounding of float32.

Doors by which a client could get another vector, or none: its own names for roles; how it asks for and reads numbers
(floats, base64, lists in lists); what it asks before (`/info`, `/api/tags`, `/`); an empty key in its header. Those
that are not among the development packages are run by `make clients`; docs/moving.md tells how that went.
"""

import json
from pathlib import Path

import pytest
from benchmarks import tables
from tests.contract.clients import run
from tests.contract.clients.expected import SAME, Expected
from tests.contract.clients.python_clients import CLIENTS
from tests.contract.clients.recorded import REQUESTS
from tests.contract.conftest import Served


@pytest.fixture(scope="module")
def expected(served: Served) -> Expected:
    assert served.url
    return Expected.load()


@pytest.mark.parametrize("name", run.DEVELOPMENT)
def test_a_real_client_gets_the_vectors_of_python(
    served: Served, expected: Expected, name: str, tmp_path: Path
) -> None:
    found = json.loads(run.said([*run.python_command(name), served.url], tmp_path))["found"]
    assert expected.largest_difference(found) < SAME


@pytest.mark.parametrize("name", REQUESTS)
def test_the_request_of_a_client_gets_the_vectors_of_python(served: Served, expected: Expected, name: str) -> None:
    assert expected.largest_difference(run.sent(REQUESTS[name], served.url)) < SAME


def test_pgai_finds_the_context_of_a_model(served: Served) -> None:
    """It reads `model_info` by the architecture that is named there."""
    import ollama

    with ollama.Client(host=served.url) as client:
        info = client.show("starter").modelinfo
    assert info is not None
    assert info[f"{info['general.architecture']}.context_length"] == 32768


def test_every_client_has_its_line_in_the_results() -> None:
    known = json.loads(run.RESULT.read_text("utf-8"))["clients"]
    assert not [name for name in (*CLIENTS, *REQUESTS) if name not in known]
    assert {one["api"] for one in known.values()} == set(tables.SPOKEN)


def test_a_client_that_finds_something_else_is_told(expected: Expected) -> None:
    with pytest.raises(ValueError, match="no vector"):
        expected.largest_difference({})
    with pytest.raises(ValueError, match=r"shape \(3, 128\), expected \(128,\)"):
        expected.largest_difference({"query": [[0.0] * 128] * 3})
    with pytest.raises(ValueError, match="ranked"):
        expected.largest_difference({"ranking": [0]})
