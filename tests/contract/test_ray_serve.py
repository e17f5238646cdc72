"""Two replicas on one machine behind Ray Serve: both answer, vectors are Python's, one that is killed is replaced."""

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml

from nestling import Embedder
from nestling.server.settings import SETTINGS, ServeSettings

ROOT = Path(__file__).parents[2]
TEXTS = ["How do I open a socket?", "海滩上美丽的日落"]
SERVE = """
import os, sys
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
import ray
from ray import serve
from ray.util import list_named_actors
from nestling.server.ray_serve import NESTLING

ray.init("local", num_cpus=2, include_dashboard=False, object_store_memory=100 << 20)
serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
two = NESTLING.options(num_replicas=2, ray_actor_options={"num_cpus": 1})
serve.run(two.bind({"model": "starter-retrieval:Q8_0"}))
print("ready", flush=True)
for _ in sys.stdin:
    named = [one for one in list_named_actors(all_namespaces=True) if "SERVE_REPLICA" in one["name"]]
    ray.kill(ray.get_actor(named[0]["name"], named[0]["namespace"]), no_restart=True)
    print("killed", flush=True)
serve.shutdown()
ray.shutdown()
"""


def test_the_file_names_the_application_and_settings_that_there_are() -> None:
    written = yaml.safe_load((ROOT / "docs" / "deploy" / "ray_serve.yaml").read_text("utf-8"))
    [application] = written["applications"]
    module, name = application["import_path"].split(":")
    assert f"def {name}(" in (ROOT / "src" / Path(*module.split("."))).with_suffix(".py").read_text("utf-8")
    assert application["args"].keys() <= SETTINGS.keys()
    [deployment] = application["deployments"]
    assert deployment["num_replicas"] >= 2
    assert deployment["max_ongoing_requests"] == ServeSettings().max_in_flight
    assert deployment["graceful_shutdown_timeout_s"] > ServeSettings().drain_s


@contextmanager
def replicas(port: int) -> Iterator["subprocess.Popen[str]"]:
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT / "data" / "src"), *sys.path])}
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", SERVE, str(port)], env=environ, text=True, **pipes) as process:
        try:
            yield process
            process.communicate(timeout=60)
            assert process.returncode == 0
        finally:
            process.kill()


def said(process: "subprocess.Popen[str]", word: str) -> None:
    assert process.stdout
    if word not in (line := process.stdout.readline()):
        raise AssertionError(line + process.communicate(timeout=60)[1][-3000:])


def scrapes_of_one_replica(client: httpx.Client, count: int) -> int:
    """The most scrapes of `count` that one replica has answered since it started."""
    found = [client.get("/metrics").text for _ in range(count)]
    return max(
        int(float(number)) for text in found
        for number in re.findall(r'nestling_requests_total\{path="/metrics",status="200"\} (\S+)', text)
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_replicas_answer_and_a_killed_one_is_replaced(starter_q8: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    expected = Embedder.load(starter_q8).encode_query(TEXTS)
    with replicas(port) as process:
        said(process, "ready")
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            for _ in range(20):
                answer = client.post("/v1/embeddings", json={"input": TEXTS}).json()
                assert np.abs(np.array([one["embedding"] for one in answer["data"]]) - expected).max() < 1e-6
            refused = client.post("/api/embed", json={"model": "absent", "input": "a"})
            assert (refused.status_code, refused.json().keys()) == (404, {"error"})
            assert scrapes_of_one_replica(client, 20) < 19
            assert process.stdin
            process.stdin.write("kill\n")
            process.stdin.flush()
            said(process, "killed")
            deadline = time.monotonic() + 120
            answered = 0
            while answered < 20:
                assert time.monotonic() < deadline, "the killed replica is still asked"
                answered = answered + 1 if client.get("/ready").status_code == 200 else 0
