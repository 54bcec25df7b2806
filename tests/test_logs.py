"""Secrets never reach a log: texts, records, and the real loggers of uvicorn and websockets."""

import contextvars
import copy
import io
import json
import logging
import logging.config
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import anyio
import pytest
from uvicorn.config import LOGGING_CONFIG
from uvicorn.logging import TRACE_LOG_LEVEL, AccessFormatter, DefaultFormatter
from uvicorn.middleware.message_logger import MessageLoggerMiddleware
from websockets.frames import Frame, Opcode
from websockets.server import ServerProtocol

from chatserver import logs
from chatserver.logs import REDACTED, RedactSecrets, redact, remember

SECRET = "s3cr3t-0paque/v@lue"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbm4ifQ.c2lnbmF0dXJl"


@pytest.fixture(autouse=True)
def _clean_slate() -> Iterator[None]:
    """What a test remembers is forgotten after it."""
    held = logs._remembered.set(frozenset())
    yield
    logs._remembered.reset(held)


# --- texts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("/ws?token=abc", "/ws?token=[redacted]"),
        ("/ws?token=abc&q=1", "/ws?token=[redacted]&q=1"),
        ("/ws?q=1&%74oken=abc", "/ws?q=1&%74oken=[redacted]"),
        ("/ws?%54%4F%4B%45%4E=abc", "/ws?%54%4F%4B%45%4E=[redacted]"),
        ("/ws?token=a'b\"c;d", "/ws?token=[redacted]"),
        ("/ws?token=a%26b", "/ws?token=[redacted]"),
        ("/ws?back=/x?token=abc", "/ws?back=/x?token=[redacted]"),
        ("/ws?token=a=b==", "/ws?token=[redacted]"),
        ("/ws?access_token=abc", "/ws?access_token=[redacted]"),
        ("/ws?api-key=abc", "/ws?api-key=[redacted]"),
        ("/ws?apikey=a&jwt=b&passwd=c", "/ws?apikey=[redacted]&jwt=[redacted]&passwd=[redacted]"),
        ('"WebSocket /ws?token=abc" [accepted]', '"WebSocket /ws?token=[redacted]" [accepted]'),
        ("cookie: session=abc; theme=dark", "cookie: [redacted]"),
        ("Set-Cookie: session=abc\nnext", "Set-Cookie: [redacted]\nnext"),
        ("Authorization: Bearer abc", "Authorization: [redacted]"),
        ("Sec-WebSocket-Protocol: bearer, abc", "Sec-WebSocket-Protocol: [redacted]"),
        ("bad Sec-WebSocket-Protocol header: abc", "bad Sec-WebSocket-Protocol header: [redacted]"),
        ("invalid HTTP header value: 'Bearer abc'", "invalid HTTP header value: [redacted]"),
        ("[(b'authorization', b'Bearer abc')]", "[(b'authorization', b'[redacted]')]"),
        ("{'cookie': 'session=abc', 'a': 1}", "{'cookie': '[redacted]', 'a': 1}"),
        ("'subprotocols': ['bearer', 'abc']", "'subprotocols': ['bearer', '[redacted]']"),
        ("{'query_string': b'token=abc', 'x': 1}", "{'query_string': b'token=[redacted]', 'x': 1}"),
        ('{"connect":{"token":"a\\"b"}}', '{"connect":{"token":"[redacted]"}}'),
        (r'{\"token\": \"abc\"}', r'{\"token\": \"[redacted]\"}'),
        (r'{"data":"{\"token\":\"abc\"}"}', r'{"data":"{\"token\":\"[redacted]\"}"}'),
        ('{"token": 12345}', '{"token": [redacted]}'),
        ("no redis://ann:a@b@localhost:6379/0", "no redis://ann:[redacted]@localhost:6379/0"),
        ("no redis://:abc@localhost", "no redis://:[redacted]@localhost"),
        ("no redis://abc@one,two", "no redis://[redacted]@one,two"),
        ("f(token='a b', x=1)", "f(token=[redacted], x=1)"),
        (f"got {JWT}.", "got [redacted]"),
        (f"x%3D{JWT}", "x%3D[redacted]"),
        (f"{JWT.rpartition('.')[0]} cut", "[redacted] cut"),
    ],
)  # fmt: skip
def test_redact(text: str, clean: str) -> None:
    assert redact(text) == clean
    assert redact(clean) == clean


@pytest.mark.parametrize(
    "text",
    [
        "",
        "connection open",
        "author=ann&q=1",
        '{"type":"say","author":"ann","text":"hi"}',
        "the token is missing; see token",
        "chatserver.endpoints.base.Endpoint",
        "token=",
        "100 %",
        "a=b=c",
        "https://example.org/@ann and ann@example.org",
        "redis://localhost:6379/0",
    ],
)
def test_innocent_text_stays(text: str) -> None:
    assert redact(text) == text


@pytest.mark.parametrize(
    "form",
    [
        SECRET,
        f"x{SECRET}x",
        quote(SECRET),
        quote(SECRET, safe=""),
        quote(SECRET, safe="").lower(),
        repr(SECRET),
        json.dumps({"said": SECRET}),
        f"Session cookie or query token value is: {SECRET}",
    ],
)
def test_remembered_value_in_every_form(form: str) -> None:
    assert redact(form) == form
    remember(SECRET)
    assert REDACTED in redact(form)
    assert "0paque" not in redact(form)


def test_odd_values_are_remembered() -> None:
    for value in ("ti'ck\"s", "back\\slash", "new\nline", "gänse füße", "\ud800half"):
        remember(value)
        assert redact(value) == REDACTED
        assert redact(repr(value))[1:-1] == REDACTED
        assert redact(repr(value.encode("utf-8", "surrogatepass")))[2:-1] == REDACTED


def test_short_values_hide_nothing() -> None:
    remember("", "a", "abc")
    assert redact("a cabinet") == "a cabinet"


def test_each_task_has_its_own_secrets() -> None:
    remember("of-the-server")
    seen: dict[str, str] = {}

    async def child(name: str) -> None:
        seen[name] = redact(f"of-{name} of-ann of-bob of-the-server")

    async def connection(name: str) -> None:
        remember(f"of-{name}")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(child, name)

    async def both() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(connection, "ann")
            tasks.start_soon(connection, "bob")

    anyio.run(both)
    assert seen["ann"] == f"{REDACTED} {REDACTED} of-bob {REDACTED}"
    assert seen["bob"] == f"{REDACTED} of-ann {REDACTED} {REDACTED}"
    assert redact("of-ann") == "of-ann"


@pytest.mark.parametrize(
    "part",
    [
        "a", " ", "\\", "'", "-", "a.", "eyJ", "eyJ.", "a=", "token=", "token=)", "token='", "%74",
        '"a":', "'a':'", '"token":"', '"token":\\"', "'token':b", '\\"a\\":\\"', "bearer,",
        '\\"', 'session="\\"', 'token=\\"', 'a="\\\\"', "\\'", 'cookie: a="\\"', 'b"cookie", b"\\"',
        "cookie: ", "cookie:", "authorization header", "&token", "token=;\n", "sec-websocket-",
        "://", "://a:", "://@", ":@",
    ],
)  # fmt: skip
def test_time_is_linear_in_what_a_client_sends(part: str) -> None:
    """A megabyte takes about ten times as long as a tenth; a quadratic pattern, a hundred times."""

    def seconds(size: int) -> float:
        text = part * (size // len(part))
        begun = time.process_time()
        redact(text)
        return time.process_time() - begun

    assert seconds(1_000_000) < 40 * max(seconds(100_000), seconds(100_000), 0.005)


def test_a_cookie_of_escaped_quotes_takes_no_time() -> None:
    """As it stands in a request's headers, printed in each of the forms of a log."""
    header = 'session="' + '\\"' * 250_000 + '"'
    begun = time.process_time()
    for text in (f"cookie: {header}", repr([(b"cookie", header.encode())]), header):
        assert '\\"' not in redact(text)
    remember(header)
    assert redact(repr(header)) in (f"'{REDACTED}'", REDACTED)
    assert time.process_time() - begun < 4


# --- records -------------------------------------------------------------------------------------


def record(msg: str, *args: Any, name: str = "chatserver", **extra: Any) -> logging.LogRecord:
    made = logging.getLogger(name).makeRecord(
        name, logging.INFO, "f.py", 1, msg, args, None, extra=extra
    )
    assert RedactSecrets().filter(made)
    return made


def test_name_in_the_message_and_value_in_an_argument() -> None:
    assert record("< %s: %s", "Cookie", "session=abc").getMessage() == "< Cookie: [redacted]"
    assert record("token=%s q=%d", "abc", 1).getMessage() == "token=[redacted] q=1"
    assert record("token=%(t)s", {"t": "abc"}).getMessage() == "token=[redacted]"


def test_arguments_keep_their_type_and_shape() -> None:
    made = record("%s %d %s", "a", 7, {"b": 1})
    assert made.args == ("a", 7, {"b": 1})
    assert isinstance(record("%(a)s", {"a": 1}).args, dict)


def test_percent_signs_in_what_is_left() -> None:
    made = record("100 %% of token=%s", "abc%d")
    assert made.getMessage() == "100 % of token=[redacted]"
    assert record("token=abc and 100 %").getMessage() == "token=[redacted] and 100 %"


@pytest.mark.parametrize("args", [("abc", "def"), (), ({"t": 1},)])
def test_message_that_does_not_fit_its_arguments(
    args: tuple[Any, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """logging's own error handler would print the raw arguments on stderr."""
    made = record("token=abc %s %d %d", *args)
    logging.StreamHandler(io.StringIO()).handle(made)
    assert "abc" not in made.getMessage()
    assert capsys.readouterr().err == ""


def test_argument_whose_str_fails() -> None:
    class Broken:
        def __str__(self) -> str:
            raise RuntimeError

    assert "Broken" in record("%s", Broken()).getMessage()


def test_tracebacks_and_stacks() -> None:
    remember(SECRET)
    out = io.StringIO()
    logger, handler = logging.Logger("here"), logging.StreamHandler(out)
    logger.addHandler(handler)
    handler.addFilter(RedactSecrets())
    try:
        try:
            raise KeyError(SECRET)
        except KeyError as error:
            error.add_note(f"token={SECRET}")
            raise ExceptionGroup(JWT, [ValueError(f"no {SECRET} here")]) from error
    except ExceptionGroup:
        logger.exception("failed", stack_info=True)
    assert "0paque" not in out.getvalue()
    assert "eyJ" not in out.getvalue()
    assert out.getvalue().count(REDACTED) >= 4
    assert "Traceback" in out.getvalue()
    assert "Stack" in out.getvalue()


def test_colours_of_uvicorn() -> None:
    """Uvicorn formats a second, coloured message from the same arguments."""
    formatter = DefaultFormatter("%(message)s", use_colors=True)
    plain = record("at %s", "/?token=abc", color_message="AT %s")
    assert formatter.format(plain) == "AT /?token=[redacted]"
    joined = record("token=%s", "abc", color_message="TOKEN=%s")
    assert formatter.format(joined) == "token=[redacted]"


@pytest.mark.parametrize(
    "path", ["/ws?token=abc", "/?authorization:", "/?token=", "/%s?%74oken=abc"]
)
def test_access_log_of_uvicorn(path: str) -> None:
    args = ("127.0.0.1:1", "GET", path, "1.1", 200)
    made = record('%s - "%s %s HTTP/%s" %d', *args, name="uvicorn.access")
    assert isinstance(made.args, tuple)
    assert (made.args[0], made.args[4]) == ("127.0.0.1:1", 200)
    line = AccessFormatter('"%(request_line)s" %(status_code)s', use_colors=False).format(made)
    assert line == f'"GET {redact(path)} HTTP/1.1" 200 OK'
    assert "abc" not in line


def test_long_frame_is_redacted_before_it_is_abridged() -> None:
    """websockets prints the ends of a long frame: half a token in each."""
    token = "opaque-head-" + "x" * 60 + "-opaque-tail"
    said = Frame(Opcode.TEXT, f"Session cookie is: {token}".encode())
    assert "opaque-head" in f"{said}"
    assert "opaque-tail" in f"{said}"
    remember(token)
    assert record("> %s", said).getMessage().startswith(f"> TEXT 'Session cookie is: {REDACTED}'")


def test_frames_that_are_no_text_stay_as_they_are() -> None:
    frame = Frame(Opcode.BINARY, b"\xff\x00\x01")
    assert record("> %s", frame).args == (frame,)


# --- real loggers --------------------------------------------------------------------------------


@contextmanager
def captured(name: str) -> Iterator[Callable[[], str]]:
    """What a logger with our filter prints, at every level."""
    out, logger = io.StringIO(), logging.getLogger(name)
    held = (logger.level, logger.propagate, logger.handlers[:], logger.filters[:])
    logger.setLevel(1)
    logger.propagate, logger.handlers = False, [logging.StreamHandler(out)]
    logs.install()
    try:
        yield out.getvalue
    finally:
        logger.setLevel(held[0])
        logger.propagate, logger.handlers, logger.filters = held[1:]


def test_trace_of_uvicorn_prints_the_scope() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept", "subprotocol": "bearer"})

    async def nothing(*_: Any) -> Any:
        return {}

    scope: Any = {
        "type": "websocket",
        "path": "/ws",
        "raw_path": b"/ws",
        "query_string": b"q=1&%74oken=sesame&x=2",
        "headers": [(b"cookie", b"session=sesame")],
        "subprotocols": ["bearer", "sesame"],
        "client": ("127.0.0.1", 1),
        "state": {},
    }
    with captured("uvicorn.asgi") as printed:
        logging.addLevelName(TRACE_LOG_LEVEL, "TRACE")
        anyio.run(MessageLoggerMiddleware(app), scope, nothing, nothing)
    assert "sesame" not in printed()
    assert "Started scope=" in printed()
    assert "q=1&%74oken=[redacted]&x=2" in printed()
    assert "websocket.accept" in printed()


@pytest.mark.parametrize("name", ["uvicorn.error", "websockets.server"])
def test_debug_of_websockets_prints_the_handshake(name: str) -> None:
    request = (
        "GET /ws?token=sesame HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
        "Cookie: theme=dark; session=sesame\r\nAuthorization: Bearer sesame\r\n"
        "Sec-WebSocket-Protocol: bearer, sesame\r\n\r\n"
    )
    with captured(name) as printed:
        protocol = ServerProtocol(logger=logging.getLogger(name))
        protocol.receive_data(request.encode())
        (event,) = protocol.events_received()
        protocol.send_response(protocol.accept(event))  # type: ignore[arg-type]
        protocol.send_text(f'{{"token":"sesame","jwt":"{JWT}"}}'.encode())
    assert "sesame" not in printed()
    assert "eyJ" not in printed()
    assert "< GET /ws?token=[redacted] HTTP/1.1" in printed()
    assert "< Authorization: [redacted]" in printed()
    assert "> TEXT" in printed()


@contextmanager
def as_before() -> Iterator[None]:
    """Give the loggers back as they were."""
    loggers = [logging.getLogger(name) for name in ("uvicorn", *logs.LOGGERS)]
    held = [(one.level, one.propagate, one.handlers[:]) for one in loggers]
    try:
        yield
    finally:
        for one, (level, propagate, handlers) in zip(loggers, held, strict=True):
            one.setLevel(level)
            one.propagate, one.handlers = propagate, handlers


def test_install_is_idempotent_and_survives_uvicorns_configuration() -> None:
    for name in logs.LOGGERS:
        with as_before():
            logs.install()
            logging.config.dictConfig(copy.deepcopy(LOGGING_CONFIG))
            filters = logging.getLogger(name).filters
            assert [type(each) for each in filters].count(RedactSecrets) == 1


def test_configuration_filters_the_records_of_every_logger(
    capsys: pytest.CaptureFixture[str],
) -> None:
    untouched = copy.deepcopy(LOGGING_CONFIG)
    with as_before():
        logging.config.dictConfig(logs.config("debug"))
        logging.getLogger("chatserver.some.child").debug("token=sesame")
        logging.getLogger("uvicorn.error").warning("token=%s", "sesame")
    assert capsys.readouterr().err.count("token=[redacted]") == 2
    assert untouched == LOGGING_CONFIG


@pytest.mark.parametrize(
    ("level", "path", "status", "logged"),
    [
        ("info", "/healthz", 200, False),
        ("info", "/chat/readyz", 200, False),
        ("info", "/readyz", 503, True),
        ("info", "/", 200, True),
        ("debug", "/healthz", 200, True),
    ],
)
def test_probes_are_quiet(
    level: str, path: str, status: int, logged: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    with as_before():
        logging.config.dictConfig(logs.config(level))
        access = logging.getLogger("uvicorn.access")
        access.info('%s - "%s %s HTTP/%s" %d', "127.0.0.1:1", "GET", path, "1.1", status)
    printed = capsys.readouterr().out
    assert (f'"GET {path} HTTP/1.1" {status}' in printed) == logged


def test_remembering_outlives_the_function_that_did_it() -> None:
    """Uvicorn logs an endpoint's traceback in its task, after the endpoint was left."""

    def endpoint() -> None:
        remember(SECRET)

    def task() -> str:
        endpoint()
        return redact(SECRET)

    assert contextvars.copy_context().run(task) == REDACTED
    assert redact(SECRET) == SECRET
