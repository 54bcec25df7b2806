/**
 * The same connection as a command and as code. A token is never written out: the reader puts it
 * into the place of `TOKEN`.
 *
 * A request: `{url, subprotocols, headers, token, frame}`; `token` is where it stands,
 * "query", "subprotocol" or "", and `frame` is a text, an `ArrayBuffer` or null.
 */

export function wscat({ url, subprotocols, headers, token }) {
  const quoted = (token === "query" ? `${withQuery(url)}token=` : url).replace(/[$`"\\]/g, "\\$&");
  const address = token === "query" ? `${quoted}$TOKEN` : quoted;
  const parts = ["wscat", "-c", `"${address}"`];
  if (token === "subprotocol") parts.push("-s", "bearer", "-s", '"$TOKEN"');
  for (const name of subprotocols) parts.push("-s", shell(name));
  for (const [name, value] of headers) parts.push("-H", shell(`${name}: ${value}`));
  return parts.join(" ");
}

export function python({ url, subprotocols, headers, token, frame }) {
  const offered = [...(token === "subprotocol" ? ['"bearer"', "TOKEN"] : []), ...subprotocols.map(literal)];
  const address = token === "query" ? `${literal(`${withQuery(url)}token=`)} + quote(TOKEN, safe="")` : literal(url);
  const options = ["URL"];
  if (offered.length) options.push(`subprotocols=[${offered.join(", ")}]`);
  if (headers.length) {
    options.push(`additional_headers={${headers.map((pair) => pair.map(literal).join(": ")).join(", ")}}`);
  }
  return [
    ...(token ? ["import os"] : []),
    ...(token === "query" ? ["from urllib.parse import quote"] : []),
    ...(token ? [""] : []),
    "from websockets.sync.client import connect",
    "",
    ...(token ? ['TOKEN = os.environ["TOKEN"]'] : []),
    `URL = ${address}`,
    "",
    `with connect(${options.join(", ")}) as websocket:`,
    ...(frame === null ? [] : [`    websocket.send(${pythonFrame(frame)})`]),
    "    for message in websocket:",
    "        print(message)",
    "",
  ].join("\n");
}

export function javascript({ url, subprotocols, token, frame }) {
  const offered = [...(token === "subprotocol" ? ['"bearer"', "TOKEN"] : []), ...subprotocols.map(literal)];
  const address = token === "query" ? `${literal(`${withQuery(url)}token=`)} + encodeURIComponent(TOKEN)` : literal(url);
  const protocols = offered.length ? `, [${offered.join(", ")}]` : "";
  return [
    ...(token ? ['const TOKEN = "$TOKEN";'] : []),
    `const socket = new WebSocket(${address}${protocols});`,
    ...(frame === null ? [] : [`socket.addEventListener("open", () => socket.send(${javascriptFrame(frame)}));`]),
    'socket.addEventListener("message", ({ data }) => console.log(data));',
    'socket.addEventListener("close", ({ code, reason }) => console.log("closed", code, reason));',
    "",
  ].join("\n");
}

function withQuery(url) {
  return url + (url.includes("?") ? "&" : "?");
}

function hex(buffer) {
  return [...new Uint8Array(buffer)].map((byte) => byte.toString(16).padStart(2, "0")).join(" ");
}

function pythonFrame(frame) {
  return typeof frame === "string" ? literal(frame) : `bytes.fromhex("${hex(frame)}")`;
}

function javascriptFrame(frame) {
  if (typeof frame === "string") return literal(frame);
  return `new Uint8Array([${[...new Uint8Array(frame)].join(", ")}])`;
}

/** A text as both Python and JavaScript write it. */
function literal(text) {
  const escaped = (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`;
  return JSON.stringify(text).replace(/[\u007f-\u009f\u2028\u2029]/g, escaped);
}

/** A text as one word of a shell. */
function shell(text) {
  return /^\w[\w.:@%+-]*$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`;
}
