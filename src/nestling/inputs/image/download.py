"""Download of an image by URL, protected against server-side request forgery (SSRF).

Scheme, host and port must be on an allow-list, every address of the host must be public, and the connection goes to
the address that was checked, so that DNS rebinding has no effect. Redirects are checked the same way. Time and bytes
are limited during the download. No proxy, cookie or password is used. The bytes are then treated like any upload.
"""

import http.client
import ipaddress
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Final
from urllib.parse import SplitResult, urljoin, urlsplit

from nestling._util.version import __version__
from nestling.errors import ImageError, ImageSizeError
from nestling.inputs.image.source import LIMITS

ANY_HOST: Final = "*"
PORTS: Final = {"http": 80, "https": 443}
MOST_REDIRECTS = 3
MOST_URL_CHARACTERS = 2048
TIMEOUT_S = 10.0
"""For one response, from the request to its last byte; a redirect starts a new count."""
CONNECT_S = 5.0
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_EMBEDDING = tuple(map(ipaddress.IPv6Network, ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32")))
"""IPv6 networks whose addresses embed an IPv4 address: NAT64, 6to4, Teredo."""
_URL = re.compile(r"[!#-;=?-\[\]_a-z~%]+", re.IGNORECASE)
"""The characters of RFC 3986: no spaces, no backslashes, ASCII only."""
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def is_public(address: Address) -> bool:
    """True for a global address that does not embed another one."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped or any(address in network for network in _EMBEDDING):
            return False
        if address.is_site_local:
            return False
    odd = (address.is_private, address.is_multicast, address.is_reserved, address.is_link_local, address.is_loopback)
    return address.is_global and not address.is_unspecified and not any(odd)


def resolved(host: str, port: int) -> list[Address]:
    """All addresses of a host name or a literal address."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]


@dataclass(frozen=True, slots=True)
class Downloads:
    """Downloads from allowed `hosts`: `HOST` (ports 80 and 443), `HOST:PORT`, or `*` for every public host."""

    hosts: Sequence[str] = ()
    most_bytes: int = LIMITS.file_bytes
    timeout_s: float = TIMEOUT_S
    resolve: Callable[[str, int], list[Address]] = resolved
    allows: Callable[[Address], bool] = is_public

    def fetch(self, url: str) -> bytes:
        """Download a URL. One that is not allowed is an ImageError, before anything is sent."""
        for _ in range(1 + MOST_REDIRECTS):
            target = self._checked(url)
            found = self._asked(target)
            if isinstance(found, bytes):
                return found
            url = urljoin(target.geturl(), found)
        raise _refused(f"more than {MOST_REDIRECTS} redirects")

    def _checked(self, url: str) -> SplitResult:
        if len(url) > MOST_URL_CHARACTERS or not _URL.fullmatch(url):
            raise _refused(f"expected a URL of at most {MOST_URL_CHARACTERS} characters, without spaces or backslashes")
        try:
            parts = urlsplit(url)
            port, host = parts.port, (parts.hostname or "").rstrip(".")
        except ValueError:
            raise _refused("not a URL") from None
        if parts.scheme not in PORTS or "@" in parts.netloc or not host:
            raise _refused("expected https://HOST/PATH, without a user name")
        if not self._listed(host, port or PORTS[parts.scheme]):
            raise _refused("its host is not allowed for downloads")
        return parts

    def _listed(self, host: str, port: int) -> bool:
        usual = port in PORTS.values()
        return any(one.lower() in (f"{host}:{port}", *([host, ANY_HOST] if usual else [])) for one in self.hosts)

    def _asked(self, target: SplitResult) -> bytes | str:
        """The body of one response, or the URL that it redirects to."""
        connection, late = self._connected(target), threading.Event()
        stopper = threading.Timer(self.timeout_s, _shut, (connection.sock, late))
        stopper.daemon = True
        stopper.start()
        with closing(connection), suppress(OSError, http.client.HTTPException):
            path = (target.path or "/") + (f"?{target.query}" if target.query else "")
            connection.request("GET", path, headers=_HEADERS)
            found = self._read(connection.getresponse())
            stopper.cancel()
            if not late.is_set():
                return found
        stopper.cancel()
        raise _refused(f"no complete response within {self.timeout_s:.0f} s")

    def _read(self, answer: http.client.HTTPResponse) -> bytes | str:
        if answer.status in _REDIRECTS and (to := answer.getheader("location")):
            return to
        if answer.status != http.client.OK or answer.getheader("content-encoding", "identity") != "identity":
            raise _refused(f"expected status 200 without content encoding, found status {answer.status}")
        data = answer.read(self.most_bytes + 1)
        if len(data) > self.most_bytes:
            raise ImageSizeError(f"url: more than {self.most_bytes} bytes", index=0)
        if answer.length:
            raise http.client.IncompleteRead(data)
        return data

    def _connected(self, target: SplitResult) -> http.client.HTTPConnection:
        host = (target.hostname or "").rstrip(".")
        port = target.port or PORTS[target.scheme]
        plain = _first(self._addresses(host, port), port)
        connection = http.client.HTTPConnection(host, port)
        connection.sock = plain
        if target.scheme == "https":
            try:
                connection.sock = ssl.create_default_context().wrap_socket(plain, server_hostname=host)
            except OSError:
                plain.close()
                raise _refused("no TLS connection with a certificate of the host") from None
        return connection

    def _addresses(self, host: str, port: int) -> list[Address]:
        try:
            found = self.resolve(host, port)
        except (OSError, ValueError, UnicodeError):
            found = []
        if not found or not all(map(self.allows, found)):
            raise _refused("its host has no address or one that is not public")
        return found


_HEADERS = {"accept": "image/*", "accept-encoding": "identity", "user-agent": f"nestling/{__version__}"}


def _first(addresses: Iterable[Address], port: int) -> socket.socket:
    for address in addresses:
        with suppress(OSError):
            return socket.create_connection((str(address), port), timeout=CONNECT_S)
    raise _refused("its host does not answer")


def _shut(connection: socket.socket, late: threading.Event) -> None:
    late.set()
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def _refused(why: str) -> ImageError:
    return ImageError(f"url: {why}", index=0)
