"""URLs of images: who is asked, and what comes back. A server on loopback plays the hosts of the open internet.

The doors to an address that is not public: the URL itself, in every way of writing one; a name that resolves to it; a
name that resolves to a public one as well; a second resolution; a redirect; an address that stands for another.
"""

import ipaddress
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from tests.picture_files import png

from nestling.errors import ImageError, ImageSizeError
from nestling.inputs.image.download import Address, Downloads, is_public

DATA = png()
LOOPBACK = ipaddress.ip_address("127.0.0.1")


class Host(BaseHTTPRequestHandler):
    asked: list[tuple[str, str]]

    def do_GET(self) -> None:
        self.asked.append((str(self.headers["host"]), self.path))
        getattr(self, "_" + self.path[1:].partition("?")[0].partition(".")[0])()

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in ({"content_length": str(len(body))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def _picture(self) -> None:
        self._answer(200, DATA, content_type="text/plain", set_cookie="a=b")

    def _missing(self) -> None:
        self._answer(404, b"<html>no</html>")

    def _large(self) -> None:
        self._answer(200, bytes(2_000_000))

    def _endless(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(bytes(1_200_000))

    def _short(self) -> None:
        self._answer(200, DATA[:50], content_length=str(len(DATA)))

    def _packed(self) -> None:
        self._answer(200, DATA, content_encoding="gzip")

    def _slow(self) -> None:
        self.send_response(200)
        self.end_headers()
        for _ in range(40):
            if self.server.done.wait(0.1):  # type: ignore[attr-defined]
                return
            self.wfile.write(b"x")

    def _onward(self) -> None:
        self._answer(302, location=self.path.partition("?")[2])

    def _circle(self) -> None:
        self._answer(302, location="/circle")

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


@contextmanager
def serving() -> Iterator[tuple[int, list[tuple[str, str]]]]:
    handler = type("Handler", (Host,), {"asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.done = threading.Event()  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_address[1], handler.asked  # type: ignore[attr-defined]
    finally:
        server.done.set()  # type: ignore[attr-defined]
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def web() -> Iterator[tuple[int, list[tuple[str, str]]]]:
    with serving() as found:
        yield found


def _resolve(host: str, _port: int) -> list[Address]:
    names = {"good.example": ["127.0.0.1"], "half.example": ["127.0.0.1", "10.0.0.1"], "bad.example": ["10.0.0.1"]}
    if host not in names:
        raise socket.gaierror(-2, "no such name")
    return [ipaddress.ip_address(one) for one in names[host]]


def _downloads(port: int, **more: Any) -> Downloads:
    hosts = [f"{name}.example:{port}" for name in ("good", "half", "bad", "none")]
    return Downloads(hosts, **({"resolve": _resolve, "allows": lambda one: one == LOOPBACK} | more))


def test_an_image_of_a_listed_host_is_fetched(web: tuple[int, list[tuple[str, str]]]) -> None:
    port, asked = web
    assert _downloads(port).fetch(f"http://good.example:{port}/picture.png?size=1") == DATA
    assert asked[-1] == (f"good.example:{port}", "/picture.png?size=1")
    assert _downloads(port).fetch(f"HTTP://GOOD.example.:{port}/picture") == DATA


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest/meta-data", "http://localhost/a.png", "http://127.0.0.1/", "http://[::1]/",
        "http://[::ffff:127.0.0.1]/", "http://2130706433/", "http://0177.0.0.1/", "http://0x7f.1/", "http://127.1/",
        "http://other.example/", "http://good.example\\@other.example/", "http://good.example@other.example/",
        "http://good.example:PORT@other.example/", "http://user:word@good.example:PORT/", "http://good.example:22/",
        "https://good.example:PORT.other.example/", "ftp://good.example:PORT/", "file:///etc/passwd", "//good.example/",
        "gopher://good.example:PORT/", "javascript:alert(1)", "http://", "http:///a", "http://good.example:99999/",
        "http://good.example:PORT/a b", "http://good.example:PORT/\r\nX: y", "http://gööd.example:PORT/", "",
        "http://half.example:PORT/picture", "http://bad.example:PORT/picture", "http://none.example:PORT/picture",
        "http://good.example:PORT/" + "a" * 3000,
    ],
)  # fmt: skip
def test_what_is_not_allowed_is_refused_and_nothing_is_sent(url: str, web: tuple[int, list[tuple[str, str]]]) -> None:
    port, asked = web
    before = len(asked)
    with pytest.raises(ImageError, match="url: "):
        _downloads(port).fetch(url.replace("PORT", str(port)))
    assert len(asked) == before


@pytest.mark.parametrize("to", ["http://bad.example:PORT/picture", "http://localhost:PORT/picture", "file:///etc/passwd",
                                "http://127.0.0.1:PORT/picture", "//other.example/picture"])  # fmt: skip
def test_redirects_are_checked_anew(to: str, web: tuple[int, list[tuple[str, str]]]) -> None:
    port, asked = web
    with pytest.raises(ImageError, match="url: "):
        _downloads(port).fetch(f"http://good.example:{port}/onward?{to.replace('PORT', str(port))}")
    assert asked[-1][1].startswith("/onward")
    assert _downloads(port).fetch(f"http://good.example:{port}/onward?/picture") == DATA


def test_a_name_is_resolved_once_and_that_address_connected_to(web: tuple[int, list[tuple[str, str]]]) -> None:
    port, _ = web
    answers = iter([[LOOPBACK], [ipaddress.ip_address("10.0.0.1")]])
    changing = _downloads(port, resolve=lambda *_: next(answers))
    assert changing.fetch(f"http://good.example:{port}/picture") == DATA
    with pytest.raises(ImageError, match="no address or one that is not public"):
        changing.fetch(f"http://good.example:{port}/picture")


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("missing", "found status 404"),
        ("packed", "without content encoding"),
        ("circle", "more than 3 redirects"),
        ("short", "no complete response"),
    ],
)
def test_other_answers_are_errors(path: str, said: str, web: tuple[int, list[tuple[str, str]]]) -> None:
    with pytest.raises(ImageError, match=said):
        _downloads(web[0]).fetch(f"http://good.example:{web[0]}/{path}")


@pytest.mark.parametrize("path", ["large", "endless"])
def test_bytes_are_counted_while_they_arrive(path: str, web: tuple[int, list[tuple[str, str]]]) -> None:
    with pytest.raises(ImageSizeError, match="more than 1000000 bytes"):
        _downloads(web[0], most_bytes=1_000_000).fetch(f"http://good.example:{web[0]}/{path}")


def test_an_answer_that_drips_is_ended(web: tuple[int, list[tuple[str, str]]]) -> None:
    with pytest.raises(ImageError, match="no complete response within"):
        _downloads(web[0], timeout_s=0.3).fetch(f"http://good.example:{web[0]}/slow")


def test_https_wants_a_certificate_of_the_host(web: tuple[int, list[tuple[str, str]]]) -> None:
    with pytest.raises(ImageError, match="no TLS connection"):
        _downloads(web[0]).fetch(f"https://good.example:{web[0]}/picture")


def test_a_host_that_does_not_answer_is_an_error() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(ImageError, match="does not answer"):
            _downloads(port).fetch(f"http://good.example:{port}/picture")


def test_proxy_variables_are_not_read(web: tuple[int, list[tuple[str, str]]], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert _downloads(web[0]).fetch(f"http://good.example:{web[0]}/picture") == DATA


def test_without_a_list_nothing_is_fetched_and_a_star_is_every_public_host() -> None:
    with pytest.raises(ImageError, match="not allowed for downloads"):
        Downloads().fetch("https://example.com/a.png")
    with pytest.raises(ImageError, match="no address or one that is not public"):
        Downloads(["*"]).fetch("http://localhost/a.png")
    with pytest.raises(ImageError, match="not allowed for downloads"):
        Downloads(["*"]).fetch("http://example.com:8080/a.png")


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.9.9.9", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
        "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1", "::", "::1", "fe80::1",
        "fc00::1", "fec0::1", "ff02::1", "::ffff:8.8.8.8", "::ffff:10.0.0.1", "64:ff9b::a00:1", "2002:a00:1::",
        "2001:0:a00:1::", "2001:db8::1",
    ],
)  # fmt: skip
def test_addresses_that_are_not_of_the_open_internet(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["8.8.8.8", "93.184.216.34", "2606:4700::1111", "2a00:1450:4001:81b::200e"])
def test_addresses_of_the_open_internet(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))
