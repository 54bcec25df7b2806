/** The chat's panel: whose a message is, and the number by which the others know this client. */

import { address } from "./address.js";
import { recall, remember } from "./memory.js";
import { Panel } from "./panel.js";

const HUES = 6; // colours for the names of others, in page.css

export class ChatPanel extends Panel {
  emptyText = "Nobody has said anything yet. Open this page in a second window to talk to yourself.";
  backText = "Connected again. Messages of others in between are not shown.";

  start(clientId) {
    this.clientId = clientId;
    this.root.querySelector(".whoami").textContent = `client #${clientId}`;
    super.start();
  }

  url() {
    return address(this.path.replace("{client_id}", encodeURIComponent(this.clientId)));
  }

  /** First to the writer, then to everyone: the writer is one of them. */
  answersTo(text) {
    return [`You wrote: ${text}`, `Client #${this.clientId} says: ${text}`];
  }

  showReceived(text, isAnswer) {
    if (isAnswer) return; // the own message says it already, and gets its tick
    const [, label, id, said] = /^(Client #(-?\d+) says: )([^]*)$/.exec(text) ?? [];
    const left = /^Client #-?\d+ left the chat$/.test(text);
    if (label === undefined) this.log.add(left ? "system" : "other", text);
    else this.log.add("other", said, { label, hue: Math.abs(Number(id)) % HUES });
    this.page.onNews(this);
  }
}

/** This browser tab's number: kept over a reload, and not shared with a duplicated tab. */
export async function claimClientId() {
  const fresh = () => String(10_000 + (crypto.getRandomValues(new Uint32Array(1))[0] % 90_000));
  const remembered = recall("client-id") ?? "";
  let id = /^\d{1,15}$/.test(remembered) ? remembered : fresh();
  if (!(await lock(id))) {
    id = fresh();
    await lock(id);
  }
  remember("client-id", id);
  return id;
}

/** Holds a number for as long as this browser tab lives; false if another one has it. */
function lock(id) {
  if (!navigator.locks) return Promise.resolve(true); // plain http on another machine
  return new Promise((resolve) => {
    navigator.locks
      .request(`chatserver client ${id}`, { signal: AbortSignal.timeout(300) }, () => {
        resolve(true);
        return new Promise(() => {});
      })
      .catch(() => resolve(false));
  });
}
