"""The settings: one table, from which environment, flags and the README's table are made.

Every field of `Settings` has type, default, meaning and unit. A setting `port` is read from the
environment variable `CHATSERVER_PORT`, and `chatserver run --port` overrides it.

    settings = Settings.from_env()              # from the environment
    settings = Settings(port=0, reload=True)    # in a test

Every `Settings` has been checked. A value that can't be used raises `InvalidSetting`, with one
sentence that never holds the value of a secret.
"""

import ipaddress
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints
from urllib.parse import urlsplit

import msgspec

from chatserver.brokers.urls import MEMORY, check_url
from chatserver.brokers.workers import one_process_only
from chatserver.errors import InvalidSetting
from chatserver.limits import TIME, Check, Limits, between, setting, true_or_false
from chatserver.rules import Rules, RulesByName, rules_by_name

__all__ = [
    "EXPOSED",
    "MAX_TOKEN_LEEWAY",
    "MIN_SECRET_BYTES",
    "PREFIX",
    "Row",
    "Settings",
    "is_loopback",
]

PREFIX = "CHATSERVER_"
EXPOSED = (
    "Refusing to listen on {host} without verifying tokens: set CHATSERVER_TOKEN_SECRET, "
    "CHATSERVER_TOKEN_PUBLIC_KEY or CHATSERVER_TOKEN_JWKS_URL, or let any token pass with "
    "--open-to-network, CHATSERVER_OPEN_TO_NETWORK=on or `make run OPEN=1`."
)
NO_RELOAD = (
    "Expected one worker with --reload, but got {workers}: leave out --reload, or set --workers 1 "
    "(CHATSERVER_WORKERS, `make run WORKERS=1`)."
)
MIN_SECRET_BYTES = 32  # a key at least as long as its hash: RFC 7518, section 3.2
MAX_TOKEN_LEEWAY = 300  # seconds: "usually no more than a few minutes", RFC 7519, section 4.1.4
RULES_EXAMPLE = '{"game:*": {"presence": true}}'
LOG_LEVELS = ("critical", "error", "warning", "info", "debug", "trace")
ORIGIN = re.compile(r"\*|[a-z][a-z0-9+.-]*://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")


class Row(NamedTuple):
    """One setting in words: a row of the README's table, and a flag of the command line."""

    name: str
    env: str
    default: str
    unit: str
    help: str
    secret: bool
    is_switch: bool

    @property
    def flag(self) -> str:
        """The setting as a flag of the command line: `--token-secret`."""
        return "--" + self.name.replace("_", "-")


def _one_of(*words: str) -> Check:
    def check(value: str) -> str:
        if value.lower() not in words:
            raise ValueError(f"one of {', '.join(words)}")
        return value.lower()

    return check


def _given(value: str | None) -> str | None:
    if value == "":
        raise ValueError("a value that is not empty")
    return value


def _root_path(value: str) -> str:
    if not re.fullmatch(r"(/[\w.~-]+)*/?", value, re.ASCII):
        raise ValueError("nothing or a path such as /chat")
    return value.rstrip("/")


def _folder(value: Path | None) -> Path | None:
    if value is not None and not value.is_dir():
        raise ValueError("the path of a folder that exists")
    return value


def _origins(values: tuple[str, ...]) -> tuple[str, ...]:
    lowered = () if isinstance(values, str) else tuple(value.lower() for value in values)
    if isinstance(values, str) or not all(ORIGIN.fullmatch(value) for value in lowered):
        raise ValueError("origins such as https://example.org:8443, separated by commas, or *")
    return lowered


def _rules(value: RulesByName | None) -> RulesByName | None:
    if value is not None:
        try:
            rules_by_name(value, lambda _: Rules())
        except ValueError as error:
            raise ValueError(f"rules by channel, as in {RULES_EXAMPLE} ({error})") from None
    return value


def _secret(value: str | None) -> str | None:
    if value is not None and len(value.encode("utf-8", "surrogateescape")) < MIN_SECRET_BYTES:
        raise ValueError(f"at least {MIN_SECRET_BYTES} bytes")
    return value


def _pem(value: str | None) -> str | None:
    """Read the file if a path was given, so that all other code gets PEM text."""
    if value is None or "-----BEGIN" in value:
        return value
    expected = "a public key as PEM text, or the path of a readable file with it"
    try:
        text = Path(value).read_text("ascii")
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "not PEM text"
        raise ValueError(f"{expected} ({why})") from None
    if "-----BEGIN" not in text:
        raise ValueError(f"{expected} (not PEM text)")
    return text


def _url(value: str | None) -> str | None:
    if value is None:
        return None
    try:
        parts = urlsplit(value)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        usable = False
    if not usable:
        raise ValueError("an https:// or http:// URL")
    return value


@dataclass(frozen=True, kw_only=True)
class Settings(Limits):
    """How this server runs: the fields of `Limits`, and those declared below.

    `Settings.describe()` says what each of them means.

    Raises:
        InvalidSetting: A value is out of bounds, or two settings exclude each other.
    """

    host: str = setting("127.0.0.1", "address or name to listen on", _given)
    port: int = setting(8000, "TCP port to listen on; 0 takes a free one", between(0, 65535))
    reload: bool = setting(
        False,
        "restart when the code, a template or a static file changes",
        true_or_false,
        switch=True,
    )
    workers: int = setting(
        1,
        "processes that serve; more than one need a broker such as Redis or PostgreSQL",
        between(1, 1024),
    )
    log_level: str = setting(
        "info", f"how much is logged: {', '.join(LOG_LEVELS)}", _one_of(*LOG_LEVELS)
    )
    root_path: str = setting("", "path under which a proxy serves the application", _root_path)
    templates: Path | None = setting(  # noqa: RUF009 - it is a field, like every other line
        None, "folder of templates put in front of ours", _folder
    )
    docs: str = setting(
        "local",
        "who sees the try-it page at /docs: local (clients of this machine), on (everybody) or off",
        _one_of("local", "on", "off"),
    )
    allowed_origins: tuple[str, ...] = setting(
        (), "origins that may connect besides our own, comma-separated; * is any", _origins
    )
    token_secret: str | None = setting(
        None, "secret that signs tokens (HS256), at least 32 bytes", _secret, secret=True
    )
    token_public_key: str | None = setting(
        None, "public key that verifies tokens: PEM text or a file's path", _pem, secret=True
    )
    token_jwks_url: str | None = setting(None, "URL of the key set that verifies tokens", _url)
    token_audience: str | None = setting(None, "audience (aud) a token must name", _given)
    token_issuer: str | None = setting(None, "issuer (iss) a token must name", _given)
    token_claim: str = setting("channels", "claim that lists the channels a token opens", _given)
    token_leeway: float = setting(
        10.0,
        "how far a token's times (exp, nbf, iat) may be off, as clocks differ",
        between(0, MAX_TOKEN_LEEWAY, float),
        unit="seconds",
    )
    open_to_network: bool = setting(
        False, "listen beyond loopback though no token is verified", true_or_false, switch=True
    )
    ping_interval: float = setting(
        20.0, "silence after which a client is pinged", TIME, unit="seconds"
    )
    ping_timeout: float = setting(
        20.0, "how long its pong may take before the client is disconnected", TIME, unit="seconds"
    )
    broker: str = setting(
        MEMORY,
        "URL of what carries publications between processes: memory: (one process), redis://host, "
        "postgresql://host/database",
        check_url,
        secret=True,
    )
    history_size: int = setting(
        100, "newest publications kept of a channel", between(0, 10**6), unit="publications"
    )
    history_ttl: float = setting(
        300.0, "how long a publication is kept", between(0, 10**9, float), unit="seconds"
    )
    history_memory: int = setting(
        64 * 1024 * 1024,
        "publications kept of all channels together; beyond, the oldest channels are emptied first",
        between(0, 2**50),
        unit="bytes",
    )
    rules: RulesByName | None = setting(  # noqa: RUF009 - as above
        None, f"what is kept of which channels, as JSON: {RULES_EXAMPLE}", _rules
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(sources := self._token_sources()) > 1:
            raise InvalidSetting(
                f"Expected one way to verify tokens, but got {len(sources)}: {', '.join(sources)}."
            )
        if self.workers > 1 and self.reload:
            raise InvalidSetting(NO_RELOAD.format(workers=self.workers))
        if self.workers > 1 and self.broker == MEMORY:
            raise InvalidSetting(one_process_only(self.workers))

    def _token_sources(self) -> list[str]:
        names = ("token_secret", "token_public_key", "token_jwks_url")
        return [PREFIX + name.upper() for name in names if getattr(self, name) is not None]

    @property
    def verifies_tokens(self) -> bool:
        """Whether a token is verified at all; if not, any non-empty one passes (open mode)."""
        return bool(self._token_sources())

    def limits(self) -> Limits:
        """What clients may take."""
        return Limits(**{spec.name: getattr(self, spec.name) for spec in fields(Limits)})

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ, **overrides: Any) -> "Settings":
        """Read the variables `CHATSERVER_*`.

        Args:
            environ: The variables; those without the prefix are ignored.
            overrides: Settings by name that win over the environment, as text or typed.

        Raises:
            InvalidSetting: A value can't be used, or no setting has that name.
        """
        known = {row.env: row.name for row in cls.describe()}
        for variable in sorted(environ):
            if variable.startswith(PREFIX) and variable not in known:
                raise _unknown(variable, list(known))
        given = {name: environ[env] for env, name in known.items() if env in environ} | overrides
        return cls(**{name: _parsed(name, value) for name, value in given.items()})

    def to_env(self) -> dict[str, str]:
        """The variables from which `from_env` makes equal settings, in another process too."""
        values = ((row.env, getattr(self, row.name)) for row in self.describe())
        return {env: _as_text(value) for env, value in values if value is not None}

    @classmethod
    def describe(cls) -> tuple[Row, ...]:
        """Every setting as text, the limits last; the README's table and the flags use it."""
        limits = {spec.name for spec in fields(Limits)}
        return tuple(
            Row(
                name=spec.name,
                env=PREFIX + spec.name.upper(),
                default="none" if spec.default is None else _as_text(spec.default) or "empty",
                unit=spec.metadata["unit"],
                help=spec.metadata["help"],
                secret=spec.metadata["secret"],
                is_switch=spec.metadata["switch"],
            )
            for spec in sorted(fields(cls), key=lambda spec: spec.name in limits)
        )

    @classmethod
    def refusal(cls, spec: "Field[Any]", expected: str, value: Any) -> InvalidSetting:
        """As for `Limits`, with flag and variable; the value of a secret is not shown."""
        env, flag = PREFIX + spec.name.upper(), "--" + spec.name.replace("_", "-")
        secret = spec.metadata["secret"]
        came = f"a value of length {len(value)}" if secret else repr(value)
        return InvalidSetting(f"{env} ({flag}): expected {expected}, but got {came}.")


def is_loopback(host: str) -> bool:
    """Whether a server that listens on this host is reachable from this machine only."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _boolean(text: str) -> bool:
    words = {"true": True, "1": True, "yes": True, "on": True}
    words |= {"false": False, "0": False, "no": False, "off": False}
    return words[text.strip().lower()]


def _texts(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _path(text: str) -> Path:
    if not text:
        raise ValueError
    return Path(text)


PARSERS: dict[Any, tuple[Callable[[str], Any], str]] = {
    int: (int, "a whole number"),
    float: (float, "a number"),
    bool: (_boolean, "on or off"),
    tuple[str, ...]: (_texts, "texts separated by commas"),
    Path | None: (_path, "a path"),
    RulesByName | None: (msgspec.json.decode, f"JSON such as {RULES_EXAMPLE}"),
}
"""For each type except text: how it is parsed, and what an error says was expected."""


def _parsed(name: str, value: Any) -> Any:
    hint = get_type_hints(Settings).get(name)
    if not isinstance(value, str) or hint not in PARSERS:
        return value
    parse, expected = PARSERS[hint]
    try:
        return parse(value)
    except (ValueError, KeyError, msgspec.MsgspecError):
        spec = next(spec for spec in fields(Settings) if spec.name == name)
        raise Settings.refusal(spec, expected, value) from None


def _as_text(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return ",".join(value)
    if isinstance(value, Path):
        return str(value.absolute())
    if isinstance(value, Mapping):
        return msgspec.json.encode(value).decode()
    return f"{value:.15g}" if isinstance(value, float) else str(value)


def _unknown(variable: str, known: list[str]) -> InvalidSetting:
    close = get_close_matches(variable, known, n=1, cutoff=0.0)
    return InvalidSetting(f"No setting is called {variable}; did you mean {close[0]}?")
