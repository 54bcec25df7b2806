"""From a URL to a broker, and what is said of one that can't be used."""

import sys
from types import ModuleType
from typing import Any

import pytest

from chatserver import MemoryBroker, broker_from_url
from chatserver.brokers import urls
from chatserver.brokers.urls import ENGINES, POSTGRES, REDIS, check_url, without_password
from chatserver.errors import InvalidSetting
from chatserver.rules import Rules
from chatserver.settings import Settings

SECRET = "hunter2"


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, Rules]]:
    """Stands for the engines' modules; lists what they were made from."""
    made: list[tuple[str, str, Rules]] = []
    for engine in (REDIS, POSTGRES):

        def make(url: str, *, rules: Rules, name: str = engine.name) -> MemoryBroker:
            made.append((name, url, rules))
            return MemoryBroker()

        module: Any = ModuleType(engine.module)
        setattr(module, engine.name, make)
        monkeypatch.setitem(sys.modules, engine.module, module)
    monkeypatch.setattr(urls, "find_spec", lambda _: "is there")
    return made


def test_memory_is_the_default() -> None:
    for broker in (broker_from_url(), broker_from_url("memory:", history_size=7, history_ttl=8)):
        assert isinstance(broker, MemoryBroker)
    assert broker.rules("chat") == Rules(history_size=7, history_ttl=8)


@pytest.mark.parametrize("scheme", ENGINES)
def test_each_scheme_has_its_engine(installed: list[tuple[str, str, Rules]], scheme: str) -> None:
    url = f"{scheme}://ann:{SECRET}@127.0.0.1:6379/0"
    broker_from_url(url.replace(scheme, scheme.upper()), history_size=7, history_ttl=8)
    name = "PostgresBroker" if "postgres" in scheme else "RedisBroker"
    assert installed == [(name, url, Rules(history_size=7, history_ttl=8))]


USABLE = [
    "redis://localhost",
    "redis://",
    "redis:///3",
    "redis://:p%40ss%2Fword@[::1]:6379/0",
    "redis://[fe80::1%25eth0]:6379",
    "rediss://ann:x@example.org:65535/0?ssl_cert_reqs=none",
    "unix:///run/redis.sock?db=1",
    "unix://:x@/run/redis.sock",
    "redis+sentinel://ann:x@one:26379,two:26379,three/mymaster/0",
    "rediss+cluster://one:1,two:2",
    "postgresql://ann:x@localhost/chat?sslmode=require",
    "postgres:///chat?host=/run/postgresql",
]


@pytest.mark.parametrize("url", USABLE)
def test_usable(url: str) -> None:
    assert check_url(url) == url


UNUSABLE = [
    ("", "it is empty"),
    ("localhost", "it has no scheme"),
    (SECRET, "it has no scheme"),
    ("localhost:6379", "schemes are memory, redis, rediss"),
    (f"{SECRET}:6379", "schemes are memory, redis, rediss"),
    (f"reddis://:{SECRET}@localhost", "did you mean redis?"),
    (f"postgressql://ann:{SECRET}@localhost", "did you mean postgresql?"),
    (f"redis+sentinal://ann:{SECRET}@localhost", "did you mean redis+sentinel?"),
    ("memory", "it has no scheme"),
    ("memory://", "after memory: comes nothing"),
    ("redis:localhost", "after redis: comes //"),
    ("unix://", "after unix:// comes the path of a socket"),
    ("unix://?db=0", "after unix:// comes the path of a socket"),
    ("redis://localhost:port", "a port is from 1 to 65535"),
    ("redis://localhost:0", "a port is from 1 to 65535"),
    ("redis://localhost:65536", "a port is from 1 to 65535"),
    ("redis://localhost:", "a port is from 1 to 65535"),
    ("redis://::1:6379", "a port is from 1 to 65535"),
    ("redis://localhost:-1", "a port is from 1 to 65535"),
    ("redis://localhost:\N{ARABIC-INDIC DIGIT THREE}", "a port is from 1 to 65535"),
    ("redis+sentinel://one:1,two:x/mymaster", "a port is from 1 to 65535"),
    (f"redis://:{SECRET}/x@localhost", "write %40 for @, %2F for /"),
    (f"redis://:{SECRET}?x@localhost", "write %40 for @, %2F for /"),
    (f"redis://:{SECRET}#x@localhost", "write %40 for @, %2F for /"),
    (f"postgresql://ann:{SECRET} x@localhost", "it has a space or a line break in it"),
    (f"redis://:{SECRET}@localhost\n", "it has a space or a line break in it"),
    (f"redis://:{SECRET}@localhost\0", "it has a space or a line break in it"),
]


@pytest.mark.parametrize(("url", "why"), UNUSABLE)
def test_unusable_is_one_sentence_without_the_password(url: str, why: str) -> None:
    with pytest.raises(ValueError, match=r"^expected the URL of a broker, as in memory:, redis://"):
        broker_from_url(url)
    with pytest.raises(InvalidSetting) as caught:
        Settings.from_env({"CHATSERVER_BROKER": url})
    sentence = str(caught.value)
    assert sentence.startswith("CHATSERVER_BROKER (--broker): expected the URL of a broker, as in ")
    assert why in sentence
    assert f"but got a value of length {len(url)}." in sentence
    assert "\n" not in sentence
    assert SECRET not in sentence


def test_the_settings_show_no_url() -> None:
    settings = Settings(broker=f"redis://:{SECRET}@localhost")
    assert SECRET not in repr(settings)
    assert Settings.from_env(settings.to_env()) == settings


@pytest.mark.parametrize(
    ("url", "missing", "sentence"),
    [
        (
            "redis://localhost",
            {"redis", "hiredis"},
            "RedisBroker needs redis and hiredis: pip install 'starlette-chatserver[redis]'",
        ),
        (
            "valkey://localhost",
            {"hiredis"},
            "RedisBroker needs hiredis: pip install 'starlette-chatserver[redis]'",
        ),
        (
            "postgres://localhost",
            {"asyncpg"},
            "PostgresBroker needs asyncpg: pip install 'starlette-chatserver[postgres]'",
        ),
    ],
)
def test_a_missing_extra_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, url: str, missing: set[str], sentence: str
) -> None:
    monkeypatch.setattr(urls, "find_spec", lambda name: None if name in missing else "is there")
    with pytest.raises(ModuleNotFoundError) as caught:
        broker_from_url(url)
    assert str(caught.value) == sentence


HIDDEN = {
    "memory:": "memory:",
    "redis://localhost:6379/0": "redis://localhost:6379/0",
    f"redis://:{SECRET}@localhost:6379/0": "redis://:***@localhost:6379/0",
    f"redis://ann:{SECRET}@localhost": "redis://ann:***@localhost",
    f"redis://{SECRET}@localhost": "redis://***@localhost",
    f"redis://localhost/0?password={SECRET}": "redis://localhost/0",
    f"postgresql:///chat?%70assword={SECRET}#x": "postgresql:///chat",
    f"redis://ann:x/{SECRET}@localhost/0": "redis://ann:***@localhost/0",
    f"redis://ann:x@{SECRET}?{SECRET}@localhost": "redis://ann:***@localhost",
    f"redis+cluster://ann:{SECRET}@one,ann:{SECRET}@two": "redis+cluster://ann:***@two",
    f"redis:{SECRET}": "***",
    SECRET: "***",
    "": "***",
}


@pytest.mark.parametrize(("url", "shown"), HIDDEN.items())
def test_without_password(url: str, shown: str) -> None:
    assert without_password(url) == shown
