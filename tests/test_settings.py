"""The settings: what is taken from where, what is refused, and in which words."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from chatserver import settings
from chatserver.auth import tokens
from chatserver.errors import InvalidSetting
from chatserver.limits import Limits
from chatserver.settings import Settings

SECRET = "correct-horse-battery-staple-0123456789"
PEM = "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"


def test_defaults_are_a_safe_small_server() -> None:
    made = Settings.from_env({})
    assert made == Settings()
    assert (made.host, made.port, made.max_message_size) == ("127.0.0.1", 8000, 65536)
    assert not made.verifies_tokens
    assert not made.open_to_network


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("host", "::1", "::1"),
        ("port", "0", 0),
        ("port", "65535", 65535),
        ("reload", "yes", True),
        ("reload", "0", False),
        ("reload", "TRUE", True),
        ("log_level", "TRACE", "trace"),
        ("root_path", "/chat/", "/chat"),
        ("root_path", "", ""),
        ("root_path", "/", ""),
        ("allowed_origins", "", ()),
        ("allowed_origins", "*", ("*",)),
        (
            "allowed_origins",
            " https://A.example , http://[::1]:8000,",
            ("https://a.example", "http://[::1]:8000"),
        ),
        ("token_secret", SECRET, SECRET),
        ("token_secret", "é" * 16, "é" * 16),
        ("token_public_key", PEM, PEM),
        ("token_jwks_url", "https://id.example/keys", "https://id.example/keys"),
        ("token_claim", "rooms", "rooms"),
        ("open_to_network", "on", True),
        ("history_size", "0", 0),
        ("history_ttl", "0.5", 0.5),
        ("history_memory", "0", 0),
        ("token_leeway", "0", 0.0),
        ("compression", "on", True),
        ("compression", "off", False),
        ("linger", "0", 0.0),
        ("max_channels", "1", 1),
    ],
)
def test_environment(name: str, text: str, value: object) -> None:
    assert getattr(Settings.from_env({f"CHATSERVER_{name.upper()}": text}), name) == value
    assert getattr(Settings.from_env({}, **{name: text}), name) == value


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("host", "", "a value that is not empty"),
        ("port", "", "a whole number"),
        ("port", "eighty", "a whole number"),
        ("port", "9" * 5000, "a whole number"),
        ("port", "-1", "a whole number from 0 to 65535"),
        ("port", "65536", "a whole number from 0 to 65535"),
        ("port", "tcp://10.0.0.1:80", "a whole number"),
        ("reload", "maybe", "on or off"),
        ("compression", "maybe", "on or off"),
        ("log_level", "loud", "one of critical, error, warning, info, debug, trace"),
        ("root_path", "chat", "nothing or a path such as /chat"),
        ("root_path", "/a b", "nothing or a path such as /chat"),
        ("root_path", "/a?b", "nothing or a path such as /chat"),
        ("templates", "", "a path"),
        ("templates", "/no/such/folder", "the path of a folder that exists"),
        ("allowed_origins", "example.org", "origins such as"),
        ("allowed_origins", "https://example.org/", "origins such as"),
        ("allowed_origins", "https://*.example.org", "origins such as"),
        ("allowed_origins", "https://user@example.org", "origins such as"),
        ("allowed_origins", "https://example.org:port", "origins such as"),
        ("allowed_origins", "null", "origins such as"),
        ("token_public_key", "/no/such/file.pem", "No such file"),
        ("token_public_key", "/", "Is a directory"),
        ("token_jwks_url", "file:///etc/passwd", "an https:// or http:// URL"),
        ("token_jwks_url", "https://", "an https:// or http:// URL"),
        ("token_jwks_url", "http://[", "an https:// or http:// URL"),
        ("token_audience", "", "a value that is not empty"),
        ("token_claim", "", "a value that is not empty"),
        ("max_message_size", "0", "a whole number from 1 to"),
        ("max_buffer", "1e6", "a whole number"),
        ("history_size", "-1", "a whole number from 0 to"),
        ("history_ttl", "nan", "a number from 0 to"),
        ("history_ttl", "inf", "a number from 0 to"),
        ("history_ttl", "soon", "a number"),
        ("history_memory", "64 MiB", "a whole number"),
        ("token_leeway", "-1", "a number from 0 to 300"),
        ("token_leeway", "301", "a number from 0 to 300"),
        ("linger", "-0.1", "a number from 0 to"),
        ("handshake_timeout", "0", "a number from 0.001 to"),
        ("max_channels", "0", "a whole number from 1 to"),
        ("max_cookie_size", "0", "a whole number from 1 to"),
    ],
)
def test_bad_value_is_named_with_what_was_expected(name: str, text: str, expected: str) -> None:
    with pytest.raises(InvalidSetting) as caught:
        Settings.from_env({f"CHATSERVER_{name.upper()}": text})
    sentence = str(caught.value)
    assert sentence.startswith(f"CHATSERVER_{name.upper()} (--{name.replace('_', '-')}): expected ")
    assert expected in sentence
    assert "\n" not in sentence


def test_overrides_win_and_may_be_typed() -> None:
    environ = {"CHATSERVER_PORT": "1", "CHATSERVER_HOST": "::1", "PATH": "/bin"}
    made = Settings.from_env(environ, port="2", history_ttl=1.0)
    assert (made.host, made.port, made.history_ttl) == ("::1", 2, 1.0)


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("CHATSERVER_PROT", "CHATSERVER_PORT"),
        ("CHATSERVER_TOKEN_SECERT", "CHATSERVER_TOKEN_SECRET"),
        ("CHATSERVER_ALLOWED_ORIGIN", "CHATSERVER_ALLOWED_ORIGINS"),
        ("CHATSERVER_port", "CHATSERVER_PORT"),
    ],
)
def test_unknown_variable_is_refused_with_the_nearest(variable: str, meant: str) -> None:
    with pytest.raises(InvalidSetting, match=rf"^No setting is called {variable}; .* {meant}\?$"):
        Settings.from_env({variable: "x"})


@pytest.mark.parametrize("short", ["", "x", "hunter2-hunter2-hunter2-hunter2"])
def test_short_secret_is_refused_but_never_shown(short: str) -> None:
    with pytest.raises(InvalidSetting, match="at least 32 bytes") as caught:
        Settings.from_env({"CHATSERVER_TOKEN_SECRET": short})
    assert len(short) < 4 or short not in str(caught.value)
    assert f"a value of length {len(short)}" in str(caught.value)


def test_repr_shows_no_key() -> None:
    assert SECRET not in repr(Settings(token_secret=SECRET))
    assert "BEGIN" not in repr(Settings(token_public_key=PEM))
    assert "port=8000" in repr(Settings())


def test_the_verifier_has_the_same_bounds() -> None:
    assert settings.MIN_SECRET_BYTES == tokens.MIN_SECRET_BYTES
    assert settings.MAX_TOKEN_LEEWAY == tokens.MAX_LEEWAY


def test_defaults_of_the_limits_are_the_same_everywhere() -> None:
    assert Settings().limits() == Limits()
    assert type(Settings().limits()) is Limits


def test_every_limit_is_a_setting() -> None:
    changed = {"max_channels": "7", "linger": "0.5", "compression": "on", "max_cookie_size": "99"}
    made = Settings.from_env({f"CHATSERVER_{name.upper()}": text for name, text in changed.items()})
    expected = Limits(max_channels=7, linger=0.5, compression=True, max_cookie_size=99)
    assert made.limits() == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"port": "80"}, "CHATSERVER_PORT (--port): expected a whole number from 0 to 65535, but"),
        ({"port": True}, "CHATSERVER_PORT (--port): expected a whole number"),
        ({"reload": 1}, "CHATSERVER_RELOAD (--reload): expected True or False, but got 1."),
        ({"max_buffer": 0}, "CHATSERVER_MAX_BUFFER (--max-buffer): expected a whole number"),
        ({"allowed_origins": "*"}, "CHATSERVER_ALLOWED_ORIGINS (--allowed-origins): expected"),
    ],
)
def test_a_value_of_another_type_is_refused(given: dict[str, Any], expected: str) -> None:
    with pytest.raises(InvalidSetting) as caught:
        Settings(**given)
    assert str(caught.value).startswith(expected)


def test_one_way_to_verify_tokens() -> None:
    with pytest.raises(InvalidSetting, match="TOKEN_SECRET, CHATSERVER_TOKEN_JWKS_URL") as caught:
        Settings(token_secret=SECRET, token_jwks_url="https://id.example/keys")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "given", [{"token_secret": SECRET}, {"token_public_key": PEM}, {"token_jwks_url": "http://a/b"}]
)
def test_verifies_tokens(given: dict[str, Any]) -> None:
    assert Settings(**given).verifies_tokens


def test_public_key_is_read_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_text(PEM)
    assert Settings(token_public_key=str(path)).token_public_key == PEM
    path.write_bytes(b"\xff\x00")
    with pytest.raises(InvalidSetting, match="not PEM text"):
        Settings(token_public_key=str(path))
    path.write_text("hello")
    with pytest.raises(InvalidSetting, match="not PEM text"):
        Settings(token_public_key=str(path))


def test_settings_survive_the_environment(tmp_path: Path) -> None:
    made = Settings(
        port=1,
        reload=True,
        templates=tmp_path,
        allowed_origins=("https://a.example", "*"),
        token_secret=SECRET,
        history_ttl=0.25,
        rules={"game:*": {"presence": True}},
    )
    assert Settings.from_env(made.to_env()) == made
    assert Settings.from_env(Settings().to_env()) == Settings()


def test_table_has_every_field_with_its_words() -> None:
    rows = {row.name: row for row in Settings.describe()}
    assert set(rows) == {spec.name for spec in dataclasses.fields(Settings)}
    limits = [spec.name for spec in dataclasses.fields(Limits)]
    assert list(rows)[-len(limits) :] == limits
    assert all(row.help and row.env == f"CHATSERVER_{row.name.upper()}" for row in rows.values())
    assert rows["max_buffer"][2:4] == ("1048576", "bytes")
    assert (rows["history_ttl"].default, rows["history_ttl"].unit) == ("300", "seconds")
    assert (rows["reload"].default, rows["reload"].is_switch) == ("off", True)
    assert (rows["compression"].default, rows["compression"].is_switch) == ("off", False)
    assert (rows["templates"].default, rows["root_path"].default) == ("none", "empty")
    assert rows["token_secret"].flag == "--token-secret"


def test_rules_are_json_in_the_environment() -> None:
    env = {"CHATSERVER_RULES": '{"game:*": {"presence": true}}'}
    assert Settings.from_env(env).rules == {"game:*": {"presence": True}}
    for bad, words in (
        ("{", "expected JSON such as"),
        ('{"a": 3}', "rules by channel"),
        ("[]", ""),
    ):
        with pytest.raises(InvalidSetting, match=rf"CHATSERVER_RULES \(--rules\): .*{words}"):
            Settings.from_env({"CHATSERVER_RULES": bad})
