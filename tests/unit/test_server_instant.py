"""The benchmark of the server's own cost: what it sends, and that it knows where an answer ends."""

import json
import socket

import pytest
from benchmarks.server_instant import STARTER, TOKENS, Connection, request, texts, words

from nestling.formats.gguf import GGUFFile
from nestling.inputs.tokenizer import Tokenizer
from nestling.models.local import resolve

HEAD = b"HTTP/1.1 200 OK\r\n"
SIZED = HEAD + b"content-length: 7\r\n\r\n" + b'{"a":0}'
CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n" + b'7\r\n{"a":0}\r\n0\r\n\r\n'


def test_every_text_has_the_same_number_of_tokens() -> None:
    tokenizer = Tokenizer.from_gguf(GGUFFile.open(resolve(STARTER)))
    sent = texts(words(), 300, seed=1)
    assert {len(ids) for ids in tokenizer.encode([f"Query: {text}" for text in sent])} == {TOKENS}
    assert len(set(sent)) == len(sent)


def test_a_request_has_its_length_and_its_encoding() -> None:
    head, _, body = request(["one", "two"], "base64").partition(b"\r\n\r\n")
    assert head.endswith(b"Content-Length: %d" % len(body))
    assert json.loads(body) == {"model": STARTER, "input": ["one", "two"], "encoding_format": "base64"}


@pytest.mark.parametrize("answer", [SIZED, CHUNKED], ids=["sized", "chunked"])
@pytest.mark.parametrize("cut", [3, 6])
def test_an_answer_ends_with_its_last_byte(answer: bytes, cut: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = Connection(listener.getsockname()[1])
        server, _ = listener.accept()
        with server, one.socket:
            for _ in range(2):
                one.ask(b"request")
                server.sendall(answer[:-cut])
                assert not one.read()
                server.sendall(answer[-cut:])
                assert one.read()
