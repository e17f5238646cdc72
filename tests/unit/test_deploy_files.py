"""The files of docs/deploy: what they name exists, and their numbers agree with the settings."""

import json
import re
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from starlette.testclient import TestClient
from tests.contract.serving import loader, settings

from nestling.server.app import create_app
from nestling.server.http.auth import OPEN_PATHS
from nestling.server.process import LINGER_S
from nestling.server.settings import OTHERS, PREFIX, SETTINGS, ServeSettings, flag, read_settings

DEPLOY = Path(__file__).parents[2] / "docs" / "deploy"
FLAGS = {flag(name) for name in SETTINGS}
VARIABLES = {PREFIX + name for name in (*(name.upper() for name in SETTINGS), *OTHERS)}
OF_OTHERS = {"--from-file"}
"""Flags of kubectl's."""
SETTINGS_OF_NOTHING = ServeSettings()


@pytest.mark.parametrize("path", sorted(DEPLOY.iterdir()), ids=lambda path: path.name)
def test_flags_and_variables_are_those_of_the_server(path: Path) -> None:
    text = path.read_text("utf-8")
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)) - OF_OTHERS <= FLAGS
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


def kubernetes(kind: str) -> Any:
    [found] = [
        one for one in yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text("utf-8")) if one["kind"] == kind
    ]
    return found["spec"]


def container() -> Any:
    [one] = kubernetes("Deployment")["template"]["spec"]["containers"]
    return one


def test_the_probes_ask_paths_that_need_no_key() -> None:
    with TestClient(create_app(settings(), loader()), base_url="http://localhost") as client:
        client.post("/v1/embeddings", json={"input": "a"})  # is answered once the models are loaded
        for probe, path in (("startupProbe", "/ready"), ("readinessProbe", "/ready"), ("livenessProbe", "/health")):
            asked = container()[probe]["httpGet"]
            assert asked == {"path": path, "port": "http"}
            assert path in OPEN_PATHS
            assert client.get(path).status_code == 200


def test_the_ports_of_container_and_service_are_one() -> None:
    [port] = container()["ports"]
    [offered] = kubernetes("Service")["ports"]
    assert (port["name"], port["containerPort"]) == (offered["targetPort"], SETTINGS_OF_NOTHING.port)
    assert kubernetes("Service")["selector"] == kubernetes("Deployment")["selector"]["matchLabels"]
    assert kubernetes("Deployment")["template"]["metadata"]["labels"] == {"app": "nestling"}


def test_a_pod_has_time_to_drain() -> None:
    environ = {one["name"]: one["value"] for one in container()["env"]}
    before = container()["lifecycle"]["preStop"]["sleep"]["seconds"]
    grace = kubernetes("Deployment")["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace > before + int(environ["NESTLING_DRAIN_S"]) + LINGER_S


def test_a_pod_is_read_by_the_server_as_it_is_written() -> None:
    environ = {one["name"]: one["value"] for one in container()["env"]}
    assert container()["args"][0] == "serve"
    keys = environ.pop("NESTLING_API_KEY_FILE")
    found = read_settings({"model": [container()["args"][2]]}, environ)
    assert (found.host, found.port, found.drain_s) == ("0.0.0.0", 8080, 30)
    mounts = {one["mountPath"]: one["name"] for one in container()["volumeMounts"]}
    places = [keys, environ["NESTLING_CACHE"], found.model[0]]
    assert all(any(place.startswith(mount) for mount in mounts) for place in places)
    assert set(mounts.values()) == {one["name"] for one in kubernetes("Deployment")["template"]["spec"]["volumes"]}
    assert container()["resources"]["limits"].keys() == {"cpu", "memory"}


LABELS = {"path", "status", "model", "reason", "stage", "le", "job", "instance"}


def test_the_dashboard_shows_metrics_and_labels_that_there_are() -> None:
    with TestClient(create_app(settings(), loader()), base_url="http://localhost") as client:
        assert client.post("/v1/embeddings", json={"input": "a"}).status_code == 200
        text = client.get("/metrics").text
    shown = json.loads((DEPLOY / "grafana.json").read_text("utf-8"))
    queries = [target["expr"] for panel in shown["panels"] for target in panel["targets"]]
    queries += [one["query"]["query"] for one in shown["templating"]["list"] if one["type"] == "query"]
    named = {name for query in queries for name in re.findall(r"nestling_\w+", query)}
    known = {name for _, name in re.findall(r"# (HELP|TYPE) (nestling_\w+)", text)}
    assert named <= known | {f"{name}_bucket" for name in known}
    assert len(named) > 12
    labels = {one for query in queries for one in re.findall(r"(\w+)=~?\"", query)}
    labels |= {one for query in queries for group in re.findall(r"by \(([^)]*)\)", query) for one in group.split(", ")}
    assert labels <= LABELS
    assert {label for label in labels - {"job", "instance", "reason"} if f"{label}=" not in text} == set()


def test_the_panels_of_the_dashboard_do_not_overlap_and_say_what_they_show() -> None:
    panels = json.loads((DEPLOY / "grafana.json").read_text("utf-8"))["panels"]
    places = {(one["gridPos"]["x"], one["gridPos"]["y"]) for one in panels}
    assert len(places) == len({one["id"] for one in panels}) == len({one["title"] for one in panels}) == len(panels)
    assert all(one["description"] for one in panels)
