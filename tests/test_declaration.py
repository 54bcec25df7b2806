"""Mistakes in an endpoint class are errors when the class is created."""

from typing import Any

import pytest

from chatserver import Endpoint, FromPath, FromQuery


def declare(**namespace: Any) -> type[Endpoint]:
    return type("Room", (Endpoint,), {"__module__": __name__, **namespace})


@pytest.mark.parametrize(
    ("namespace", "message"),
    [
        (
            {"channels": ("room:{rom}",), "__annotations__": {"room": FromPath[str]}},
            r"Room.channels: 'room:\{rom\}' names 'rom', which is no parameter of Room "
            r"\(it has room\)",
        ),
        ({"channels": ("room:{room}",)}, r"no parameter of Room \(it has none\)"),
        (
            {"channels": ("{room.__class__}",), "__annotations__": {"room": FromPath[str]}},
            "names 'room.__class__'",
        ),
        ({"channels": ("{}",)}, "names ''"),
        ({"channels": "chat"}, "Room.channels must be a sequence of names, not a str"),
        ({"encoding": "xml"}, "Room.encoding must be 'text', 'bytes', 'json' or None, got 'xml'"),
        (
            {"__annotations__": {"user": FromQuery[str]}},
            r"Room.user can't be a parameter, the name is taken",
        ),
        ({"__annotations__": {"send": FromQuery[str]}}, "Room.send can't be a parameter"),
        ({"__annotations__": {"push": FromQuery[str]}}, "Room.push can't be a parameter"),
    ],
)
def test_mistakes(namespace: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        declare(**namespace)


def test_a_name_with_literal_braces_and_two_parameters() -> None:
    cls = declare(
        channels=("{{x}}:{a}:{b}",), __annotations__={"a": FromPath[str], "b": FromPath[str]}
    )
    assert [name.format_map({"a": "1", "b": "2"}) for name in cls.channels] == ["{x}:1:2"]
