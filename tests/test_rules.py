"""The rules of channels: found by name or pattern, and complete."""

from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.testclient import TestClient

from chatserver import Endpoint, FromPath, Hub, MemoryBroker
from chatserver.endpoints.application import hub_of
from chatserver.rules import Rules, rules_by_name

OTHERS = Rules(history_size=7, history_ttl=60)


def test_a_name_counts_before_a_pattern_and_a_longer_pattern_before_a_shorter() -> None:
    rules_for = rules_by_name(
        {
            "*": {"history_size": 1},
            "game:*": {"history_size": 2},
            "game:chess:*": {"history_size": 3},
            "game:chess:1": {"history_size": 4},
        },
        lambda _: OTHERS,
    )
    channels = ("chat", "game:go", "game:chess:2", "game:chess:1", "game:chess:10")
    assert [rules_for(channel).history_size for channel in channels] == [1, 2, 3, 4, 3]


def test_what_is_left_out_is_as_for_others() -> None:
    rules_for = rules_by_name({"game:*": {"presence": True}}, lambda _: OTHERS)
    assert rules_for("game:1") == Rules(history_size=7, history_ttl=60, presence=True)
    assert rules_for("chat") == OTHERS


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        ({"": {}}, "name of a channel, or its beginning and"),
        ({"a*b": {}}, "name of a channel, or its beginning and"),
        ({"a": {"presense": True}}, "'a' can't be used: .*`presense`"),
        ({"a": {"history_size": -1}}, "'a' can't be used: .*history_size"),
        ({"a": {"history_ttl": "long"}}, "'a' can't be used: .*history_ttl"),
        ({"a": 3}, "'a' can't be used: "),
        ({"a": None}, "'a' can't be used: "),
        ([], "rules by the names of channels"),
    ],
)
def test_what_can_not_be_used_is_named(declared: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        rules_by_name(declared, lambda _: OTHERS)


class Game(Endpoint):
    encoding = "text"
    game: FromPath[str]
    channels = ("game:{game}",)


def test_presence_of_a_channel_is_kept_whatever_its_class_says() -> None:
    app = Starlette(routes=[WebSocketRoute("/{game}", Game)])
    app.state.hub = Hub(MemoryBroker(history_size=7), rules={"game:1": {"presence": True}})
    with TestClient(app) as client, client.websocket_connect("/1"), client.websocket_connect("/2"):
        assert client.portal is not None
        assert len(client.portal.call(hub_of(app).present, "game:1")) == 1
        assert client.portal.call(hub_of(app).present, "game:2") == {}
    assert hub_of(app).broker.rules("game:1").history_size == 7
