"""Redis behind TLS, on asyncio's own loop and on uvloop: the same, and only who can be trusted."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trustme

from chatserver.brokers.redis import RedisBroker, connections
from chatserver.errors import BrokerUnavailable
from chatserver.publication import Delivery, Publication
from tests.asgi import until
from tests.engines import Valkey

pytest_plugins = ["tests.engines"]
pytestmark = [pytest.mark.anyio, pytest.mark.live]


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": request.param}


@pytest.fixture
async def tls(valkey: Valkey, tmp_path: Path) -> AsyncIterator[str]:
    """The URL of a server that takes TLS off, in front of Valkey; its authority is in `ca.pem`."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", valkey.port)
        async with asyncio.TaskGroup() as group:
            group.create_task(carry(reader, inner_writer))
            group.create_task(carry(inner_reader, writer))

    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as server:
        port = server.sockets[0].getsockname()[1]
        yield valkey.url.replace("redis://", "rediss://").replace(
            f"127.0.0.1:{valkey.port}", f"localhost:{port}"
        )


async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    writer.close()


async def test_all_is_delivered_in_order_however_slow_the_receiver(
    tls: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading pauses, and goes on, many times."""
    monkeypatch.setattr(connections, "MOST_HEARD", 50_000)
    heard: list[object] = []

    def deliver(delivery: Delivery) -> None:
        assert isinstance(delivery, Publication)
        heard.append(delivery.data)

    async def written(channel: str) -> None:
        for _ in range(10):
            await asyncio.sleep(0)

    broker = RedisBroker(f"{tls}?ssl_ca_certs={tmp_path / 'ca.pem'}")
    broker.deliver, broker.written = deliver, written
    await broker.start()
    await broker.subscribe("tls")
    texts = [f"{number:20000}" for number in range(300)]
    await asyncio.gather(*(broker.publish("tls", text) for text in texts))
    await until(lambda: len(heard) == len(texts))
    assert heard == texts
    assert broker.health.state == "up"
    await broker.stop()


async def test_a_certificate_of_somebody_else_is_refused(tls: str) -> None:
    broker = RedisBroker(tls)
    with pytest.raises(BrokerUnavailable, match="certificate verify failed"):
        await broker.start()
