"""Images over HTTP, from a real server with a tiny model: every client's form, and every bad one.

The doors for an image: `/v1/embeddings` by `input` (objects, bare data URIs), by `messages`; `/v1/rerank` by documents.
The doors to a file or a network that a client has no business with: paths and URLs in each of them.
"""

import base64
import json
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from tests.contract.serving import Running, running
from tests.fault.test_image_downloads import serving
from tests.picture_files import png, raw_png, saved
from tests.pictures import gradient, noise
from tests.visual_set import write_lines

from nestling.evaluation import data
from nestling.evaluation.encoders import encode_all, open_encoder
from nestling.inputs.image.download import Downloads
from nestling.models.embedder import Embedder
from nestling.pipeline.conversion.checkpoint import Checkpoint
from nestling.pipeline.pipeline import Pipeline, model_path
from nestling.spec import Role, Task
from nestling.vectors import paired_cosine

DATA, OTHER = png(gradient(56, 84)), saved(noise(60, 80), "JPEG")
CODE, OTHER_CODE = base64.b64encode(DATA).decode(), base64.b64encode(OTHER).decode()
URI = "data:image/png;base64," + CODE
SAME, UNDER_LOAD = 0.9999, 0.99999


def post(server: Running, where: str = "/v1/embeddings", **body: Any) -> httpx.Response:
    return httpx.post(server.url + where, json=body, timeout=60)


def rows(answer: httpx.Response) -> Any:
    assert answer.status_code == 200, answer.text
    return np.array([one["embedding"] for one in answer.json()["data"]], np.float32)


def refused(answer: httpx.Response, status: int, *parts: str) -> str:
    assert answer.status_code == status, answer.text
    message: str = answer.json()["error"]["message"]
    for part in parts:
        assert part in message
    assert "at 0x" not in message
    return message


@pytest.mark.parametrize(
    "body",
    [
        {"input": [{"image": CODE}]}, {"input": [{"image": URI}]}, {"input": {"image": URI}}, {"input": [URI]},
        {"input": URI}, {"input": [{"bytes": CODE}]}, {"input": [{"url": URI}]},
        {"input": [{"image": CODE, "text": None}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": URI}}]}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": URI},
                                                   {"type": "text", "text": "Describe the image."}]}]},
    ],
)  # fmt: skip
def test_every_clients_form_gives_the_images_vector(
    vision_server: Running, vision_model: Embedder, body: dict[str, Any]
) -> None:
    answer = post(vision_server, **body)
    assert paired_cosine(rows(answer), vision_model.encode_image([DATA])).min() >= SAME
    assert answer.json()["usage"]["prompt_tokens"] == 2 * 3 + 20


def test_texts_and_images_are_mixed_in_their_order(vision_server: Running, vision_model: Embedder) -> None:
    answer = post(vision_server, input=["a", {"image": CODE}, {"text": "b"}, {"image": OTHER_CODE}])
    expected = np.concatenate([vision_model.encode(["a", "b"]), vision_model.encode_image([DATA, OTHER])])[[0, 2, 1, 3]]
    assert paired_cosine(rows(answer), expected).min() >= SAME
    usage = answer.json()["usage"]["prompt_tokens"]
    assert usage == sum(map(len, vision_model.items(["a", DATA, "b", OTHER])))


def test_multi_vectors_dimensions_and_base64_of_images(vision_server: Running, vision_model: Embedder) -> None:
    found = post(vision_server, input=[{"image": CODE}, "a"], return_multivector=True).json()["data"]
    assert (
        paired_cosine(np.array(found[0]["embeddings"], np.float32), vision_model.encode_image_tokens([DATA])[0]).min()
        >= SAME
    )
    assert rows(post(vision_server, input=[{"image": CODE}], dimensions=16)).shape == (1, 16)
    packed = post(vision_server, input=[{"image": CODE}], encoding_format="base64").json()["data"][0]["embedding"]
    row = np.frombuffer(base64.b64decode(packed), "<f4")[None]
    assert paired_cosine(row, vision_model.encode_image([DATA])).min() >= SAME


def test_a_message_of_text_is_a_text(vision_server: Running, vision_model: Embedder) -> None:
    for content in ("hello", [{"type": "text", "text": "hello"}]):
        answer = post(vision_server, messages=[{"role": "user", "content": content}])
        assert paired_cosine(rows(answer), vision_model.encode(["hello"])).min() >= SAME


def test_images_are_ranked_beside_texts(vision_server: Running, vision_model: Embedder) -> None:
    documents = ["a text", {"image": CODE}, {"text": "another"}, URI]
    for scoring in ("maxsim", "cosine"):
        answer = post(
            vision_server, "/v1/rerank", query="asked", documents=documents, scoring=scoring, return_documents=True
        )
        assert answer.status_code == 200, answer.text
        found = {one["index"]: one["relevance_score"] for one in answer.json()["results"]}
        wanted = vision_model.rerank("asked", ["a text", DATA, "another", DATA], scoring=scoring)
        np.testing.assert_allclose([found[one.index] for one in wanted], [one.score for one in wanted], atol=1e-3)
        echoed = {one["index"]: one["document"] for one in answer.json()["results"]}
        assert echoed[0] == {"text": "a text"}
        assert echoed[1] == {"image": CODE}


BAD = [
    ({}, "input 1: expected one of the keys text, image, url, bytes, found none"),
    ({"image": ""}, "input 1: image: empty"),
    ({"image": 3}, "input 1: image: expected a string, not a number"),
    ({"image": CODE, "text": "a"}, "found image and text"),
    ({"pdf": CODE}, "found the key 'pdf'"),
    (None, "input 1: expected a string or an object with text or image, not null"),
    (7, "input 1: expected a string or an object with text or image, not a number"),
    ({"image": "not base64!"}, "input 1: not base64"),
    ({"image": CODE[:8] + " " + CODE[8:]}, "input 1: not base64"),
    ({"image": CODE[:-1]}, "input 1: not base64"),
    ({"image": "data:text/html;base64," + CODE}, "input 1: data URI of text/html"),
    ({"image": "data:image/svg+xml;base64," + CODE}, "input 1: data URI of image/svg+xml"),
    ({"image": "data:image/png," + CODE}, "input 1: data URI: expected ;base64 before the comma"),
    ({"image": base64.b64encode(b"<html>").decode()}, "input 1: cannot be read as an image: this is HTML"),
    ({"image": base64.b64encode(DATA[:70]).decode()}, "input 1: cannot be read as an image: the PNG is damaged"),
    ({"image": base64.b64encode(png(gradient(10, 3000))).decode()}, "one side is more than 200 times the other"),
    ({"image": "http://127.0.0.1/a.png"}, "input 1: image: this server fetches no URLs"),
    ({"url": "http://169.254.169.254/latest"}, "input 1: image: this server fetches no URLs"),
    ({"image": "file:///etc/passwd"}, "input 1: not base64"),
    ({"image": "/etc/passwd"}, "input 1: not base64"),
    ({"image": "../x"}, "input 1: not base64"),
    ({"image": "ftp://example.com/a.png"}, "input 1: not base64"),
    ({"image": "javascript:alert(1)"}, "input 1: not base64"),
]


@pytest.mark.parametrize(("item", "said"), BAD, ids=[json.dumps(item)[:40] for item, _ in BAD])
def test_a_bad_item_is_a_400_that_names_it(vision_server: Running, item: Any, said: str) -> None:
    refused(post(vision_server, input=[{"image": CODE}, item]), 400, said)
    if isinstance(item, dict) and item and "pdf" not in item:
        answer = post(vision_server, "/v1/rerank", query="a", documents=["a", item])
        refused(answer, 400, said.replace("input 1", "documents[1]"))


@pytest.mark.parametrize(
    "messages",
    [
        [], "a", [3], [{"role": "system", "content": "a"}], [{"content": []}], [{"content": [{"type": "video"}]}],
        [{"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
        [{"content": [{"type": "image_url", "image_url": {"url": URI}}, {"type": "text", "text": "What is this?"}]}],
        [{"content": [{"type": "image_url", "image_url": {"url": URI}}] * 2}],
    ],
    ids=lambda messages: json.dumps(messages)[:40],
)  # fmt: skip
def test_messages_that_are_not_one_input_are_refused(vision_server: Running, messages: Any) -> None:
    refused(post(vision_server, messages=messages), 400, "messages: ")
    refused(post(vision_server, messages=[{"content": "a"}], input="a"), 400, "messages: not together with input")


def test_bombs_are_413_by_their_headers(vision_server: Running) -> None:
    bomb = base64.b64encode(raw_png(19_000, 19_000, bytes(19_001) * 19_000)).decode()
    refused(
        post(vision_server, input=["a", {"image": bomb}]), 413, "input 1: 19000x19000 pixels: expected at most 50000000"
    )
    answer = post(vision_server, "/v1/rerank", query="a", documents=[{"image": bomb}])
    refused(answer, 413, "documents[0]: 19000x19000 pixels")


def test_the_pixels_of_a_request_are_added_up_before_any_is_decoded(
    vision_server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nestling.server.core.pictures.MOST_PIXELS", 2 * 56 * 84)
    monkeypatch.setattr("nestling.server.core.pictures.decode", None)
    refused(post(vision_server, input=[{"image": CODE}] * 3), 413, "input 2: 14112 pixels up to here")


def test_ten_thousand_images_are_413(vision_server: Running) -> None:
    refused(post(vision_server, input=[{"image": CODE}] * 10_000), 413, "10000 items, this server takes 2048 a request")


def test_a_body_with_images_may_be_larger_but_not_its_texts(vision_path: Path) -> None:
    large = png(noise(1200, 1200))
    assert len(large) > 2_000_000
    with running(lambda _reference: Embedder.load(vision_path, threads=1), max_image_body_bytes=7_000_000) as server:
        answer = post(server, input=[{"image": base64.b64encode(large).decode()}])
        assert rows(answer).shape == (1, 64)
        refused(post(server, input="a" * 2_100_000), 413, "2100000 characters of text")
        refused(post(server, input="a" * 7_100_000), 413, "more than 7000000 bytes")
        refused(post(server, "/tokenize", content="a" * 2_100_000), 413, "more than 2000000 bytes")


def test_a_model_without_a_tower_names_the_item_and_the_missing_file() -> None:
    with running() as server:
        refused(post(server, input=["a", {"image": CODE}]), 400, "input 1: image: no vision tower")
        assert post(server, input=["a", {"text": "b"}]).status_code == 200


def test_urls_are_fetched_from_listed_hosts_alone(vision_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ipaddress

    loopback = ipaddress.ip_address("127.0.0.1")
    with serving() as (port, asked):
        monkeypatch.setattr(
            "nestling.server.core.pictures.Downloads",
            lambda hosts: Downloads(hosts, resolve=lambda *_: [loopback], allows=lambda one: one == loopback),
        )
        with running(
            lambda _reference: Embedder.load(vision_path, threads=1), allow_image_urls=(f"good.example:{port}",)
        ) as server:
            good = f"http://good.example:{port}/picture"
            expected = rows(post(server, input=[{"image": base64.b64encode(png()).decode()}]))
            for body in (
                {"input": [{"image": good}]},
                {"input": [{"url": good}]},
                {"messages": [{"content": [{"type": "image_url", "image_url": {"url": good}}]}]},
            ):
                assert paired_cosine(rows(post(server, **body)), expected).min() >= SAME
            before = len(asked)
            other = f"http://other.example:{port}/picture"
            refused(
                post(server, input=["a", {"image": other}]), 400, "input 1: url: its host is not allowed for downloads"
            )
            assert len(asked) == before


def test_short_requests_go_on_while_an_image_is_decoded(
    vision_server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, gate = threading.Event(), threading.Event()
    monkeypatch.setattr("nestling.server.core.pictures.decode", _blocked(entered, gate))
    answers: list[httpx.Response] = []
    waiting = threading.Thread(target=lambda: answers.append(post(vision_server, input=[{"image": CODE}])))
    waiting.start()
    assert entered.wait(20)
    assert post(vision_server, input="a short text").status_code == 200
    gate.set()
    waiting.join()
    assert answers[0].status_code == 200


def test_a_client_that_leaves_while_its_image_is_decoded_holds_nothing(
    vision_server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, gate = threading.Event(), threading.Event()
    monkeypatch.setattr("nestling.server.core.pictures.decode", _blocked(entered, gate))
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(vision_server.url + "/v1/embeddings", json={"input": [{"image": OTHER_CODE}]}, timeout=1)
    assert entered.is_set()
    assert within(10, lambda: vision_server.service.in_flight == 0), "before the decoder is done"
    gate.set()
    assert post(vision_server, input=[{"image": OTHER_CODE}]).status_code == 200
    assert vision_server.service.scheduler.waiting_tokens == 0


def within(seconds: float, is_so: Callable[[], bool]) -> bool:
    """Whether it becomes so in time."""
    end = time.monotonic() + seconds
    while not is_so() and time.monotonic() < end:
        time.sleep(0.02)
    return is_so()


def _blocked(entered: threading.Event, gate: threading.Event) -> Any:
    from nestling.inputs.image import decode

    def wait(*values: Any) -> Any:
        entered.set()
        assert gate.wait(20)
        return decode(*values)

    return wait


@pytest.mark.parametrize("file_type", ["F32", "Q8_0"])
def test_the_same_image_alone_together_and_under_load_has_one_vector(
    vision_checkpoint: Path, tmp_path: Path, file_type: str
) -> None:
    """Without the cache, which would answer with the first vector; in bfloat16 where the processor has it."""
    Pipeline(Checkpoint.open(vision_checkpoint), tmp_path, "tiny", 1).build([Task.RETRIEVAL], [file_type])
    path = model_path(tmp_path, family="tiny", task=Task.RETRIEVAL, file_type=file_type)
    with running(lambda _reference: Embedder.load(path, threads=1), cache_mb=0) as server:
        alone = rows(post(server, input=[{"image": CODE}]))
        company = [["a text", {"image": CODE}, {"image": OTHER_CODE}], [{"image": CODE}, *["b" * 200] * 9]]
        found: list[Any] = []

        def ask(turn: int) -> None:
            inputs = company[turn % 2]
            found.append(rows(post(server, input=inputs))[inputs.index({"image": CODE})])

        threads = [threading.Thread(target=ask, args=(turn,)) for turn in range(12)]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
    assert len(found) == len(threads)
    assert paired_cosine(np.stack(found), np.repeat(alone, len(found), 0)).min() >= UNDER_LOAD


def test_pages_of_a_visual_benchmark_are_measured_over_http(
    vision_server: Running, vision_model: Embedder, tmp_path: Path
) -> None:
    """Images and texts, each by its role, as the local embedder has them."""
    pages = data.read_folder(write_lines(tmp_path / "pages"), name="pages").pages
    with closing(open_encoder(f"{vision_server.url}/v1#fake/retrieval")) as encoder:
        seen = encode_all(encoder, pages, role=Role.PASSAGE)
        asked = encode_all(encoder, ["how did revenue grow"], role=Role.QUERY)
    assert paired_cosine(seen, vision_model.encode_image([one.read() for one in pages])).min() >= SAME
    assert paired_cosine(asked, vision_model.encode_query(["how did revenue grow"])).min() >= SAME
