"""Stock llama.cpp loads our mmproj file and sees the same picture in it.

Its server answers with the states of the tokens behind the image alone, which is why nestling does not embed images
with it. They agree at 0.99: it keeps keys and values in half precision and takes GELU by tanh. Those of another picture
of the same size are further away.
"""

import base64
import io
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import PIL.Image
import xllamacpp
from tests.pictures import Picture, bars, gradient

from nestling.engine.openvino.engine import OpenVINOEngine
from nestling.engine.openvino.vision import OpenVINOTower
from nestling.engine.protocol import Item, Rows
from nestling.formats.gguf import GGUFFile
from nestling.formats.mmproj import VisionFile, tower_path
from nestling.inputs import image
from nestling.models import local
from nestling.vectors import Floats, paired_cosine

BEHIND = 7
"""Tokens of the prompt behind `<|vision_end|>`."""


def served(model: Path, tower: Path, socket: Path) -> Any:
    params = xllamacpp.CommonParams()
    params.model.path, params.mmproj.path = str(model), str(tower)
    params.n_ctx = params.n_batch = params.n_ubatch = 2048
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.embedding, params.pooling_type = True, xllamacpp.llama_pooling_type(0)
    params.warmup, params.verbosity, params.hostnames = False, -1, [str(socket)]
    return xllamacpp.Server(params)


def theirs(socket: Path, picture: Picture) -> Floats:
    """States of the last tokens: (BEHIND, D)."""
    file = io.BytesIO()
    PIL.Image.fromarray(picture).save(file, "PNG")
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(socket)), base_url="http://llama", timeout=60) as client:
        about = client.get("/props").json()
        assert about["modalities"]["vision"]
        start, end = "<|im_start|>user\n<|vision_start|>", "<|vision_end|>Describe the image.<|im_end|>\n"
        content = {
            "prompt_string": start + about["media_marker"] + end,
            "multimodal_data": [base64.b64encode(file.getvalue()).decode()],
        }
        answer = client.post("/embeddings", json={"content": [content]})
    assert answer.status_code == 200, answer.text
    return np.array(answer.json()[0]["embedding"], np.float32)[-BEHIND:]


def ours(model: Path, tower: Path, picture: Picture) -> Floats:
    vision = VisionFile.open(tower)
    one = image.read(picture, vision.spec)
    [rows] = OpenVINOTower(vision, threads=1, exact=True).rows([one.patches(vision.spec)], [one.grid])
    place = image.placed(one.grid, vision.spec)
    engine = OpenVINOEngine(GGUFFile.open(model), threads=1)
    [states] = engine.token_states([Item(place.ids, place.positions, Rows(place.image, rows))])
    engine.close()
    return states[-BEHIND:]


def test_llamacpp_sees_the_same_picture(tmp_path: Path) -> None:
    model = local.resolve(f"{local.STARTER}-retrieval:F16")
    tower = tower_path(model.parent, local.STARTER)
    socket, picture = tmp_path / "llama.sock", gradient(168, 224)
    server = served(model, tower, socket)
    found = theirs(socket, picture)
    del server
    same, other = (paired_cosine(ours(model, tower, one), found) for one in (picture, bars(168, 224)))
    assert same.min() >= 0.99
    assert other.mean() < same.mean(), (other, same)
