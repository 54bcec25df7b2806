"""Publishing from programs that are no server: `Publisher`, and `chatserver publish`."""

import asyncio
import multiprocessing
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, cast

import pytest

from chatserver.brokers.redis import RedisBroker
from chatserver.errors import BrokerUnavailable
from chatserver.hub import Hub
from chatserver.publication import History, Position
from chatserver.publisher import Publisher
from tests.engines import Valkey, free_port, until

pytest_plugins = ["tests.engines"]
pytestmark = [pytest.mark.anyio, pytest.mark.live]


@pytest.fixture
def publisher(valkey: Valkey) -> Iterator[Publisher]:
    with Publisher(valkey.url) as made:
        yield made


def history(valkey: Valkey, channel: str) -> History:
    async def read() -> History:
        hub = Hub(RedisBroker(valkey.url))
        await hub.start()
        try:
            return await hub.history(channel)
        finally:
            await hub.stop()

    return asyncio.run(read())


def said(valkey: Valkey, channel: str) -> list[Any]:
    return [publication.value for publication in history(valkey, channel).publications]


def test_it_publishes_text_bytes_and_json(valkey: Valkey, publisher: Publisher) -> None:
    for number, data in enumerate(("hé", b"\x00\xff", {"a": [1]}, "{}"), start=1):
        assert publisher.publish("kinds", data).offset == number
    assert said(valkey, "kinds") == ["hé", b"\x00\xff", {"a": [1]}, "{}"]


def test_an_id_is_published_once(valkey: Valkey, publisher: Publisher) -> None:
    first = publisher.publish("once", "a", id="order-17")
    assert publisher.publish("once", "b", id="order-17") == first
    with Publisher(valkey.url) as another:
        assert another.publish("once", "c", id="order-17") == first
    assert said(valkey, "once") == ["a"]


def test_threads_share_it(valkey: Valkey, publisher: Publisher) -> None:
    positions: list[Position] = []

    def publish() -> None:
        for _ in range(20):
            positions.append(publisher.publish("threads", "x"))

    threads = [threading.Thread(target=publish) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(position.offset for position in positions) == list(range(1, 161))


def _publish_in_child(publisher: Publisher, results: Any) -> None:
    results.put(publisher.publish("fork", "from the child").offset)


def test_it_may_be_used_before_and_after_a_fork(publisher: Publisher) -> None:
    """As in a Celery worker, whose module was imported before it forked."""
    assert publisher.publish("fork", "before").offset == 1
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    child = context.Process(target=_publish_in_child, args=(publisher, results))
    child.start()
    assert results.get(timeout=20) == 2
    child.join()
    assert child.exitcode == 0
    assert publisher.publish("fork", "after").offset == 3


async def test_it_keeps_of_a_channel_what_its_servers_keep(valkey: Valkey) -> None:
    hub = Hub(RedisBroker(valkey.url), rules={"long": {"history_size": 300}})
    await hub.start()
    await hub.publish("long", "0")
    with Publisher(valkey.url) as publisher:

        def publish() -> None:
            for number in range(1, 250):
                publisher.publish("long", f"{number}")

        await asyncio.to_thread(publish)
    assert len((await hub.history("long")).publications) == 250
    await hub.stop()


def test_a_process_may_fork_while_another_thread_connects() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        made = Publisher(f"redis://127.0.0.1:{silent.getsockname()[1]}/0", timeout=0.5)
        thread = threading.Thread(target=failing, args=(made, []))
        thread.start()
        until(lambda: made._outlet is not None, "the thread connects")
        context = multiprocessing.get_context("fork")
        child = context.Process(target=failing, args=(made, []))
        child.start()
        child.join(20)
        assert child.exitcode == 0
        thread.join()
        made.close()


def failing(publisher: Publisher, seconds: list[float]) -> None:
    began = time.monotonic()
    with pytest.raises(BrokerUnavailable, match=r"did not answer within 0\.5 s"):
        publisher.publish("a", "b")
    seconds.append(time.monotonic() - began)


def test_all_threads_wait_for_one_connection_and_no_longer_than_they_may() -> None:
    """The engine takes the connection and says nothing."""
    seconds: list[float] = []
    with socket.create_server(("127.0.0.1", 0)) as silent:
        made = Publisher(f"redis://127.0.0.1:{silent.getsockname()[1]}/0", timeout=0.5)
        threads = [threading.Thread(target=failing, args=(made, seconds)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        made.close()
    assert len(seconds) == 4
    assert max(seconds) < 3


def test_a_connection_that_takes_too_long_leaves_no_thread_behind() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        made = Publisher(f"redis://127.0.0.1:{silent.getsockname()[1]}/0", timeout=0.5)
        failing(made, [])
        assert not [each for each in threading.enumerate() if each.name == "chatserver-publisher"]


def test_closing_it_does_not_disturb_who_publishes(valkey: Valkey) -> None:
    made = Publisher(valkey.url)
    failed: list[Exception] = []

    def publish() -> None:
        try:
            for _ in range(200):
                made.publish("closing", "x")
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=publish) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        made.close()
    assert failed == []
    assert len(said(valkey, "closing")) == 100
    made.close()


async def test_it_does_not_block_an_event_loop(publisher: Publisher) -> None:
    with pytest.raises(RuntimeError, match=r"asyncio\.to_thread"):
        publisher.publish("a", "b")


def test_mistakes_are_said_at_once(publisher: Publisher) -> None:
    with pytest.raises(ValueError, match="must not be empty"):
        publisher.publish("", "x")
    with pytest.raises(TypeError, match="an id must be a str, got int"):
        publisher.publish("a", "x", id=cast("Any", 17))
    with pytest.raises(ValueError, match="an id must not be empty"):
        publisher.publish("a", "x", id="")
    with pytest.raises(TypeError):
        publisher.publish("a", object())
    with pytest.raises(ValueError, match="processes share"):
        Publisher("memory:")
    with pytest.raises(ValueError, match="scheme"):
        Publisher("http://127.0.0.1")


def test_an_engine_that_is_not_there_is_one_sentence_without_the_password() -> None:
    with pytest.raises(BrokerUnavailable, match=r"can't be reached") as raised:
        Publisher(f"redis://user:hunter2@127.0.0.1:{free_port()}/0").publish("a", "b")
    assert "hunter2" not in str(raised.value)


def test_it_waits_for_an_engine_that_comes_back_and_publishes_once() -> None:
    with Valkey("appendonly yes", "appendfsync always") as engine, Publisher(engine.url) as made:
        assert made.publish("a", "1").offset == 1
        engine.kill()
        back = threading.Timer(0.5, engine.start)
        back.start()
        assert made.publish("a", "2").offset == 2
        back.join()
        engine.kill()
        with pytest.raises(BrokerUnavailable), Publisher(engine.url, timeout=0.3) as hasty:
            hasty.publish("a", "3")
        with pytest.raises(BrokerUnavailable, match="can't be reached"):
            made.publish("a", "3", id="3")
        engine.start()
        assert made.publish("a", "3", id="3").offset == 3


def run(url: str, *arguments: str, lines: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
    command = [sys.executable, "-m", "chatserver", "publish", *arguments]
    environment = {"CHATSERVER_BROKER": url} if url else {}
    return subprocess.run(
        command, input=lines, capture_output=True, env=environment, timeout=30, check=False
    )


def test_the_command_publishes_a_text(valkey: Valkey) -> None:
    done = run(valkey.url, "command", "Hello there.")
    offset, epoch = done.stdout.decode().split()
    assert (done.returncode, offset, done.stderr) == (0, "1", b"")
    run(valkey.url, "command", '{"a": 1}', "--json")
    run("", "command", "by a flag", "--broker", valkey.url)
    found = history(valkey, "command")
    assert [each.value for each in found.publications] == ["Hello there.", {"a": 1}, "by a flag"]
    assert found.position == Position(3, epoch)


def test_the_command_publishes_each_line_of_the_standard_input(valkey: Valkey) -> None:
    done = run(valkey.url, "lines", "-", lines="one\r\nzwei ö\n\nlast".encode())
    assert done.returncode == 0
    assert [line.split()[0] for line in done.stdout.splitlines()] == [b"1", b"2", b"3", b"4"]
    assert said(valkey, "lines") == ["one", "zwei ö", "", "last"]
    run(valkey.url, "json", "-", "--json", lines=b'{"n": 1}\n[2]\n')
    assert said(valkey, "json") == [{"n": 1}, [2]]


@pytest.mark.parametrize(
    ("arguments", "lines", "sentence"),
    [
        (("a", "-"), b"good\n\xff\n", b"Line 2 can't be published"),
        (("a", "{", "--json"), b"", b"Line 1 can't be published"),
        (("a", "-", "--id", "1"), b"", b"--id with a single TEXT only"),
        (("a", "-", "--json"), b"[" * 200_000, b"Line 1 can't be published"),
        (("", "x"), b"", b"Expected a channel's name"),
        (("\udcff", "x"), b"", b"must not have lone surrogates"),
        (("a", "x", "--id", ""), b"", b"an id must not be empty"),
    ],
)
def test_mistakes_of_the_command_are_one_sentence(
    valkey: Valkey, arguments: tuple[str, ...], lines: bytes, sentence: bytes
) -> None:
    done = run(valkey.url, *arguments, lines=lines)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("", b"need a broker that processes share"),
        ("redis://:secret@127.0.0.1:1/0", b"redis://127.0.0.1:1/0 can't be reached"),
        ("http://example.org", b"CHATSERVER_BROKER"),
    ],
)
def test_a_broker_that_can_not_be_used_is_one_sentence(url: str, sentence: bytes) -> None:
    done = run(url, "a", "b")
    assert done.returncode == 2
    assert sentence in done.stderr
    assert done.stderr.count(b"\n") == 1
    assert b"secret" not in done.stderr


def test_the_command_ends_quietly_when_nobody_reads_its_answers(valkey: Valkey) -> None:
    command = f"yes | {sys.executable} -m chatserver publish pipe - | head -1"
    done = subprocess.run(
        command,
        shell=True,
        capture_output=True,
        env={**os.environ, "CHATSERVER_BROKER": valkey.url},
        timeout=30,
        check=True,
    )
    assert done.stdout.startswith(b"1 ")
    assert done.stderr == b""


def test_a_closed_standard_input_is_one_sentence(valkey: Valkey) -> None:
    done = subprocess.run(
        f"{sys.executable} -m chatserver publish closed - <&-",
        shell=True,
        capture_output=True,
        env={**os.environ, "CHATSERVER_BROKER": valkey.url},
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)


LAST = """
import atexit
import sys
from chatserver import Publisher
from chatserver.errors import BrokerUnavailable

def last():
    try:
        print(publisher.publish(sys.argv[2], "bye").offset)
    except BrokerUnavailable as error:
        print(error)
    publisher.close()

publisher = Publisher(sys.argv[1])
if sys.argv[3] == "connected":
    publisher.publish(sys.argv[2], "hello")
atexit.register(last)
"""


@pytest.mark.parametrize("state", ["connected", "new"])
def test_when_python_ends_it_publishes_or_says_why_not(valkey: Valkey, state: str) -> None:
    """Looking up a name takes a thread, which is not to be had any more."""
    url = f"redis://localhost:{valkey.port}"
    command = [sys.executable, "-W", "error", "-c", LAST, url, f"atexit:{state}", state]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    assert done.stderr == ""
    if state == "connected":
        assert done.stdout == "2\n"
    else:
        assert re.fullmatch(r"The broker .*can't be reached: .* shutdown\.\n", done.stdout)


def test_without_a_thread_it_is_one_sentence(
    valkey: Valkey, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Python 3.12 says it when it ends."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    with monkeypatch.context() as patched:
        patched.setattr("threading.Thread.start", refuse)
        with pytest.raises(BrokerUnavailable, match="can't be reached: can't create new thread"):
            publisher.publish("a", "x")
    assert publisher.publish("a", "x").offset >= 1
