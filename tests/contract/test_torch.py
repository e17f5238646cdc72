"""`nestling serve --engine torch --device cpu` gives the vectors of OpenVINO and of the numpy reference.

Doors: the server, the command line, and a GPU that is not there, which is one line and never the processor. With two
devices, both give the same bytes.
"""

import base64
import json
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from tests.contract.conftest import NESTLING, serving
from tests.contract.serving import running, settings
from tests.picture_files import png
from tests.pictures import gradient

from nestling import Embedder
from nestling.server.core.loading import loads
from nestling.vectors import Floats, paired_cosine

TEXTS = [
    "a",
    "A beautiful sunset over the beach",
    "海滩上美丽的日落",
    "The lock is taken before the file is read. " * 40,
]
TORCH = ("--engine", "torch", "--device", "cpu")
BOUNDS = {"F16": 0.9999, "Q4_K_M": 0.999}
"""What two engines agree to: both in float32, and with OpenVINO in int8."""
EXACT = 0.99999
"""Torch on a CPU and the numpy reference, whatever the file."""


def embedded(file_type: str, engine: str) -> Floats:
    return Embedder.load(f"starter-retrieval:{file_type}", engine=engine).encode_document(TEXTS)


@pytest.mark.parametrize("file_type", BOUNDS)
def test_the_server_answers_as_the_other_engines_do(file_type: str) -> None:
    with serving("--model", f"starter-retrieval:{file_type}", *TORCH) as server:
        body = {"model": "starter-retrieval", "prompt_name": "passage", "input": TEXTS}
        answer = httpx.post(f"{server.url}/v1/embeddings", json=body, timeout=60)
    found = np.array([item["embedding"] for item in answer.json()["data"]], np.float32)
    assert paired_cosine(found, embedded(file_type, "reference")).min() >= EXACT
    assert paired_cosine(found, embedded(file_type, "openvino")).min() >= BOUNDS[file_type]


def test_the_server_embeds_images_between_texts(vision_path: Path, vision_model: Embedder) -> None:
    """A bfloat16 OpenVINO tower beside torch's float32: 0.9998 is the promise for it."""
    picture, texts = gradient(120, 90), ["a", "a longer text of several words"]
    image = {"image": base64.b64encode(png(picture)).decode()}
    with running(lambda _reference: Embedder.load(vision_path, engine="torch", device="cpu", threads=1)) as server:
        body = {"prompt_name": "passage", "input": [texts[0], image, texts[1]]}
        answer = httpx.post(f"{server.url}/v1/embeddings", json=body, timeout=60)
    found = np.array([item["embedding"] for item in answer.json()["data"]], np.float32)
    assert paired_cosine(found[::2], vision_model.encode_document(texts)).min() >= EXACT
    assert paired_cosine(found[1:2], vision_model.encode_image([picture])).min() >= 0.9998


def test_two_devices_share_the_work_and_give_the_same_bytes() -> None:
    wanted = settings(engine="torch", device="cpu,cpu", threads=1)
    first, second = (load("starter-retrieval:Q4_K_M") for load in loads(wanted).values())
    assert first.engine is not second.engine
    assert first.encode_document(TEXTS).tobytes() == second.encode_document(TEXTS).tobytes()
    both = ("--engine", "torch", "--device", "cpu,cpu", "--threads", "1")
    with serving("--model", "starter-retrieval:F16", *both) as server, ThreadPoolExecutor(16) as clients:

        def ask(text: str) -> Floats:
            body = {"model": "starter-retrieval", "prompt_name": "passage", "input": text}
            answer = httpx.post(f"{server.url}/v1/embeddings", json=body, timeout=60)
            return np.array(answer.json()["data"][0]["embedding"], np.float32)

        found = np.stack(list(clients.map(ask, TEXTS * 8)))
        engines = httpx.get(f"{server.url}/v1/models", timeout=60).json()["engines"]
        metrics = httpx.get(f"{server.url}/metrics", timeout=60).text
    expected = np.tile(embedded("F16", "reference"), (8, 1))
    assert paired_cosine(found, expected).min() >= EXACT
    assert [(one["engine"], one["device"]) for one in engines] == [("torch", "cpu:0"), ("torch", "cpu:1")]
    for device in ("cpu:0", "cpu:1"):
        assert f'nestling_batch_tokens_count{{device="{device}"}}' in metrics


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--engine", "torch", "--device", "cuda:0,cuda:1"), "device='cuda:0': "),
        (("--engine", "openvino", "--device", "cuda:0,cuda:1"), "the openvino engine runs on the cpu"),
    ],
)
def test_a_server_on_gpus_that_are_not_there_ends_with_one_line(options: tuple[str, ...], said: str) -> None:
    done = run("serve", "--port", "0", *options)
    assert done.returncode != 0
    assert done.stdout == ""
    assert said in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([NESTLING, *arguments], capture_output=True, text=True, timeout=120, env=dict(os.environ))


def test_the_command_line_answers_as_the_other_engines_do() -> None:
    done = run("embed", "--model", "starter-retrieval:F16", "--prompt", "passage", *TORCH, "--format", "json", TEXTS[1])
    assert done.returncode == 0, done.stderr
    [found] = json.loads(done.stdout)["data"]
    expected = embedded("F16", "reference")[1]
    assert float(np.dot(found["embedding"], expected)) >= EXACT


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--engine", "torch"), "no GPU: "),
        (("--device", "cuda:1"), "device='cuda:1': "),
        (("--engine", "openvino", "--device", "cuda"), "the openvino engine runs on the cpu"),
        (("--engine", "torch", "--device", "gpu"), "expected cuda[:N], xpu[:N], mps or cpu"),
    ],
)
def test_a_gpu_that_is_not_there_is_one_line(options: tuple[str, ...], said: str) -> None:
    done = run("embed", *options, "a text")
    assert done.returncode != 0
    [line] = done.stderr.splitlines()
    assert said in line
