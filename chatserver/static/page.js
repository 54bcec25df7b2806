/** The page: three panels, the tabs over them, and what concerns them all. */

import { Panel, address, memory } from "./panel.js";
import { tabs } from "./tabs.js";

const HUES = 6; // colours for the names of others, in page.css

class EchoPanel extends Panel {
  emptyText = "Send something, and the server says it back.";
}

class ItemsPanel extends Panel {
  refusedAdvice = "Check the token and the other fields.";
  emptyText = "Connect with an item ID and a token, then send something.";

  start() {
    this.fields = this.root.querySelector(".fields");
    const { item_id, q } = this.fields.elements;
    for (const field of [item_id, q]) {
      field.value = memory.get(`field.${field.name}`) ?? field.value;
      field.addEventListener("input", () => memory.set(`field.${field.name}`, field.value));
    }
    this.fields.addEventListener("input", () => this.#preview());
    this.fields.addEventListener("submit", (event) => {
      event.preventDefault();
      this.connect();
    });
    super.start();
    this.#preview();
  }

  /** The form's own button connects; the other one is there while something is going on. */
  changed({ name }) {
    const resting = name === "idle" || name === "closed";
    if (resting && document.activeElement === this.switch) {
      this.fields.querySelector("button").focus();
    }
    this.switch.hidden = resting;
  }

  url() {
    const { item_id, token, q } = this.fields.elements;
    const id = item_id.value;
    const usable = id !== "" && id !== "." && id !== "..";
    item_id.setAttribute("aria-invalid", String(!usable));
    if (!usable) {
      item_id.focus();
      this.complain(id === "" ? "An item ID is needed." : `"${id}" can't be an item ID in an address.`);
      return null;
    }
    this.connectedId = id;
    return this.#address(id, token.value, q.value);
  }

  #address(id, token, q) {
    const url = address(this.path.replace("{item_id}", () => encodeURIComponent(id.toWellFormed())));
    const query = [];
    if (token !== "") query.push(`token=${encodeURIComponent(token.toWellFormed())}`);
    if (q.trim() !== "") query.push(`q=${encodeURIComponent(q.trim().toWellFormed())}`);
    url.search = query.join("&");
    return url;
  }

  #preview() {
    if (!["idle", "closed"].includes(this.connection.state.name)) return;
    const { item_id, token, q } = this.fields.elements;
    this.addressLine.textContent = this.shownAddress(
      this.#address(item_id.value, token.value, q.value),
    );
  }

  /** Without the token: people share their screens. */
  shownAddress(url) {
    return url.href.replace(/([?&]token=)[^&]*/, "$1…");
  }

  answerTo(text) {
    return `Message text was: ${text}, for item ID: ${this.connectedId}`;
  }
}

class ChatPanel extends Panel {
  emptyText = "Nobody has said anything yet. Open this page in a second window to talk to yourself.";
  #unechoed = []; // own messages that have not come round by way of everyone yet

  start(clientId) {
    this.clientId = clientId;
    this.root.querySelector(".whoami").textContent = `client #${clientId}`;
    super.start();
  }

  url() {
    this.#unechoed = [];
    return address(this.path.replace("{client_id}", encodeURIComponent(this.clientId)));
  }

  answerTo(text) {
    return `You wrote: ${text}`;
  }

  showSent() {
    // "You wrote: …" is about to say so
  }

  showReceived(text) {
    const [, label, id, said] = /^(You wrote: |Client #(-?\d+) says: )([^]*)$/.exec(text) ?? [];
    if (label === "You wrote: ") {
      const message = this.log.add("own", said, { label });
      this.#unechoed.push({ said, message });
    } else if (label !== undefined) {
      if (!this.#cameRound(id, said, text)) this.#news("other", said, { label, hue: Math.abs(Number(id)) % HUES });
    } else if (/^Client #-?\d+ left the chat$/.test(text)) {
      this.#news("system", text);
    } else {
      this.#news("other", text);
    }
  }

  /** What everyone was told of an own message becomes its receipt, rather than a second bubble. */
  #cameRound(id, said, text) {
    if (id !== String(this.clientId)) return false;
    const index = this.#unechoed.findIndex((own) => own.said === said);
    if (index < 0) return false; // somebody else with the same number
    const [{ message }] = this.#unechoed.splice(index, 1);
    this.log.annotate(message, text);
    return true;
  }

  #news(kind, text, options) {
    this.log.add(kind, text, options);
    this.page.onNews(this);
  }
}

/** This browser tab's number: kept over a reload, and not shared with a duplicated tab. */
async function claimClientId() {
  const fresh = () => String(10_000 + (crypto.getRandomValues(new Uint32Array(1))[0] % 90_000));
  const remembered = memory.get("client-id") ?? "";
  let id = /^\d{1,15}$/.test(remembered) ? remembered : fresh();
  if (!(await lock(id))) {
    id = fresh();
    await lock(id);
  }
  memory.set("client-id", id);
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

/** Counts what came while nobody looked: at a tab of the page, or at the page. */
function newsCounter() {
  const title = document.title;
  let unseen = 0;
  const counts = new Map();
  const show = (panel) => {
    const count = counts.get(panel) ?? 0;
    const badge = panel.tab.querySelector(".unread");
    badge.textContent = count > 99 ? "99+" : String(count);
    badge.hidden = count === 0;
    badge.title = `${count} new`;
  };
  return {
    add(panel) {
      if (panel.root.hidden) {
        counts.set(panel, (counts.get(panel) ?? 0) + 1);
        show(panel);
      }
      if (document.hidden) document.title = `(${(unseen += 1)}) ${title}`;
    },
    seen(panel) {
      counts.delete(panel);
      show(panel);
    },
    pageSeen() {
      unseen = 0;
      document.title = title;
    },
  };
}

const closeCodes = JSON.parse(document.getElementById("close-codes").textContent);
const announcer = document.getElementById("announcer");
const news = newsCounter();
const page = {
  announce: (text) => (announcer.textContent = text),
  onNews: (panel) => news.add(panel),
};
const echo = new EchoPanel("echo", closeCodes, page);
const items = new ItemsPanel("items", closeCodes, page);
const chat = new ChatPanel("chat", closeCodes, page);
const panels = [echo, items, chat];

const { all, select } = tabs(document.querySelector('[role="tablist"]'), (tab) => {
  news.seen(panels.find((panel) => panel.tab === tab));
  history.replaceState(null, "", `#${tab.id.replace("tab-", "")}`);
});
select(all.find((tab) => tab.id === `tab-${location.hash.slice(1)}`) ?? all[0]);

// Whoever comes back to the page, or to the network, need not wait for the next attempt.
const hurry = () => panels.forEach((panel) => panel.connection.reconnectNow());
addEventListener("online", hurry);
addEventListener("pageshow", hurry);
document.addEventListener("visibilitychange", () => {
  if (document.hidden) return;
  news.pageSeen();
  hurry();
});

echo.start();
items.start();
echo.connect();
chat.start(await claimClientId());
chat.connect();
