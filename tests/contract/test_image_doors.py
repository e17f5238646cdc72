"""Every guard at every door for images (`tests.contract.image_doors`): the vector, the tokens, limits, refusals.

`/v1/rerank` takes images too: its guards are in `test_image_requests`. Paths that several dialects share let bodies
with images in whatever the dialect, so the usual limit of a body is tested on those that have none.
"""

import base64
import ipaddress
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.contract.image_doors import DOORS, Door, Image
from tests.contract.serving import Running, running
from tests.fault.test_image_downloads import serving
from tests.picture_files import png
from tests.pictures import gradient, noise

from nestling.inputs.image.download import Downloads
from nestling.models.embedder import Embedder
from nestling.vectors import paired_cosine

DATA = png(gradient(56, 84))
URI = "data:image/png;base64,"


def coded(data: bytes) -> str:
    return base64.b64encode(data).decode()


CODE = coded(DATA)
PICTURE = Image(URI + CODE)
SAME = 0.9999
LIMIT = 40_000
"""Bytes of a body with images on the server of the limits; texts may have a tenth."""


@pytest.fixture(params=list(DOORS))
def door(request: pytest.FixtureRequest) -> Door:
    return DOORS[request.param]


@pytest.fixture(scope="module")
def narrow(vision_path: Path) -> Iterator[Running]:
    """A server with small limits."""
    changes = {"max_body_bytes": LIMIT // 10, "max_image_body_bytes": LIMIT, "max_inputs": 3}
    with running(lambda _reference: Embedder.load(vision_path, threads=1), **changes) as one:
        yield one


def beside(door: Door, *images: Image) -> list[str | Image]:
    """Images after another input, where the door takes two."""
    first: list[str | Image] = ["a text"] if door.mixed else [PICTURE]
    return list(images) if door.single else [*first, *images]


def test_vectors_and_tokens(vision_server: Running, vision_model: Embedder, door: Door) -> None:
    inputs = beside(door, PICTURE)
    answer = door.ask(vision_server.url, inputs)
    role = "passage" if "/v2" in door.path else "query"
    items = vision_model.items([DATA if isinstance(one, Image) else one for one in inputs], prompt_name=role)
    assert paired_cosine(door.vectors(answer), vision_model.embed(items)).min() >= SAME
    assert door.tokens(answer.json()) == sum(map(len, items))


BAD = {
    "data:image/png;base64,": "empty",
    "data:image/png," + CODE: "data URI: expected ;base64 before the comma",
    "data:image/svg+xml;base64," + CODE: "data URI of image/svg+xml",
    URI + CODE[:-1]: "not base64",
    URI + coded(b"<html>"): "cannot be read as an image: this is HTML",
    URI + coded(DATA[:70]): "cannot be read as an image: the PNG is damaged",
    URI + coded(png(gradient(10, 3000))): "one side is more than 200 times the other",
    "": "empty",
    "data:text/html;base64," + CODE: "data URI of text/html",
    "file:///etc/passwd": "not base64",
    "/etc/passwd": "not base64",
    "http://169.254.169.254/latest": "this server fetches no URLs",
}
BOMB = Image(URI + coded(b"BM" + bytes(12) + struct.pack("<Iii", 40, 19_000, 19_000) + bytes(30)))
TEXTS_ELSEWHERE = {"", *(one for one in BAD if not one.startswith("data:image/"))}


@pytest.mark.parametrize("text", BAD, ids=[one[:30] or "nothing" for one in BAD])
def test_a_bad_image_is_named(vision_server: Running, door: Door, text: str) -> None:
    if door.uris and text in TEXTS_ELSEWHERE:
        return
    inputs = beside(door, Image(text))
    place = str(len(inputs) - 1)
    assert place in door.refused(door.ask(vision_server.url, inputs), 400, BAD[text]).partition(":")[0] or door.single


def test_a_bomb_is_refused_by_its_header(vision_server: Running, door: Door) -> None:
    door.refused(door.ask(vision_server.url, beside(door, BOMB)), 413, "19000x19000 pixels: expected at most 50000000")


def test_the_pixels_of_a_request_are_added_up(
    vision_server: Running, door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nestling.server.core.pictures.MOST_PIXELS", 56 * 84 - 1)
    monkeypatch.setattr("nestling.server.core.pictures.decode", None)  # before any is decoded
    door.refused(door.ask(vision_server.url, [PICTURE]), 413, "4704 pixels up to here; a request may have 4703")


def test_a_larger_body_is_for_images_and_not_for_texts(narrow: Running, door: Door) -> None:
    large = Image(URI + coded(png(noise(90, 90))))
    assert LIMIT // 10 < len(large.text) < LIMIT
    assert len(door.vectors(door.ask(narrow.url, [large]))) == 1
    larger = door.ask(narrow.url, [Image(URI + "A" * LIMIT)])  # not read, so it may be answered in another dialect
    assert (larger.status_code, f"more than {LIMIT} bytes" in larger.text) == (413, True)
    if door.mixed:
        door.refused(door.ask(narrow.url, ["a" * (LIMIT // 10 + 1)]), 413, f"{LIMIT // 10 + 1} characters of text")


def test_too_many_images_are_refused(narrow: Running, door: Door) -> None:
    if not door.single:
        most = 96 if door.body([PICTURE]).get("inputs") and "/v2" in door.path else 3
        door.refused(door.ask(narrow.url, [Image("x")] * (most + 1)), 413, str(most + 1))


def test_urls_are_fetched_from_listed_hosts_alone(
    vision_path: Path, door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    loopback = ipaddress.ip_address("127.0.0.1")
    with serving() as (port, asked):
        monkeypatch.setattr(
            "nestling.server.core.pictures.Downloads",
            lambda hosts: Downloads(hosts, resolve=lambda *_: [loopback], allows=lambda one: one == loopback),
        )
        allowed = (f"good.example:{port}",)
        load = lambda _reference: Embedder.load(vision_path, threads=1)  # noqa: E731
        with running(load, allow_image_urls=allowed) as server:
            if door.uris:
                return
            assert len(door.vectors(door.ask(server.url, [Image(f"http://good.example:{port}/picture")]))) == 1
            before = len(asked)
            other = Image(f"http://other.example:{port}/picture")
            door.refused(door.ask(server.url, [other]), 400, "its host is not allowed")
            assert len(asked) == before


def test_a_model_without_a_tower_says_which_file_is_missing(door: Door) -> None:
    with running() as server:
        door.refused(door.ask(server.url, [PICTURE]), 400, "no vision tower")


LONG = "a" * (LIMIT // 10 + 1)
BESIDE = {
    "voyage": ("/v1/embeddings", {"input": [LONG], "truncation": True}),
    "voyage, documents": ("/v1/rerank", {"query": "a", "documents": [LONG], "top_k": 1}),
    "cohere, documents": ("/v1/rerank", {"query": "a", "documents": [LONG], "max_tokens_per_doc": 9}),
    "cohere, short": ("/embed", {"texts": [LONG]}),
    "tei": ("/embed", {"inputs": LONG}),
    "tei, documents": ("/rerank", {"query": "a", "texts": [LONG]}),
    "jina, documents": ("/v1/rerank", {"query": "a", "documents": [LONG]}),
    "jina, query": ("/v1/rerank", {"query": LONG, "documents": ["a"]}),
    "openai, messages": ("/v1/embeddings", {"messages": [{"content": LONG}]}),
}


@pytest.mark.parametrize("name", BESIDE)
def test_texts_have_the_usual_limit_on_paths_that_take_images(narrow: Running, name: str) -> None:
    path, body = BESIDE[name]
    answer = httpx.post(narrow.url + path, json=body, timeout=60)
    assert answer.status_code in (400, 413), answer.text
    assert str(LIMIT // 10) in answer.text, "the limit is named"


def test_voyages_and_coheres_usage_tell_images_from_texts(vision_server: Running) -> None:
    inputs: list[str | Image] = ["a text", PICTURE]
    usage = DOORS["voyage, base64"].ask(vision_server.url, inputs).json()["usage"]
    units = DOORS["cohere 2, inputs"].ask(vision_server.url, inputs).json()["meta"]["billed_units"]
    assert usage["image_pixels"] == 56 * 84
    assert usage["total_tokens"] - usage["text_tokens"] == units["image_tokens"]
    assert (units["images"], units["input_tokens"] - units["image_tokens"] > 0) == (1, True)


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/v2/embed", {"images": [PICTURE.text], "texts": ["a"]}, "images: not together with texts"),
        ("/v2/embed", {"inputs": [{"content": [{"type": "text", "text": "a"}]}], "texts": []}, "not together"),
        ("/v1/embed", {"images": []}, "images: expected at least one"),
        ("/v1/embed", {"images": PICTURE.text}, "images: "),
        ("/v1/embed", {"texts": ["a"], "input_type": "image"}, "input_type=image: expected images"),
        ("/v2/embed", {"inputs": [{"content": []}]}, "inputs[0].content: expected a list of at least one object"),
        ("/v2/embed", {"inputs": [{"content": [{"type": "video"}]}]}, "inputs[0].content: expected parts of type"),
        (
            "/v2/embed",
            {"inputs": [{"content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": "b"}]}]},
            "inputs[0].content: expected one text or one image for a vector, found 1 and 1",
        ),
        ("/v1/multimodalembeddings", {"inputs": []}, "inputs: expected at least one"),
        ("/v1/multimodalembeddings", {"inputs": ["a"]}, "inputs.0"),
        ("/v1/multimodalembeddings", {"inputs": [{"content": ["a"]}]}, "inputs[0].content: expected a list"),
        (
            "/v1/multimodalembeddings",
            {"inputs": [{"content": [{"type": "text", "text": "a"}]}], "output_encoding": "int8"},
            "output_encoding: expected base64 or null",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_honoured_is_named(vision_server: Running, path: str, body: dict[str, Any], said: str) -> None:
    answer = httpx.post(vision_server.url + path, json=body, timeout=60)
    assert answer.status_code == 400, answer.text
    assert said in (answer.json().get("message") or answer.json()["detail"])


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"input": "a", "modality": "audio"}, "modality: "),
        ({"input": [1, 2], "modality": "image"}, "input 0: expected a data URI, base64 or a URL, not token ids"),
        ({"input": [{"text": "a"}], "modality": "image"}, "input 0: "),
        ({"messages": [{"content": "a"}], "modality": "image"}, "messages: not together with modality"),
        ({"modality": "image"}, "input: expected"),
    ],
)
def test_a_modality_that_cannot_be_honoured_is_named(vision_server: Running, body: dict[str, Any], said: str) -> None:
    answer = httpx.post(vision_server.url + "/embeddings", json=body, timeout=60)
    assert (answer.status_code, said in answer.json()["error"]["message"]) == (400, True), answer.text


def test_v1_of_cohere_without_types_is_a_list_and_voyage_packs_vectors(vision_server: Running) -> None:
    answer = httpx.post(vision_server.url + "/v1/embed", json={"images": [PICTURE.text]}, timeout=60).json()
    assert (answer["texts"], len(answer["embeddings"][0])) == ([], 64)
    body = {**DOORS["voyage, base64"].body([PICTURE]), "output_encoding": "base64", "output_dimension": 16}
    [packed] = httpx.post(vision_server.url + "/v1/multimodalembeddings", json=body, timeout=60).json()["data"]
    assert len(base64.b64decode(packed["embedding"])) == 16 * 4


def test_models_say_whether_they_take_images(vision_server: Running) -> None:
    [seeing, *_] = httpx.get(vision_server.url + "/v1/models", timeout=60).json()["data"]
    assert seeing["input_modalities"] == ["text", "image"]
    with running() as server:
        [blind, *_] = httpx.get(server.url + "/v1/models", timeout=60).json()["data"]
    assert blind["input_modalities"] == ["text"]
    assert "no vision tower" in blind["images_refused"]
