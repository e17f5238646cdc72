"""The files of docs/deploy: what they name exists, and their numbers agree with the settings."""

import re
from configparser import ConfigParser
from pathlib import Path

import pytest

from nestling.server.settings import OTHERS, PREFIX, SETTINGS, ServeSettings, flag

DEPLOY = Path(__file__).parents[2] / "docs" / "deploy"
FLAGS = {flag(name) for name in SETTINGS}
VARIABLES = {PREFIX + name for name in (*(name.upper() for name in SETTINGS), *OTHERS)}
SETTINGS_OF_NOTHING = ServeSettings()
LINGER_S = 1.0


@pytest.mark.parametrize("path", sorted(DEPLOY.iterdir()), ids=lambda path: path.name)
def test_flags_and_variables_are_those_of_the_server(path: Path) -> None:
    text = path.read_text("utf-8")
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)) <= FLAGS
    assert set(re.findall(r"\bNESTLING_[A-Z_]+", text)) <= VARIABLES
    assert path.name in (DEPLOY.parent / "deployment.md").read_text("utf-8")


def unit(name: str) -> ConfigParser:
    parser = ConfigParser(strict=False, interpolation=None, delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(DEPLOY / name, "utf-8")
    return parser


def test_the_units_leave_time_to_drain_and_reload_by_sighup() -> None:
    service = unit("nestling.service")["Service"]
    assert int(service["TimeoutStopSec"]) > SETTINGS_OF_NOTHING.drain_s + LINGER_S
    assert "-HUP" in service["ExecReload"]
    assert service["ExecStart"].split()[1] == "serve"


def test_the_socket_unit_has_one_stream_socket_where_the_server_would_listen() -> None:
    listens = unit("nestling.socket")["Socket"]
    assert listens["ListenStream"] == f"{SETTINGS_OF_NOTHING.host}:{SETTINGS_OF_NOTHING.port}"
    assert listens["Accept"] == "no"
