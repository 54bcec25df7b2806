// Bun's own WebSocket server (uWebSockets inside): publish/subscribe as its documentation shows it;
// /ws echoes.
// bun bun_server.js PORT
const server = Bun.serve({
  hostname: "127.0.0.1",
  port: Number(process.argv[2]),
  fetch(request, server) {
    const { pathname } = new URL(request.url);
    if (server.upgrade(request, { data: { member: pathname !== "/ws" } })) return;
    return new Response("Upgrade failed", { status: 500 });
  },
  websocket: {
    open(socket) {
      if (socket.data.member) socket.subscribe("chat");
    },
    message(socket, message) {
      if (socket.data.member) server.publish("chat", message);
      else socket.send(message);
    },
    close(socket) {
      if (socket.data.member) socket.unsubscribe("chat");
    },
  },
});
