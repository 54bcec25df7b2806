/** The WebSocket address of a path on the page's own host: http becomes ws, https becomes wss. */
export function address(path) {
  const url = new URL(path, location.href);
  url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
  return url;
}
