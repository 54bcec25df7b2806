"""Litestar's channels plugin, in memory: a subscription in the background of a handler."""

# mypy: disable-error-code="import-not-found, untyped-decorator"

from litestar import Litestar, WebSocket, websocket
from litestar.channels import ChannelsPlugin
from litestar.channels.backends.memory import MemoryChannelsBackend
from litestar.exceptions import WebSocketDisconnect


@websocket("/ws/{client_id:int}")
async def chat(socket: WebSocket, client_id: int, channels: ChannelsPlugin) -> None:
    await socket.accept()
    async with (
        channels.start_subscription(["chat"]) as subscriber,
        subscriber.run_in_background(socket.send_text),
    ):
        try:
            while True:
                channels.publish(await socket.receive_text(), "chat")
        except WebSocketDisconnect:
            return


app = Litestar([chat], plugins=[ChannelsPlugin(backend=MemoryChannelsBackend(), channels=["chat"])])
