"""The opening handshake, request by request: RFC 6455, section 4, and RFC 7692, section 7.1."""

import re

import pytest

from chatserver.server.handshake import Handshake, InvalidRequest, response

#: The request of section 1.2, and the answer that section 1.3 works out.
REQUEST = {
    "Host": "server.example.com",
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version": "13",
}
ANSWER = (
    b"HTTP/1.1 101 Switching Protocols\r\n"
    b"Upgrade: websocket\r\n"
    b"Connection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"
)
NO_TAKEOVER = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"


def head(line: str = "GET /chat HTTP/1.1", more: str = "", **changes: str | None) -> bytes:
    """A request with some of its headers changed, or left out where they are None."""
    named = {name.replace("_", "-"): value for name, value in changes.items()}
    fields = {**REQUEST, **named}
    headers = "".join(f"{name}: {value}\r\n" for name, value in fields.items() if value is not None)
    return f"{line}\r\n{headers}{more}\r\n".encode("latin-1")


def handshake(request: bytes = b"", *, compression: bool = False) -> Handshake:
    return Handshake.parse(request or head(), compression=compression)


def refusal_of(request: bytes, *, compression: bool = False) -> bytes:
    """How a request is refused, which may be no request at all."""
    with pytest.raises(InvalidRequest) as raised:
        handshake(request, compression=compression)
    return raised.value.answer


def status(answer: bytes) -> int:
    line, _, _ = answer.partition(b"\r\n")
    version, code, _ = line.split(b" ", 2)
    assert version == b"HTTP/1.1"
    return int(code)


def field(answer: bytes, name: str) -> str | None:
    """A header's value; the answer has it once at most."""
    found: list[bytes] = re.findall(rb"(?im)^%s: (.*)\r$" % name.encode(), answer)
    assert len(found) <= 1
    return found[0].decode() if found else None


# What opens a connection


def test_1_3_the_example() -> None:
    assert handshake().accept(None, []) == ANSWER + b"\r\n"


@pytest.mark.parametrize(
    "request_head",
    [
        head(Upgrade="WebSocket"),
        head(Connection="keep-alive, Upgrade"),
        head(Connection="upgrade"),
        head(Connection="keep-alive", more="Connection: Upgrade\r\n"),
        head(more="X-Anything: \xe9\r\n"),
        head(Origin="https://example.com"),
        head(more="Cookie: a=1\r\nCookie: b=2\r\n"),
        head(Content_Length="0"),
    ],
    ids=[
        "4.2.1 Upgrade in any case",
        "4.2.1 Connection with other tokens",
        "4.2.1 Connection in any case",
        "4.2.1 Connection twice",
        "4.2.1 a header that nobody knows",
        "4.2.1 an origin",
        "4.2.1 cookies",
        "4.2.1 no body, and says so",
    ],
)
def test_4_2_1_what_opens_a_connection(request_head: bytes) -> None:
    assert handshake(request_head).accept(None, []) == ANSWER + b"\r\n"


@pytest.mark.parametrize(
    ("key", "accept"),
    [
        ("x3JJHMbDL1EzLkh9GBhXDw==", "HSmrc0sMlYUkAGmm5OPpG2HaGWk="),
        ("AAAAAAAAAAAAAAAAAAAAAA==", "ICX+Yqv66kxgM0FcWaLWlFLwTAI="),
    ],
)
def test_4_2_2_the_key_is_confirmed(key: str, accept: str) -> None:
    answer = handshake(head(Sec_WebSocket_Key=key)).accept(None, [])
    assert field(answer, "Sec-WebSocket-Accept") == accept


# What doesn't

REFUSED = {
    "4.2.1 POST": (head("POST /chat HTTP/1.1"), 405),
    "4.2.1 HEAD": (head("HEAD /chat HTTP/1.1"), 405),
    "4.2.1 HTTP/1.0": (head("GET /chat HTTP/1.0"), 505),
    "4.2.1 no HTTP": (head("GET /chat"), 400),
    "4.2.1 another protocol": (head("GET /chat HTTP/2.0"), 400),
    "4.2.1 a target that isn't ASCII": (head("GET /caf\xe9 HTTP/1.1"), 400),
    "3 a target with a fragment": (head("GET /chat#top HTTP/1.1"), 400),
    "4.2.1 a target that is no resource": (head("GET * HTTP/1.1"), 400),
    "4.2.1 a target of another protocol": (head("GET ftp://server.example.com/ HTTP/1.1"), 400),
    "4.2.1 no Host": (head(Host=None), 400),
    "4.2.1 two hosts": (head(more="Host: other\r\n"), 400),
    "4.2.1 no Upgrade": (head(Upgrade=None), 426),
    "4.2.1 another Upgrade": (head(Upgrade="h2c"), 426),
    "4.2.1 no Connection": (head(Connection=None), 426),
    "4.2.1 another Connection": (head(Connection="keep-alive"), 426),
    "4.2.1 no key": (head(Sec_WebSocket_Key=None), 400),
    "4.2.1 an empty key": (head(Sec_WebSocket_Key=""), 400),
    "4.2.1 a key of 15 bytes": (head(Sec_WebSocket_Key="AAAAAAAAAAAAAAAAAAAA"), 400),
    "4.2.1 a key of 17 bytes": (head(Sec_WebSocket_Key="AAAAAAAAAAAAAAAAAAAAAAA="), 400),
    "4.2.1 a key that isn't base64": (head(Sec_WebSocket_Key="dGhlIHNhbXBsZSBub25j!!=="), 400),
    "11.3.1 two keys": (head(more="Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"), 400),
    "4.2.1 no version": (head(Sec_WebSocket_Version=None), 400),
    "11.3.5 two versions": (head(more="Sec-WebSocket-Version: 13\r\n"), 400),
    "4.4 version 8": (head(Sec_WebSocket_Version="8"), 426),
    "4.4 version 14": (head(Sec_WebSocket_Version="14"), 426),
    "4.4 versions in a list": (head(Sec_WebSocket_Version="13, 8"), 426),
    "4.4 version 8, and nothing else as in 13": (
        head(Sec_WebSocket_Version="8", Sec_WebSocket_Key=None),
        426,
    ),
    "4.2.1 a body": (head(Content_Length="5"), 400),
    "4.2.1 chunks": (head(Transfer_Encoding="chunked"), 400),
    "4.2.1 a header without a colon": (head(more="nothing\r\n"), 400),
    "4.2.1 a space before the colon": (head(more="X : y\r\n"), 400),
    "4.2.1 a header with a NUL": (head(more="X: a\0b\r\n"), 400),
    "4.2.1 a header in two lines": (head(more="X: a\r\n b\r\n"), 400),
    "4.2.1 subprotocols that are no tokens": (head(Sec_WebSocket_Protocol='"chat"'), 400),
    "4.2.1 bytes of another protocol": (b"\x16\x03\x01\x00\xee\x01\x00\r\n\r\n", 400),
    "4.2.1 too many headers": (head(more="X: y\r\n" * 200), 431),
}


@pytest.mark.parametrize(("request_head", "code"), REFUSED.values(), ids=REFUSED.keys())
def test_4_2_2_what_is_no_handshake_is_answered_by_http(request_head: bytes, code: int) -> None:
    refusal = refusal_of(request_head, compression=True)
    assert status(refusal) == code
    answer, _, body = refusal.partition(b"\r\n\r\n")
    assert field(answer + b"\r\n", "Connection") == "close"
    assert field(answer + b"\r\n", "Content-Length") == str(len(body))
    assert field(answer + b"\r\n", "Sec-WebSocket-Accept") is None


@pytest.mark.parametrize("version", ["0", "8", "12", "14", "255", "13, 8", "013", "thirteen"])
def test_4_4_another_version_is_told_which_one_is_known(version: str) -> None:
    refusal = refusal_of(head(Sec_WebSocket_Version=version))
    assert status(refusal) == 426
    assert field(refusal, "Sec-WebSocket-Version") == "13"
    # RFC 9110, section 15.5.22: a 426 says to what.
    assert field(refusal, "Upgrade") == "websocket"


def test_a_method_that_is_not_allowed_is_told_which_one_is() -> None:
    assert field(refusal_of(head("POST / HTTP/1.1")), "Allow") == "GET"


# The scope


@pytest.mark.parametrize(
    ("target", "path", "raw_path", "query"),
    [
        ("/", "/", b"/", b""),
        ("/a/b?c=d?e", "/a/b", b"/a/b", b"c=d?e"),
        ("/caf%C3%A9%2Fx?q=%20", "/caf\u00e9/x", b"/caf%C3%A9%2Fx", b"q=%20"),
        ("//a//b", "//a//b", b"//a//b", b""),
        ("/a?next=http://b/c", "/a", b"/a", b"next=http://b/c"),
        ("http://server.example.com/chat?x=y", "/chat", b"/chat", b"x=y"),
        ("HTTPS://server.example.com:8443/chat", "/chat", b"/chat", b""),
        ("http://server.example.com", "/", b"/", b""),
        ("http://server.example.com?x", "/", b"/", b"x"),
        ("http://[::1/chat", "/chat", b"/chat", b""),
        ("/?", "/", b"/", b""),
    ],
)
def test_4_2_1_the_resource(target: str, path: str, raw_path: bytes, query: bytes) -> None:
    opening = handshake(head(f"GET {target} HTTP/1.1"))
    assert opening.target == target
    scope = opening.scope()
    assert (scope["path"], scope["raw_path"], scope["query_string"]) == (path, raw_path, query)


def test_headers_reach_the_scope_byte_by_byte() -> None:
    scope = handshake(head(more="X-Odd:  caf\xe9 \r\nx-odd: 2\r\n")).scope()
    assert scope["headers"][0] == (b"host", b"server.example.com")
    assert scope["headers"][-2:] == [(b"x-odd", b"caf\xe9"), (b"x-odd", b"2")]


# Subprotocols


@pytest.mark.parametrize(
    ("fields", "offered"),
    [
        ("", []),
        ("Sec-WebSocket-Protocol: chat, superchat\r\n", ["chat", "superchat"]),
        ("Sec-WebSocket-Protocol: chat\r\n", ["chat"]),
        ("Sec-WebSocket-Protocol: a\r\nSec-WebSocket-Protocol: b,c\r\n", ["a", "b", "c"]),
        ("Sec-WebSocket-Protocol: a,,b ,\r\n", ["a", "b"]),
    ],
)
def test_11_3_4_the_subprotocols_offered(fields: str, offered: list[str]) -> None:
    assert handshake(head(more=fields)).scope()["subprotocols"] == offered


def test_4_2_2_one_of_the_subprotocols_is_agreed_on() -> None:
    request_head = head(Sec_WebSocket_Protocol="chat, superchat")
    answer = handshake(request_head).accept("superchat", [])
    assert answer == ANSWER + b"Sec-WebSocket-Protocol: superchat\r\n\r\n"
    # Or none of them.
    assert handshake(request_head).accept(None, []) == ANSWER + b"\r\n"


@pytest.mark.parametrize("offered", [None, "chat", "chat, superchat"])
def test_4_2_2_no_subprotocol_is_agreed_on_that_was_not_offered(offered: str | None) -> None:
    opening = handshake(head(Sec_WebSocket_Protocol=offered))
    with pytest.raises(ValueError, match=r"offered, \[.*\], but got 'Chat'"):
        opening.accept("Chat", [])


# Headers of the application's


def test_headers_are_added_to_the_answer() -> None:
    headers = [(b"date", b"now"), (b"Set-Cookie", b"a=1"), (b"Set-Cookie", b"b=caf\xe9")]
    assert handshake().accept(None, headers) == (
        ANSWER + b"date: now\r\nSet-Cookie: a=1\r\nSet-Cookie: b=caf\xe9\r\n\r\n"
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"x", b"a\r\nSet-Cookie: b=1"),
        (b"x", b"a\nb"),
        (b"x", b"a\rb"),
        (b"x", b"a\0b"),
        (b"x", b"\x7f"),
        (b"x\r\nSet-Cookie", b"b=1"),
        (b"x: y\r\nz", b""),
        (b"x:", b"y"),
        (b"x y", b"z"),
        (b"", b"y"),
        (b"caf\xe9", b"y"),
    ],
)
def test_no_header_can_bring_another_one(name: bytes, value: bytes) -> None:
    with pytest.raises(ValueError, match="Expected an HTTP header"):
        handshake().accept(None, [(name, value)])
    with pytest.raises(ValueError, match="Expected an HTTP header"):
        response(403, [(name, value)], b"")


def test_a_response_keeps_its_own_headers() -> None:
    answer = response(403, [(b"content-type", b"application/json"), (b"Date", b"now")], b"{}")
    assert answer == (
        b"HTTP/1.1 403 Forbidden\r\ncontent-type: application/json\r\nDate: now\r\n"
        b"Connection: close\r\nContent-Length: 2\r\n\r\n{}"
    )
    assert response(499, [], b"").startswith(b"HTTP/1.1 499 \r\n")


# Compression: what is offered, what is agreed on (None: nothing), and the window of ours

AGREED = {
    "7.1 nothing asked for": ("permessage-deflate", NO_TAKEOVER, 15),
    "7.1.1.1 server_no_context_takeover": (
        "permessage-deflate; server_no_context_takeover",
        NO_TAKEOVER,
        15,
    ),
    "7.1.1.2 client_no_context_takeover": (
        "permessage-deflate; client_no_context_takeover",
        NO_TAKEOVER,
        15,
    ),
    "7.1.2.2 client_max_window_bits without a value": (
        "permessage-deflate; client_max_window_bits",
        NO_TAKEOVER,
        15,
    ),
    "7.1.2 all of them": (
        "permessage-deflate; client_max_window_bits=11; server_max_window_bits=10; "
        "server_no_context_takeover; client_no_context_takeover",
        NO_TAKEOVER + "; server_max_window_bits=10; client_max_window_bits=11",
        10,
    ),
    "6455, 9.1 a value in quotes": (
        'permessage-deflate; server_max_window_bits="10"',
        NO_TAKEOVER + "; server_max_window_bits=10",
        10,
    ),
    "6455, 9.1 spaces wherever they may be": (
        "  permessage-deflate ;server_max_window_bits = 9 ",
        NO_TAKEOVER + "; server_max_window_bits=9",
        9,
    ),
    "9.1 other extensions in front": ("bbf-usp, x; y=z, permessage-deflate", NO_TAKEOVER, 15),
    "5 the first of several": (
        "permessage-deflate; server_max_window_bits=12, permessage-deflate",
        NO_TAKEOVER + "; server_max_window_bits=12",
        12,
    ),
    "5 the second, when the first won't do": (
        "permessage-deflate; server_max_window_bits=8, permessage-deflate",
        NO_TAKEOVER,
        15,
    ),
    "5 the second, when nobody knows the first": (
        "permessage-deflate; unknown, permessage-deflate; server_max_window_bits=14",
        NO_TAKEOVER + "; server_max_window_bits=14",
        14,
    ),
    "5 in headers of their own": (
        "permessage-deflate; unknown\r\nSec-WebSocket-Extensions: permessage-deflate",
        NO_TAKEOVER,
        15,
    ),
    # zlib has no window of 8 bits, so an offer that asks for one is declined.
    "7.1.2.1 a window of 8 bits for us": ("permessage-deflate; server_max_window_bits=8", None, 0),
    "7.1.2.1 without a value": ("permessage-deflate; server_max_window_bits", None, 0),
    "7.1.2.1 7 bits": ("permessage-deflate; server_max_window_bits=7", None, 0),
    "7.1.2.1 16 bits": ("permessage-deflate; server_max_window_bits=16", None, 0),
    "7.1.2.1 a zero in front": ("permessage-deflate; server_max_window_bits=09", None, 0),
    "7.1.2.1 a sign": ('permessage-deflate; server_max_window_bits="+9"', None, 0),
    "7.1.2.1 no number": ("permessage-deflate; server_max_window_bits=many", None, 0),
    "7.1.2.2 7 bits": ("permessage-deflate; client_max_window_bits=7", None, 0),
    "7.1.2.2 16 bits": ("permessage-deflate; client_max_window_bits=16", None, 0),
    "7.1.2.2 a zero in front": ("permessage-deflate; client_max_window_bits=08", None, 0),
    "7.1.1.1 with a value": ("permessage-deflate; server_no_context_takeover=1", None, 0),
    "7.1.1.2 with a value": ("permessage-deflate; client_no_context_takeover=true", None, 0),
    "7.1 an unknown parameter": ("permessage-deflate; unknown", None, 0),
    "7.1 an unknown parameter with a value": ("permessage-deflate; mem_level=9", None, 0),
    "7.1 a parameter in other letters": (
        "permessage-deflate; Server_No_Context_Takeover",
        None,
        0,
    ),
    "7.1 server_no_context_takeover twice": (
        "permessage-deflate; server_no_context_takeover; server_no_context_takeover",
        None,
        0,
    ),
    "7.1 client_no_context_takeover twice": (
        "permessage-deflate; client_no_context_takeover; client_no_context_takeover",
        None,
        0,
    ),
    "7.1 server_max_window_bits twice": (
        "permessage-deflate; server_max_window_bits=9; server_max_window_bits=9",
        None,
        0,
    ),
    "7.1 client_max_window_bits twice": (
        "permessage-deflate; client_max_window_bits; client_max_window_bits=9",
        None,
        0,
    ),
    "9.1 another extension": ("x-webkit-deflate-frame", None, 0),
}


@pytest.mark.parametrize(("offer", "agreed", "window_bits"), AGREED.values(), ids=AGREED.keys())
def test_compression_is_agreed_on(offer: str, agreed: str | None, window_bits: int) -> None:
    request_head = head(Sec_WebSocket_Extensions=offer)
    opening = handshake(request_head, compression=True)
    assert field(opening.accept(None, []), "Sec-WebSocket-Extensions") == agreed
    assert opening.window_bits == window_bits
    without = handshake(request_head, compression=False)
    assert without.accept(None, []) == ANSWER + b"\r\n"
    assert without.window_bits == 0


@pytest.mark.parametrize("bits", range(9, 16))
def test_7_1_2_1_our_window_is_as_large_as_the_client_can_take(bits: int) -> None:
    offer = f"permessage-deflate; server_max_window_bits={bits}"
    opening = handshake(head(Sec_WebSocket_Extensions=offer), compression=True)
    agreed = field(opening.accept(None, []), "Sec-WebSocket-Extensions")
    assert agreed == f"{NO_TAKEOVER}; server_max_window_bits={bits}"
    assert opening.window_bits == bits


@pytest.mark.parametrize("bits", range(8, 16))
def test_7_1_2_2_the_client_may_have_whatever_window_it_has(bits: int) -> None:
    offer = f"permessage-deflate; client_max_window_bits={bits}"
    opening = handshake(head(Sec_WebSocket_Extensions=offer), compression=True)
    agreed = field(opening.accept(None, []), "Sec-WebSocket-Extensions")
    assert agreed == f"{NO_TAKEOVER}; client_max_window_bits={bits}"
    assert opening.window_bits == 15


@pytest.mark.parametrize(
    "offer",
    ["", "permessage-deflate;", "permessage-deflate; =", "x;;", 'x; y="', "permessage deflate"],
)
def test_9_1_what_is_no_list_of_extensions_is_refused(offer: str) -> None:
    request_head = head(Sec_WebSocket_Extensions=offer)
    assert status(refusal_of(request_head, compression=True)) == 400


def test_without_an_offer_nothing_is_agreed_on() -> None:
    opening = handshake(compression=True)
    assert opening.accept(None, []) == ANSWER + b"\r\n"
    assert opening.window_bits == 0
