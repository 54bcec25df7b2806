"""What goes to clients, byte by byte: RFC 6455, section 5; each name has the section it is in."""

import pytest

from chatserver.wire import PING, Frame, close_frame, encode, pong_frame


@pytest.mark.parametrize(
    ("data", "wire"),
    [
        ("Hello", "8105 48656c6c6f"),
        ("", "8100"),
        ("\u00e9", "8102 c3a9"),
        (b"", "8200"),
        (b"\x00\xff", "8202 00ff"),
    ],
    ids=["5.7 Hello", "5.6 nothing", "5.6 UTF-8", "5.6 no bytes", "5.6 bytes"],
)
def test_a_message_as_it_goes_out(data: str | bytes, wire: str) -> None:
    assert encode(data) == Frame(data).wire() == bytes.fromhex(wire)


@pytest.mark.parametrize(
    ("size", "header"),
    [
        (125, "827d"),
        (126, "827e 007e"),
        (256, "827e 0100"),
        (65535, "827e ffff"),
        (65536, "827f 0000000000010000"),
    ],
)
def test_5_2_a_length_goes_out_in_as_few_bytes_as_will_do(size: int, header: str) -> None:
    assert encode(bytes(size)) == bytes.fromhex(header) + bytes(size)


def test_a_frame_is_encoded_once_for_all() -> None:
    text = Frame("\u20ac" * 200)
    assert text.size == 600
    assert text.message == {"type": "websocket.send", "text": "\u20ac" * 200}
    assert text.wire() is text.wire()
    assert text.wire(15) is text.wire(15)
    assert len({text.wire(0), text.wire(15)}) == 2
    data = Frame(b"ab")
    assert data.size == 2
    assert data.message == {"type": "websocket.send", "bytes": b"ab"}


def test_5_6_what_utf_8_cannot_carry_is_no_message() -> None:
    with pytest.raises(UnicodeEncodeError):
        Frame("\ud800")
    with pytest.raises(UnicodeEncodeError):
        encode("\ud800")


@pytest.mark.parametrize(
    ("code", "reason", "wire"),
    [
        (1000, "", "8802 03e8"),
        (1001, "bye", "8805 03e9 627965"),
        (4999, "\u20ac", "8805 1387 e282ac"),
        (1005, "", "8800"),
        (1000, "x" * 124, "887d 03e8" + "78" * 123),
        (1000, "\u20ac" * 42, "887d 03e8" + "e282ac" * 41),
        (1000, "x" + "\u20ac" * 41, "887b 03e8 78" + "e282ac" * 40),
    ],
    ids=[
        "5.5.1 a code",
        "5.5.1 a reason",
        "5.5.1 a reason in UTF-8",
        "7.1.5 no code",
        "5.5 at most 125 bytes",
        "5.5 at most 125 bytes of UTF-8",
        "5.5.1 no character is cut",
    ],
)
def test_a_close_frame(code: int, reason: str, wire: str) -> None:
    assert close_frame(code, reason) == bytes.fromhex(wire)


def test_5_5_3_a_pong_has_the_payload_of_its_ping() -> None:
    assert pong_frame(b"") == b"\x8a\x00"
    assert pong_frame(b"Hello") == bytes.fromhex("8a05 48656c6c6f")
    assert pong_frame(b"\xfe" * 125) == b"\x8a\x7d" + b"\xfe" * 125
    assert PING == b"\x89\x00"
