"""The limits: their defaults, their bounds, and the sentence for what is out of them."""

import dataclasses
import math
from typing import Any

import pytest

from chatserver.errors import InvalidSetting
from chatserver.limits import Limits


def test_defaults_are_within_their_bounds_and_can_not_be_changed() -> None:
    limits = Limits()
    assert (limits.max_channels, limits.max_cookie_size) == (128, 8192)
    assert (limits.linger, limits.handshake_timeout) == (10.0, 10.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        limits.max_buffer = 1  # type: ignore[misc]


def test_limits_compare_by_value() -> None:
    assert Limits(max_buffer=10) == Limits(max_buffer=10) != Limits(max_buffer=11)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_message_size", 0),
        ("max_message_size", -1),
        ("max_message_size", 2**30 + 1),
        ("max_message_size", 1.5),
        ("max_message_size", "65536"),
        ("max_message_size", None),
        ("max_message_size", True),
        ("max_buffer", 0),
        ("max_unhandled", 0),
        ("send_timeout", 0),
        ("send_timeout", math.nan),
        ("close_timeout", math.inf),
        ("close_timeout", "3"),
        ("linger", -0.1),
        ("handshake_timeout", 0),
        ("max_channels", 0),
        ("max_cookie_size", 0),
        ("max_connections", -1),
        ("max_fragments", 0),
        ("max_message_rate", -1),
        ("compression", "on"),
        ("compression", 1),
    ],
)
def test_what_is_out_of_bounds_is_named(name: str, value: Any) -> None:
    with pytest.raises(InvalidSetting) as refusal:
        Limits(**{name: value})
    sentence = str(refusal.value)
    assert sentence.startswith(f"{name}: expected ")
    assert sentence.endswith(f", but got {value!r}.")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_message_size", 1),
        ("max_message_size", 2**30),
        ("send_timeout", 0.001),
        ("send_timeout", 3),
        ("linger", 0),
        ("max_connections", 0),
        ("max_message_rate", 0),
        ("compression", True),
    ],
)
def test_the_bounds_themselves_will_do(name: str, value: Any) -> None:
    assert getattr(Limits(**{name: value}), name) == value


def test_every_limit_is_declared_in_full() -> None:
    for spec in dataclasses.fields(Limits):
        assert spec.metadata["help"]
        assert spec.metadata["check"](spec.default) == spec.default
