"""The opening handshake (RFC 6455, section 4), by the protocol of `websockets`.

It checks the request, negotiates compression and builds the answer; nothing of it is left when
the connection is open.
"""

import email.utils
import logging
import re
import threading
from collections.abc import Sequence
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import unquote

from starlette.types import Message as Event
from starlette.types import Scope
from websockets.datastructures import Headers
from websockets.extensions.permessage_deflate import (
    PerMessageDeflate,
    ServerPerMessageDeflateFactory,
)
from websockets.http11 import Request, Response
from websockets.server import ServerProtocol

__all__ = ["Answer", "Handshake", "InvalidRequest", "response"]

# RFC 7692, section 7.1.1: each message by itself, so that one compressor can serve all clients.
DEFLATE = ServerPerMessageDeflateFactory(
    server_no_context_takeover=True, client_no_context_takeover=True
)
RawHeaders = Sequence[tuple[bytes, bytes]]
# Section 4.2.1: path and query, maybe as part of an absolute URI, without a fragment (section 3).
TARGET = re.compile(r"(?:https?://[^/?#]+|(?=/))(/[^?#]*)?(?:\?([^#]*))?", re.IGNORECASE)
# RFC 9110, sections 5.1 and 5.5: nothing in a header may begin another one.
NAME = re.compile(rb"[-!#$%&'*+.^_`|~0-9A-Za-z]+")
VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")


class InvalidRequest(Exception):
    """What came is no HTTP request; `answer` says so."""

    def __init__(self, answer: bytes) -> None:
        super().__init__(answer)
        self.answer = answer


class Answer(NamedTuple):
    """A response as it goes over the wire; only 101 opens the connection."""

    status: int
    wire: bytes


class Handshake:
    """A client's request, and the ways to answer it.

    Args:
        request: The request, parsed.
        headers: Its headers as ASGI has them, with names in small letters.
        compression: Whether to agree on permessage-deflate.

    Attributes:
        refusal: The answer to a request that is no valid handshake.
        window_bits: The client's window for compressed messages, 9 to 15; 0 without compression.
    """

    def __init__(self, request: Request, headers: RawHeaders, *, compression: bool) -> None:
        self._request = request
        self._headers = headers
        self._response, self.window_bits = _negotiate(request, compression)
        self._denial: tuple[int, RawHeaders, list[bytes]] | None = None
        self.refusal = self._refusal(request.headers)

    @classmethod
    def parse(cls, head: bytes, *, compression: bool) -> "Handshake":
        """Make it of a request's bytes, up to the empty line.

        Raises:
            InvalidRequest: They are none.
        """
        protocol = _server_protocol(compression)
        protocol.receive_data(head)
        request = next(iter(protocol.events_received()), None)
        if not isinstance(request, Request):
            answer = b"".join(protocol.data_to_send())
            raise InvalidRequest(answer or response(400, [], b"This is no valid HTTP request.\n"))
        headers = [
            (name.lower().encode("ascii"), value.encode("latin-1", "surrogateescape"))
            for name, value in request.headers.raw_items()
        ]
        return cls(request, headers, compression=compression)

    @classmethod
    def of(cls, target: bytes, headers: RawHeaders, *, compression: bool) -> "Handshake":
        """Make it of a GET request of HTTP/1.1 that somebody else has parsed.

        Raises:
            InvalidRequest: The target is not ASCII.
        """
        if not target.isascii():
            raise InvalidRequest(response(400, [], b"This is no valid HTTP request.\n"))
        names = Headers(
            (name.decode("latin-1"), value.decode("latin-1")) for name, value in headers
        )
        return cls(Request(target.decode(), names), headers, compression=compression)

    def _refusal(self, headers: Headers) -> bytes:
        """Section 4.2.2: first what `websockets` leaves to others, then what it found itself."""
        versions = headers.get_all("Sec-WebSocket-Version")
        if len(versions) == 1 and versions != ["13"]:
            known = [(b"Upgrade", b"websocket"), (b"Sec-WebSocket-Version", b"13")]
            return response(426, known, b"This is no version that is known here; 13 is.\n")
        if len(headers.get_all("Host")) != 1:
            return response(400, [], b"Expected one Host header.\n")
        if TARGET.fullmatch(self._request.path) is None:
            return response(400, [], b"Expected a path, and maybe a query.\n")
        if "Transfer-Encoding" in headers or not {"0"}.issuperset(
            headers.get_all("Content-Length")
        ):
            return response(400, [], b"A handshake has no body.\n")
        if self._response.status_code != HTTPStatus.SWITCHING_PROTOCOLS:
            return self._response.serialize()
        return b""

    @property
    def target(self) -> str:
        """Path and query as they were asked for: for the log, which strips them of secrets."""
        return self._request.path

    def scope(self) -> Scope:
        """What the request says, as the part of an ASGI scope."""
        target = TARGET.fullmatch(self._request.path)
        assert target is not None, "it would have been refused"
        path, query = target[1] or "/", target[2] or ""
        return {
            "path": unquote(path),
            "raw_path": path.encode("ascii"),
            "query_string": query.encode("ascii"),
            "headers": self._headers,
            "subprotocols": self._subprotocols,
        }

    @property
    def _subprotocols(self) -> list[str]:
        offered = ",".join(self._request.headers.get_all("Sec-WebSocket-Protocol"))
        return [name for part in offered.split(",") if (name := part.strip())]

    def answer(self, event: Event, headers: RawHeaders) -> Answer | None:
        """What the application says to it by an ASGI event; None when that goes on.

        Args:
            event: It accepts, closes, or denies by a response of its own.
            headers: The server's, for every answer that accepts.

        Raises:
            RuntimeError: The event has no place here.
            ValueError: As `accept` and `response` do.
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
        """The answer that opens the connection.

        Raises:
            ValueError: The subprotocol wasn't offered (section 4.2.2), or a header is none.
        """
        if subprotocol and subprotocol not in self._subprotocols:
            raise ValueError(
                f"Expected one of the subprotocols that were offered, "
                f"{self._subprotocols}, but got {subprotocol!r}"
            )
        response = self._response
        del response.headers["Date"]  # the server has one among its own
        response.headers.update(_decoded(headers))
        if subprotocol:
            response.headers["Sec-WebSocket-Protocol"] = subprotocol
        return response.serialize()

    def _deny(self, event: Event) -> Answer | None:
        assert self._denial is not None, "the answer has begun"
        status, headers, body = self._denial
        body.append(event.get("body", b""))
        if event.get("more_body", False):
            return None
        return Answer(status, response(status, headers, b"".join(body)))


def _server_protocol(compression: bool) -> ServerProtocol:
    return ServerProtocol(
        extensions=[DEFLATE] if compression else None, logger=logging.getLogger("uvicorn.error")
    )


# Its answer depends on nothing but the request, so one will do for all, in turn.
_negotiators = {compression: _server_protocol(compression) for compression in (False, True)}
_turn = threading.Lock()


def _negotiate(request: Request, compression: bool) -> tuple[Response, int]:
    """The answer to a request, and the window for compressed messages that was agreed on."""
    negotiator = _negotiators[compression]
    with _turn:
        response = negotiator.accept(request)
        extensions, negotiator.extensions = negotiator.extensions, []
    for extension in extensions:
        if isinstance(extension, PerMessageDeflate):
            return response, extension.local_max_window_bits
    return response, 0


def response(status: int, headers: RawHeaders, body: bytes) -> bytes:
    """An answer that is not the opening of a connection, and says so in its body.

    Raises:
        ValueError: A header is none.
    """
    fields = Headers(_decoded(headers))
    fields.setdefault("Date", email.utils.formatdate(usegmt=True))
    fields.setdefault("Connection", "close")
    fields.setdefault("Content-Length", str(len(body)))
    fields.setdefault("Content-Type", "text/plain; charset=utf-8")
    return Response(status, _phrase(status), fields, body).serialize()


def _decoded(headers: RawHeaders) -> list[tuple[str, str]]:
    decoded = []
    for name, value in headers:
        if not (NAME.fullmatch(name) and VALUE.fullmatch(value)):
            raise ValueError(f"Expected an HTTP header, but got {name!r}: {value!r}")
        decoded.append((name.decode("latin-1"), value.decode("latin-1")))
    return decoded


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""
