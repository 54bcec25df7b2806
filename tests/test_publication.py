"""What may be published, in which form it is kept, and what each wire format makes of it."""

from typing import Any

import msgspec
import pydantic
import pytest
from msgspec import Raw, Struct

from chatserver import Message
from chatserver.publication import (
    PLAIN,
    ClientInfo,
    Encoding,
    Frame,
    Joined,
    Payload,
    Position,
    Publication,
    continues,
    frame,
    payload,
)


class Point(Struct):
    x: int
    y: float = 0.5


class Said(Message):
    text: str


class Model(pydantic.BaseModel):
    n: float
    name: str = "é"


LONE = "\ud800"


# payload()


@pytest.mark.parametrize("data", ["", "hi", "é€😀", b"", b"\x00\xff"])
def test_text_and_bytes_are_kept_as_they_are(data: str | bytes) -> None:
    assert payload(data) is data


@pytest.mark.parametrize("data", [bytearray(b"\x00\xff"), memoryview(b"\x00\xff")])
def test_other_bytes_are_copied(data: bytearray | memoryview) -> None:
    fixed = payload(data)
    assert fixed == b"\x00\xff"
    assert type(fixed) is bytes


def test_what_the_caller_does_afterwards_changes_nothing() -> None:
    buffer, numbers = bytearray(b"abc"), [1, 2]
    fixed, encoded = payload(buffer), payload(numbers)
    buffer[0] = 0
    numbers.append(3)
    assert fixed == b"abc"
    assert json_of(encoded) == "[1,2]"


@pytest.mark.parametrize("shape", [[2, 3], [6]])
def test_a_memoryview_of_any_shape_is_all_its_bytes(shape: list[int]) -> None:
    view = memoryview(b"abcdef").cast("B", shape)
    assert payload(view) == b"abcdef"


def test_raw_json_is_kept_as_it_is() -> None:
    raw = Raw(b'{ "a" : 1 }')
    assert payload(raw) is raw


def test_raw_json_must_be_utf8() -> None:
    with pytest.raises(UnicodeDecodeError):
        payload(Raw(b'"\xff"'))


@pytest.mark.parametrize(
    ("data", "json"),
    [
        ({"a": [1, None, True]}, '{"a":[1,null,true]}'),
        ({}, "{}"),
        (None, "null"),
        (0, "0"),
        (2**100, str(2**100)),
        (float("nan"), "null"),
        ([float("inf"), -float("inf")], "[null,null]"),
        (Point(1), '{"x":1,"y":0.5}'),
        (Said(text="é"), '{"type":"said","text":"é"}'),
        (Model(n=1), '{"n":1.0,"name":"é"}'),
        (Model(n=float("nan")), '{"n":null,"name":"é"}'),
        ({"inner": Raw(b"[1]")}, '{"inner":[1]}'),
    ],
)
def test_anything_else_becomes_json(data: Any, json: str) -> None:
    fixed = payload(data)
    assert isinstance(fixed, Raw)
    assert json_of(fixed) == json


@pytest.mark.parametrize("data", [object(), {"a": object()}, {(1, 2): 3}, Point, Said, Model])
def test_what_is_not_json_is_a_type_error(data: Any) -> None:
    with pytest.raises(TypeError):
        payload(data)


@pytest.mark.parametrize("data", [LONE, f"a{LONE}b", {"a": LONE}, [LONE]])
def test_lone_surrogates_are_refused(data: Any) -> None:
    with pytest.raises(UnicodeEncodeError):
        payload(data)


def test_a_model_with_a_lone_surrogate_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="surrogates not allowed"):
        payload(Model(n=1, name=LONE))


# frame()

TEXT, BYTES, RAW = "é", b"\x00\xff", Raw('{"a":"é"}'.encode())


@pytest.mark.parametrize(
    ("data", "encoding", "expected", "size"),
    [
        (TEXT, None, {"text": "é"}, 2),
        (TEXT, "text", {"text": "é"}, 2),
        (TEXT, "bytes", {"bytes": "é".encode()}, 2),
        (TEXT, "json", {"text": '"é"'}, 4),
        (BYTES, None, {"bytes": BYTES}, 2),
        (BYTES, "text", {"bytes": BYTES}, 2),
        (BYTES, "bytes", {"bytes": BYTES}, 2),
        (BYTES, "json", {"bytes": BYTES}, 2),
        (RAW, None, {"text": '{"a":"é"}'}, 10),
        (RAW, "text", {"text": '{"a":"é"}'}, 10),
        (RAW, "bytes", {"bytes": '{"a":"é"}'.encode()}, 10),
        (RAW, "json", {"text": '{"a":"é"}'}, 10),
    ],
)
def test_every_form_in_every_encoding(
    data: Payload, encoding: Encoding, expected: dict[str, Any], size: int
) -> None:
    made = frame(data, encoding)
    assert made.message == {"type": "websocket.send", **expected}
    assert made.size == size
    published = Publication("a", data, 1, "e", ClientInfo("c"))
    encoded = PLAIN[encoding](published)
    assert encoded is not None
    assert encoded.message == made.message
    assert PLAIN[encoding](Joined("a", ClientInfo("c"))) is None


@pytest.mark.parametrize(
    ("data", "size"), [("", 0), ("a" * 9, 9), ("€", 3), ("😀", 4), (b"", 0), (b"\xff" * 7, 7)]
)
def test_the_size_is_in_bytes(data: str | bytes, size: int) -> None:
    assert Frame(data).size == size


def test_text_that_utf8_cannot_carry_makes_no_frame() -> None:
    with pytest.raises(UnicodeEncodeError):
        Frame(LONE)


def test_json_text_is_quoted_and_escaped() -> None:
    sent = frame('say "hi"\n', "json").message["text"]
    assert sent == r'"say \"hi\"\n"'
    assert msgspec.json.decode(sent) == 'say "hi"\n'


def test_an_encoder_stands_for_a_wire_format() -> None:
    assert set(PLAIN) == {None, "text", "bytes", "json"}
    assert PLAIN[None] is PLAIN["text"]
    assert len(set(PLAIN.values())) == 3


# continues()


def stream(*offsets: int, epoch: str = "e") -> list[Publication]:
    return [Publication("a", "x", offset, epoch) for offset in offsets]


@pytest.mark.parametrize(
    ("since", "offsets", "top", "expected"),
    [
        (0, (), 0, True),
        (3, (), 3, True),
        (3, (4,), 4, True),
        (3, (4, 5, 6), 6, True),
        (0, (1, 2), 2, True),
        (3, (), 4, False),  # all of it was trimmed
        (3, (5, 6), 6, False),  # the oldest was trimmed
        (3, (4, 5), 6, False),  # cut off by a limit
        (5, (), 4, False),  # more than there ever was
        (-1, (1, 2), 2, False),
    ],
)
def test_continues(since: int, offsets: tuple[int, ...], top: int, expected: bool) -> None:
    publications = stream(*offsets)
    assert continues(Position(since, "e"), publications, Position(top, "e")) is expected
    assert not continues(Position(since, "other"), publications, Position(top, "e"))


def json_of(data: Payload) -> str:
    assert isinstance(data, Raw)
    return bytes(data).decode()


@pytest.mark.parametrize(
    ("data", "value"), [("hi", "hi"), (b"\x00", b"\x00"), ({"n": [1, None]}, {"n": [1, None]})]
)
def test_the_value_of_a_publication(data: object, value: object) -> None:
    assert Publication("a", payload(data), 1, "e").value == value
