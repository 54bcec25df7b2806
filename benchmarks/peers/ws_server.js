// node's `ws`: the broadcast of its README, to everyone in `clients`; /ws echoes.
// node ws_server.js PORT [compression]
const { WebSocketServer, WebSocket } = require("ws");

const server = new WebSocketServer({
  host: "127.0.0.1",
  port: Number(process.argv[2]),
  perMessageDeflate: process.argv[3] === "compression",
});
const members = new Set();

server.on("connection", (socket, request) => {
  socket.on("error", () => socket.terminate());
  if (request.url === "/ws") {
    socket.on("message", (data, isBinary) => socket.send(data, { binary: isBinary }));
    return;
  }
  members.add(socket);
  socket.on("close", () => members.delete(socket));
  socket.on("message", (data, isBinary) => {
    for (const member of members) {
      if (member.readyState === WebSocket.OPEN) member.send(data, { binary: isBinary });
    }
  });
});
