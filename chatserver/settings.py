"""The settings: one table from which the environment, the flags and the README are derived.

Every line of `Settings` says type, default, meaning and unit. A setting `port` is read from the
environment variable `CHATSERVER_PORT`, and `chatserver run --port` overrides it.

    settings = Settings.from_env()              # what the environment says
    settings = Settings(port=0, reload=True)    # what a test says

Whatever is built has been checked. What will not do is an `InvalidSetting`, in one sentence that
never holds the value of a secret.
"""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_type_hints
from urllib.parse import urlsplit

from chatserver.errors import InvalidSetting
from chatserver.limits import Limits

__all__ = ["MIN_SECRET_BYTES", "PREFIX", "Row", "Settings"]

PREFIX = "CHATSERVER_"
MIN_SECRET_BYTES = 32  # a key at least as long as its hash: RFC 7518, section 3.2
LOG_LEVELS = ("critical", "error", "warning", "info", "debug", "trace")
ORIGIN = re.compile(r"\*|[a-z][a-z0-9+.-]*://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")

T = TypeVar("T")
Check = Callable[[Any], Any]
"""Takes a value, gives the one to keep, or raises a ValueError that says what was expected."""


class Row(NamedTuple):
    """One setting as people read it: a row of the README's table, a flag of the command line."""

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


def setting(
    default: T,
    help: str,
    check: Check = lambda value: value,
    *,
    unit: str = "",
    secret: bool = False,
) -> T:
    """A field of `Settings`; a secret's value is kept out of `repr` and out of every sentence."""
    metadata = {"help": help, "check": check, "unit": unit, "secret": secret}
    marked: T = field(default=default, repr=not secret, metadata=metadata)
    return marked


def _between(low: float, high: float) -> Check:
    def check(value: float) -> float:
        if not low <= value <= high:  # also says no to nan
            raise ValueError(f"a number from {low} to {high}")
        return value

    return check


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
    lowered = tuple(value.lower() for value in values)
    if not all(ORIGIN.fullmatch(value) for value in lowered):
        raise ValueError("origins such as https://example.org:8443, separated by commas, or *")
    return lowered


def _secret(value: str | None) -> str | None:
    if value is not None and len(value.encode("utf-8", "surrogateescape")) < MIN_SECRET_BYTES:
        raise ValueError(f"at least {MIN_SECRET_BYTES} bytes")
    return value


def _pem(value: str | None) -> str | None:
    """Read the file where a path was given, so that everyone else sees only PEM text."""
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


LIMITS = Limits()
SIZE, NUMBER, TIME = _between(1, 2**30), _between(0, 10**9), _between(0.001, 10**9)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How this server runs; the table of `Settings.describe()` says what each line means.

    Raises:
        InvalidSetting: A value is out of its bounds, or two exclude each other.
    """

    host: str = setting("127.0.0.1", "address or name to listen on", _given)
    port: int = setting(8000, "TCP port to listen on; 0 takes a free one", _between(0, 65535))
    reload: bool = setting(False, "restart when the code, a template or a static file changes")
    log_level: str = setting(
        "info", f"how much is logged: {', '.join(LOG_LEVELS)}", _one_of(*LOG_LEVELS)
    )
    root_path: str = setting("", "path under which a proxy serves the application", _root_path)
    templates: Path | None = setting(  # noqa: RUF009 - it is a field, like every other line
        None, "folder of templates put in front of ours", _folder
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
    open_to_network: bool = setting(False, "listen beyond loopback though no token is verified")
    max_message_size: int = setting(
        LIMITS.max_message_size, "longest message taken from a client", SIZE, unit="bytes"
    )
    max_buffer: int = setting(
        LIMITS.max_buffer,
        "unsent data a connection may pile up before it is closed as slow",
        SIZE,
        unit="bytes",
    )
    max_unhandled: int = setting(
        LIMITS.max_unhandled,
        "messages of one client that may wait to be handled; then it is read no further",
        _between(1, 10**6),
        unit="messages",
    )
    send_timeout: float = setting(
        LIMITS.send_timeout, "how long a full socket may take nothing", TIME, unit="seconds"
    )
    close_timeout: float = setting(
        LIMITS.close_timeout,
        "how long a closed connection may keep its socket before it is aborted",
        TIME,
        unit="seconds",
    )
    max_connections: int = setting(
        LIMITS.max_connections, "most WebSockets of this process; 0 is no limit", NUMBER
    )
    max_address_connections: int = setting(
        LIMITS.max_address_connections,
        "most WebSockets from one address; 0 is no limit, as it must be behind a proxy",
        NUMBER,
    )
    max_user_connections: int = setting(
        LIMITS.max_user_connections, "most WebSockets of one token's user; 0 is no limit", NUMBER
    )
    max_header_size: int = setting(
        LIMITS.max_header_size, "longest line and headers of a request", SIZE, unit="bytes"
    )
    header_timeout: float = setting(
        LIMITS.header_timeout, "how long a request's headers may take", TIME, unit="seconds"
    )
    message_timeout: float = setting(
        LIMITS.message_timeout, "how long a begun message may take", TIME, unit="seconds"
    )
    max_fragments: int = setting(
        LIMITS.max_fragments, "most frames in one message", _between(1, 10**6), unit="frames"
    )
    max_message_rate: int = setting(
        LIMITS.max_message_rate,
        "most messages taken from one client, pings included; 0 is no limit",
        NUMBER,
        unit="a second",
    )
    ping_interval: float = setting(
        20.0, "silence after which a client is asked for a sign of life", TIME, unit="seconds"
    )
    ping_timeout: float = setting(
        20.0, "how long that sign may take before the client is dead", TIME, unit="seconds"
    )
    compression: str = setting(
        "off", "whether to compress messages for clients that can: on or off", _one_of("on", "off")
    )
    history_size: int = setting(
        100, "newest publications kept of a channel", _between(0, 10**6), unit="publications"
    )
    history_ttl: float = setting(
        300.0, "how long a publication is kept", _between(0, 10**9), unit="seconds"
    )

    def __post_init__(self) -> None:
        for spec in fields(self):
            value = getattr(self, spec.name)
            try:
                object.__setattr__(self, spec.name, spec.metadata["check"](value))
            except ValueError as error:
                raise _refused(spec.name, str(error), value) from None
        if len(sources := self._token_sources()) > 1:
            raise InvalidSetting(
                f"Expected one way to verify tokens, but got {len(sources)}: {', '.join(sources)}."
            )

    def _token_sources(self) -> list[str]:
        names = ("token_secret", "token_public_key", "token_jwks_url")
        return [PREFIX + name.upper() for name in names if getattr(self, name) is not None]

    @property
    def verifies_tokens(self) -> bool:
        """Whether a token is verified at all; if not, any non-empty one passes (open mode)."""
        return bool(self._token_sources())

    def limits(self) -> Limits:
        """What clients may take."""
        names = set(Limits.__struct_fields__) - {"compression"}
        return Limits(
            **{name: getattr(self, name) for name in names}, compression=self.compression == "on"
        )

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ, **overrides: Any) -> "Settings":
        """Read the variables `CHATSERVER_*`.

        Args:
            environ: The variables; those with another prefix are of no interest.
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
        """The variables from which `from_env` builds equal settings, in another process too."""
        values = ((row.env, getattr(self, row.name)) for row in self.describe())
        return {env: _as_text(value) for env, value in values if value is not None}

    @classmethod
    def describe(cls) -> tuple[Row, ...]:
        """Every setting as text, in order; the README's table and the flags are made of it."""
        return tuple(
            Row(
                name=spec.name,
                env=PREFIX + spec.name.upper(),
                default="none" if spec.default is None else _as_text(spec.default) or "empty",
                unit=spec.metadata["unit"],
                help=spec.metadata["help"],
                secret=spec.metadata["secret"],
                is_switch=spec.default is False,
            )
            for spec in fields(cls)
        )


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
    bool: (_boolean, "true or false"),
    tuple[str, ...]: (_texts, "texts separated by commas"),
    Path | None: (_path, "a path"),
}
"""How each type but text is read, and what to say where it can't be."""


def _parsed(name: str, value: Any) -> Any:
    hint = get_type_hints(Settings).get(name)
    if not isinstance(value, str) or hint not in PARSERS:
        return value
    parse, expected = PARSERS[hint]
    try:
        return parse(value)
    except (ValueError, KeyError):
        raise _refused(name, expected, value) from None


def _as_text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(value)
    if isinstance(value, Path):
        return str(value.absolute())
    return f"{value:.15g}" if isinstance(value, float) else str(value)


def _refused(name: str, expected: str, value: Any) -> InvalidSetting:
    row = next(row for row in Settings.describe() if row.name == name)
    came = f"a value of {len(value)} characters" if row.secret else repr(value)
    return InvalidSetting(f"{row.env} ({row.flag}): expected {expected}, but got {came}.")


def _unknown(variable: str, known: list[str]) -> InvalidSetting:
    close = get_close_matches(variable, known, n=1, cutoff=0.0)
    return InvalidSetting(f"No setting is called {variable}; did you mean {close[0]}?")
