"""The opening handshake (RFC 6455, section 4): bytes in, a scope and an answer out.

Nothing of it is kept when the connection is open.
"""

import re
from binascii import b2a_base64
from collections.abc import Mapping, Sequence
from email.utils import formatdate
from hashlib import sha1
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import unquote

from starlette.types import Message, Scope

from chatserver.server.websockets_ import negotiate

__all__ = ["NAME", "Answer", "Handshake", "InvalidRequest", "NoHandshake", "response"]

RawHeaders = Sequence[tuple[bytes, bytes]]

# RFC 9110, sections 5.1 and 5.5: nothing in a header may begin another one.
TOKEN = rb"[-!#$%&'*+.^_`|~0-9A-Za-z]++"
NAME = re.compile(TOKEN)
VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*+")
# RFC 9112, sections 3 and 5.1: a value that is not empty has spaces between its words only.
REQUEST_LINE = re.compile(rb"(%b) ([\x21-\x7e]++) HTTP/1\.([01])\r\n" % TOKEN)
WORD = rb"[\x21-\x7e\x80-\xff]++"
FIELD = rb"(%b):[\t ]*+((?:%b(?:[\t ]++%b)*+)?)[\t ]*+\r\n" % (TOKEN, WORD, WORD)
FIELDS = re.compile(rb"(?:%b)*+\r\n" % FIELD)
EACH_FIELD = re.compile(FIELD)
# Section 4.2.1: path and query, perhaps as part of an absolute URI, without a fragment (section 3).
TARGET = re.compile(r"(?:https?://[^/?#]+|(?=/))(/[^?#]*)?(?:\?([^#]*))?", re.IGNORECASE)
# Section 4.2.1: a base64-encoded value that, when decoded, is 16 bytes in length.
KEY = re.compile(rb"[A-Za-z0-9+/]{22}==")
# RFC 9110, section 5.6.1: a list may have empty elements, also one joined from several headers.
TOKENS = re.compile(rb"(?:[\t ]*+(?:%b[\t ]*+)?(?:,|\Z))*+" % TOKEN)
# Section 1.3.
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

#: The most headers in a handshake; one with more is refused.
MAX_HEADERS = 128
#: Headers that must not be repeated in a handshake (sections 4.2.1, 11.3.1 and 11.3.5).
SINGLE = frozenset({b"host", b"sec-websocket-key", b"sec-websocket-version"})

#: Headers that many clients send with the same value: it is kept once for all of them.
ALIKE = frozenset(
    {
        *(b"host", b"connection", b"upgrade", b"origin", b"user-agent", b"pragma"),
        *(b"sec-websocket-version", b"sec-websocket-extensions", b"cache-control"),
        *(b"accept-encoding", b"accept-language"),
    }
)
#: The largest such header that is kept, in bytes; and how many are kept.
MAX_ALIKE, MOST_ALIKE = 256, 256
#: Headers with a different value for each client: only the name is kept once.
OWN = {name: name for name in (b"sec-websocket-key", b"cookie", b"sec-websocket-protocol")}
_alike: dict[tuple[bytes, bytes], tuple[bytes, bytes]] = {}


class InvalidRequest(Exception):
    """A handshake that is refused; `answer` is the HTTP response that says why."""

    def __init__(self, status: int, why: str, headers: RawHeaders = ()) -> None:
        super().__init__(why)
        self.answer: bytes = response(status, headers, f"{why}\n".encode())


class NoHandshake(InvalidRequest):
    """A request that asks for no WebSocket, or isn't valid: one for an HTTP server."""


class Answer(NamedTuple):
    """A response as its bytes; only 101 opens the connection."""

    status: int
    wire: bytes


class Handshake:
    """A client's request to open a connection, and the ways to answer it.

    Args:
        target: The target of the request, usually a path.
        headers: The request's headers as ASGI has them, with names in lower case.
        fields: The same by name; the values of a repeated header are joined by commas.
        compression: Whether to agree on permessage-deflate.

    Attributes:
        target: Path and query as requested: for the log, which redacts them.
        window_bits: The client's window for compressed messages, 9 to 15; 0 without compression.

    Raises:
        InvalidRequest: Something in it is not valid.
    """

    __slots__ = (
        "_denial",
        "_extensions",
        "_headers",
        "_key",
        "_path",
        "_query",
        "_subprotocols",
        "target",
        "window_bits",
    )

    def __init__(
        self,
        target: str,
        headers: list[tuple[bytes, bytes]],
        fields: Mapping[bytes, bytes],
        *,
        compression: bool,
    ) -> None:
        found = TARGET.fullmatch(target)
        if found is None:
            raise InvalidRequest(400, "Expected a path, optionally with a query.")
        self.target: str = target
        self._path, self._query = found[1] or "/", found[2] or ""
        self._headers = headers
        self._key = _key(fields)
        self._subprotocols = _subprotocols(fields.get(b"sec-websocket-protocol", b""))
        self._extensions = ""
        self.window_bits: int = 0
        if compression and (offers := fields.get(b"sec-websocket-extensions")) is not None:
            try:
                self._extensions, self.window_bits = negotiate(offers.decode("latin-1"))
            except ValueError as error:
                raise InvalidRequest(400, f"Expected a list of extensions: {error}.") from None
        # A response that the application has begun to send instead of an accept.
        self._denial: tuple[int, RawHeaders, list[bytes]] | None = None

    @classmethod
    def parse(cls, head: bytes, *, compression: bool) -> "Handshake":
        """Parse a request's bytes, up to and including the empty line.

        Raises:
            NoHandshake: They are not a WebSocket handshake.
            InvalidRequest: They are a handshake that is not valid.
        """
        line = REQUEST_LINE.match(head)
        if line is None or not FIELDS.fullmatch(head, line.end()):
            raise NoHandshake(400, "This is not a valid HTTP request.")
        method, target, version = line.groups()
        headers = [_shared(name, value) for name, value in EACH_FIELD.findall(head, line.end())]
        fields, repeated = _by_name(headers)
        if version != b"1":
            raise NoHandshake(505, "Expected HTTP/1.1.")
        _check_upgrade(fields)
        if method != b"GET":
            raise InvalidRequest(405, "Expected the method GET.", [(b"Allow", b"GET")])
        if len(headers) > MAX_HEADERS:
            raise InvalidRequest(431, f"There are more than {MAX_HEADERS} headers.")
        for name in repeated & SINGLE:
            raise InvalidRequest(400, f"Expected one header {name.decode()}.")
        return cls(target.decode(), headers, fields, compression=compression)

    def scope(self) -> Scope:
        """The parts of an ASGI scope that the request holds."""
        path = self._path
        return {
            "path": unquote(path) if "%" in path else path,
            "raw_path": path.encode("ascii"),
            "query_string": self._query.encode("ascii"),
            "headers": self._headers,
            "subprotocols": self._subprotocols,
        }

    def answer(self, event: Message, headers: RawHeaders) -> Answer | None:
        """The response to an ASGI event of the application; None while it is incomplete.

        Args:
            event: An accept, a close, or a part of a response of its own.
            headers: The server's headers, for an accept.

        Raises:
            RuntimeError: The event is not allowed here.
            ValueError: As `accept` and `response` raise it.
        """
        kind = event["type"]
        if self._denial is not None:
            if kind == "websocket.http.response.body":
                return self._deny(event)
        elif kind == "websocket.accept":
            headers = [*headers, *event.get("headers", [])]
            return Answer(101, self.accept(event.get("subprotocol"), headers))
        elif kind == "websocket.close":
            return Answer(403, response(403, [], b""))
        elif kind == "websocket.http.response.start":
            status = event["status"]
            if not 200 <= status < 600:
                raise RuntimeError(f"Invalid HTTP status code '{status}' in response.")
            self._denial = (status, list(event.get("headers", [])), [])
            return None
        raise RuntimeError(f"Unexpected ASGI message '{kind}' before the handshake's end.")

    def accept(self, subprotocol: str | None, headers: RawHeaders) -> bytes:
        """The response that opens the connection (section 4.2.2).

        Raises:
            ValueError: The subprotocol wasn't offered, or a header is not valid.
        """
        if subprotocol and subprotocol not in self._subprotocols:
            raise ValueError(
                f"Expected one of the subprotocols that were offered, "
                f"{self._subprotocols}, but got {subprotocol!r}"
            )
        digest = sha1(self._key + GUID, usedforsecurity=False).digest()
        lines = [
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: ",
            b2a_base64(digest, newline=False),
            b"\r\n",
        ]
        if self._extensions:
            lines.append(f"Sec-WebSocket-Extensions: {self._extensions}\r\n".encode())
        lines.append(_lines(headers))
        if subprotocol:
            lines.append(f"Sec-WebSocket-Protocol: {subprotocol}\r\n".encode())
        lines.append(b"\r\n")
        return b"".join(lines)

    def _deny(self, event: Message) -> Answer | None:
        assert self._denial is not None, "the answer has begun"
        status, headers, body = self._denial
        body.append(event.get("body", b""))
        if event.get("more_body", False):
            return None
        return Answer(status, response(status, headers, b"".join(body)))


def _by_name(headers: RawHeaders) -> tuple[dict[bytes, bytes], set[bytes]]:
    """The headers' values by name, and the names of repeated headers."""
    fields, repeated = dict(headers), set[bytes]()
    if len(fields) < len(headers):
        fields = {}
        for name, value in headers:
            if name in fields:
                repeated.add(name)
                # RFC 9110, section 5.3.
                value = fields[name] + b", " + value
            fields[name] = value
    return fields, repeated


def _check_upgrade(fields: Mapping[bytes, bytes]) -> None:
    """Section 4.2.1, 3 and 4: "websocket" in Upgrade, "Upgrade" in Connection, in any case.

    Raises:
        NoHandshake: One is missing.
    """
    upgrade = fields.get(b"upgrade", b"").lower() == b"websocket"
    connection = fields.get(b"connection", b"").lower().split(b",")
    if not (upgrade and b"upgrade" in [option.strip(b"\t ") for option in connection]):
        raise NoHandshake(426, "Expected a WebSocket handshake.", [(b"Upgrade", b"websocket")])


def _key(fields: Mapping[bytes, bytes]) -> bytes:
    """The client's key, after a check of the other headers that section 4.2.1 asks for.

    Raises:
        InvalidRequest: A header is missing or not valid.
    """
    version = fields.get(b"sec-websocket-version")
    if version is None:
        raise InvalidRequest(400, "Expected a header Sec-WebSocket-Version.")
    if version != b"13":
        # Section 4.4.
        known = [(b"Upgrade", b"websocket"), (b"Sec-WebSocket-Version", b"13")]
        raise InvalidRequest(426, "Expected version 13 of the WebSocket protocol.", known)
    if b"host" not in fields:
        raise InvalidRequest(400, "Expected a Host header.")
    if b"transfer-encoding" in fields or fields.get(b"content-length", b"0") != b"0":
        raise InvalidRequest(400, "A handshake has no body.")
    key = fields.get(b"sec-websocket-key", b"")
    if KEY.fullmatch(key) is None:
        raise InvalidRequest(400, "Expected 16 bytes in base64 as Sec-WebSocket-Key.")
    return key


def _subprotocols(offered: bytes) -> list[str]:
    """The offered subprotocols (section 11.3.4).

    Raises:
        InvalidRequest: They are not tokens (section 4.1, 10).
    """
    if not offered:
        return []
    if TOKENS.fullmatch(offered) is None:
        raise InvalidRequest(400, "Expected a list of tokens as Sec-WebSocket-Protocol.")
    return [name for part in offered.decode().split(",") if (name := part.strip())]


def _shared(name: bytes, value: bytes) -> tuple[bytes, bytes]:
    """A header, its name in lower case, as objects that other clients' headers share."""
    name = name.lower()
    if name not in ALIKE or len(value) > MAX_ALIKE:
        return OWN.get(name, name), value
    header = (name, value)
    kept = _alike.get(header)
    if kept is None:
        kept = header
        if len(_alike) >= MOST_ALIKE:
            _alike.clear()
        _alike[header] = header
    return kept


def response(status: int, headers: RawHeaders, body: bytes) -> bytes:
    """A response that doesn't open the connection; its body says why.

    Raises:
        ValueError: A header is not valid.
    """
    own = {
        b"Date": formatdate(usegmt=True).encode(),
        b"Connection": b"close",
        b"Content-Length": b"%d" % len(body),
        b"Content-Type": b"text/plain; charset=utf-8",
    }
    given = {name.lower() for name, _ in headers}
    lines = _lines(headers) + _lines([each for each in own.items() if each[0].lower() not in given])
    return f"HTTP/1.1 {status} {_phrase(status)}\r\n".encode() + lines + b"\r\n" + body


def _lines(headers: RawHeaders) -> bytes:
    """Headers as bytes.

    Raises:
        ValueError: One is not valid.
    """
    for name, value in headers:
        if not (NAME.fullmatch(name) and VALUE.fullmatch(value)):
            raise ValueError(f"Expected an HTTP header, but got {name!r}: {value!r}")
    return b"".join([b"%b: %b\r\n" % header for header in headers])


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""
