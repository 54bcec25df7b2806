"""What comes by PostgreSQL's notifications, from text to values; foreign texts included."""

import base64

import pytest
from msgspec import Raw

from chatserver.brokers.engine import UNREADABLE
from chatserver.brokers.postgres.announcements import (
    Content,
    Entered,
    Gone,
    Kind,
    Parts,
    Published,
    Span,
    Told,
    client_info,
    publication,
    stored_content,
)
from chatserver.publication import ClientInfo, Publication


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_every_kind_of_event_is_read() -> None:
    text = (
        f'[["p","{b64(b"chat")}","e1",3,[["t","{b64(b"hello")}",null,null,true],'
        f'["j","{b64(b"1")}","{b64(b"{}")}","{b64(b"c")}",false]]],'
        f'["r","{b64(b"chat")}","e1",4,9],'
        f'["j","{b64(b"chat")}","{b64(b"i")}"],["l","{b64(b"chat")}","{b64(b"i")}"],'
        f'["c","{b64(b"x")}"]]'
    )
    assert list(Parts().add(text)) == [
        Published(
            b"chat",
            "e1",
            3,
            [Content("t", b"hello", None, None, True), Content("j", b"1", b"{}", b"c", False)],
        ),
        Span(b"chat", "e1", 4, 9),
        Entered(b"chat", b"i"),
        Gone(b"chat", b"i"),
        Told(b"x"),
    ]


def test_parts_are_put_together() -> None:
    parts = Parts()
    assert parts.add('a1:1:3:[["c"') == ()
    assert parts.add('a1:2:3:,"eA') == ()
    assert parts.add('a1:3:3:=="]]') == [Told(b"x")]
    assert parts.add('[["c","eA=="]]') == [Told(b"x")]


@pytest.mark.parametrize(
    "texts",
    [
        ["a1:2:2:x"],  # we began to listen in between
        ["a1:1:3:x", "a1:3:3:x"],
        ["a1:1:2:x", "b2:2:2:x"],
        ["a1:1:3:x", "a1:1:3:x", "a1:3:3:x"],
        ["a1:0:1:x"],
        ["a1:1:1:x"],
        ["a1:x:1:"],
        ["a1"],
        [""],
        ["hello"],
        ["{}"],
        ["[1]"],
        ["[["],
        ['[["p"]]'],
        ['[["x","eA=="]]'],
        ['[["c","no base64"]]'],
        ['[["c",1]]'],
        ['[["r","eA==","e",-1,2]]'],
        ['[["r","eA==","e",1,9223372036854775808]]'],
        ['[["p","eA==","e",1,[["z","eA==",null,null,true]]]]'],
        ['[["p","eA==","e",-1,[["t","eA==",null,null,true]]]]'],
        ['[["p","eA==","e",1,[["t","eA==",null,null]]]]'],
        ["[" * 100_000],
    ],
)
def test_what_is_foreign_is_refused_and_spoils_nothing(texts: list[str]) -> None:
    parts = Parts()
    *before, last = texts
    for text in before:
        assert parts.add(text) == ()
    with pytest.raises(UNREADABLE):
        parts.add(last)
    assert parts.add('a1:1:2:[["c","e') == ()
    assert parts.add('a1:2:2:A=="]]') == [Told(b"x")]


def test_parts_without_an_end_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatserver.brokers.postgres.announcements.MOST", 100)
    parts = Parts()
    with pytest.raises(ValueError, match="too long"):
        for number in range(1, 100):
            parts.add(f"a1:{number}:1000:{'x' * 10}")


def test_only_what_is_kept_has_an_offset() -> None:
    kept, brief = (Content("t", b"", None, None, keep) for keep in (True, False))
    event = Published(b"chat", "e", 7, [brief, kept, kept, brief, kept])
    assert [offset for offset, _ in event.numbered()] == [0, 7, 8, 0, 9]


def test_a_publication_is_made_of_what_is_stored() -> None:
    info = b'{"client":"c","user":"ann","info":{"a":[1]}}'
    text = f'["t","{b64("é".encode())}","{b64(info)}","{b64(b"d")}",true]'
    assert publication("chat", "e", 2, stored_content(text)) == Publication(
        "chat", "é", 2, "e", ClientInfo("c", "ann", {"a": [1]}), "d"
    )
    assert publication("chat", "e", 2, Content("b", b"\xff", None, None, True)).data == b"\xff"
    json = publication("chat", "e", 2, Content("j", b' {"a":1}', None, None, True)).data
    assert isinstance(json, Raw)
    assert bytes(json) == b' {"a":1}'


@pytest.mark.parametrize(
    ("kind", "data", "info", "skip"),
    [
        ("t", b"\xff", None, None),
        ("j", b"{", None, None),
        ("j", b'"\xff"', None, None),
        ("j", b"", None, None),
        ("t", b"", b"{}", None),
        ("t", b"", b"[]", None),
        ("t", b"", b"\xff", None),
        ("t", b"", None, b"\xff"),
        ("t", b"", b'{"client":"c","info":' + b"[" * 5000, None),
    ],
)
def test_what_is_no_publication_is_refused(
    kind: Kind, data: bytes, info: bytes | None, skip: bytes | None
) -> None:
    with pytest.raises(UNREADABLE):
        publication("chat", "e", 1, Content(kind, data, info, skip, True))


def test_a_client_is_read() -> None:
    assert client_info(b'{"client":"c","since":1.5}') == ClientInfo("c", since=1.5)
