"""The three examples of FastAPI's WebSocket tutorial as classes in FastAPI, with one page for all.

    pip install fastapi
    uvicorn examples.tutorial_in_fastapi:app

Then open http://127.0.0.1:8000 in two windows. The tutorial's own clients see no difference.
"""

from fastapi import FastAPI, WebSocket, WebSocketException, status
from fastapi.responses import HTMLResponse

from chatserver import Endpoint, FromCookie, FromPath, FromQuery, lifespan

app = FastAPI(lifespan=lifespan)


@app.websocket("/ws")
class Echo(Endpoint):
    encoding = "text"

    async def on_receive(self, websocket: WebSocket, data: str) -> None:
        await websocket.send_text(f"Message text was: {data}")


@app.websocket("/items/{item_id}/ws")
class Item(Endpoint):
    encoding = "text"
    reject_as = "policy"
    item_id: FromPath[str]
    q: FromQuery[int | None] = None
    token: FromQuery[str | None] = None
    session: FromCookie[str | None] = None

    async def authenticate(self, websocket: WebSocket) -> None:
        if self.session is None and self.token is None:
            raise WebSocketException(code=status.WS_1008_POLICY_VIOLATION)

    async def on_receive(self, websocket: WebSocket, data: str) -> None:
        credential = self.session or self.token
        await websocket.send_text(f"Session cookie or query token value is: {credential}")
        if self.q is not None:
            await websocket.send_text(f"Query parameter q is: {self.q}")
        await websocket.send_text(f"Message text was: {data}, for item ID: {self.item_id}")


@app.websocket("/ws/{client_id}")
class Chat(Endpoint):
    encoding = "text"
    reject_as = "policy"
    client_id: FromPath[int]
    channels = ("chat",)

    async def on_receive(self, websocket: WebSocket, data: str) -> None:
        await websocket.send_text(f"You wrote: {data}")
        await self.publish(f"Client #{self.client_id} says: {data}")

    async def on_disconnect(self, websocket: WebSocket, close_code: int) -> None:
        await self.publish(f"Client #{self.client_id} left the chat")


PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
  <meta charset="utf-8">
  <meta name="viewport" content="width=device-width, initial-scale=1">
  <link rel="icon" href="data:,">
  <title>WebSocket tutorial</title>
</head>
<body>
  <main>
    <h1>WebSocket tutorial</h1>
    <form id="connect">
      <p><label>Connect to
        <select id="to">
          <option value="echo">the echo</option>
          <option value="item">an item</option>
          <option value="chat">the chat</option>
        </select></label>
        <button>Connect</button></p>
      <p><label>Item ID <input id="item" value="foo"></label>
        <label>Token <input id="token" value="some-key-token"></label></p>
    </form>
    <form id="send">
      <p><label>Message <input id="message" autocomplete="off"></label> <button>Send</button></p>
    </form>
    <p id="state" role="status">Not connected</p>
    <ul id="messages" aria-live="polite"></ul>
  </main>
  <script>
    const byId = (id) => document.getElementById(id);
    const me = Date.now();
    let socket;

    function path() {
      const [item, token] = [byId("item"), byId("token")].map((x) => encodeURIComponent(x.value));
      return {echo: "/ws", item: `/items/${item}/ws?token=${token}`, chat: `/ws/${me}`};
    }

    byId("connect").onsubmit = (event) => {
      event.preventDefault();
      socket?.close();
      const opened = new WebSocket(`ws://${location.host}${path()[byId("to").value]}`);
      const say = (text) => { if (socket === opened) byId("state").textContent = text; };
      socket = opened;
      opened.onopen = () => say("Connected");
      opened.onclose = (end) => say(`Closed with ${end.code}`);
      opened.onmessage = (message) => {
        const line = document.createElement("li");
        line.textContent = message.data;
        byId("messages").append(line);
      };
    };

    byId("send").onsubmit = (event) => {
      event.preventDefault();
      if (socket?.readyState !== WebSocket.OPEN) return;
      socket.send(byId("message").value);
      byId("message").value = "";
    };
  </script>
</body>
</html>
"""


@app.get("/", response_class=HTMLResponse)
async def page() -> str:
    return PAGE
