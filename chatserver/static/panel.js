/** One tab's panel: its connection's state, its messages, and the box to write in. */

import { Log } from "./log.js";
import { Connection } from "./socket.js";

const { maxMessageSize } = document.querySelector("[data-max-message-size]").dataset;
const LARGEST_MESSAGE = Number(maxMessageSize); // bytes of UTF-8
const KEYS = "Enter sends, Shift + Enter starts a new line.";
const PILL = {
  idle: () => "Not connected",
  connecting: () => "Connecting…",
  checking: () => "Connecting…",
  connected: () => "Connected",
  waiting: ({ until }) => `Reconnecting in ${Math.max(1, Math.ceil((until - Date.now()) / 1000))} s`,
  closed: ({ refused, code }) => (refused ? "Refused" : code ? `Closed (${code})` : "Closed"),
};
const SWITCH = {
  idle: "Connect",
  connecting: "Cancel",
  checking: "Cancel",
  connected: "Disconnect",
  waiting: "Reconnect now",
  closed: "Connect",
};

/** What this browser tab remembers across a reload. Never a token. */
export const memory = {
  get(key) {
    try {
      return sessionStorage.getItem(`chatserver.${key}`);
    } catch {
      return null; // storage can be switched off
    }
  },
  set(key, value) {
    try {
      sessionStorage.setItem(`chatserver.${key}`, value);
    } catch {
      // then it is not remembered
    }
  },
};

/** Asks the page's own server over HTTP; a gateway's 502 to 504 mean that it isn't there. */
async function isReachable() {
  try {
    const options = { method: "HEAD", cache: "no-store", signal: AbortSignal.timeout(5_000) };
    return (await fetch(location, options)).status < 500;
  } catch {
    return false;
  }
}

/** The WebSocket address of a path on the page's own host: http becomes ws, https becomes wss. */
export function address(path) {
  const url = new URL(path, location.href);
  url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
  return url;
}

export class Panel {
  refusedAdvice = "Its log says why.";
  emptyText = "Nothing yet.";
  #unanswered = []; // texts sent whose answer has not come
  #ticking = 0;
  #announced = ""; // the last state said aloud

  /**
   * @param {string} name "echo", "items" or "chat"
   * @param {object[]} closeCodes the server's table
   * @param {{announce: (text: string) => void, onNews: (panel: Panel) => void}} page
   */
  constructor(name, closeCodes, page) {
    this.name = name;
    this.page = page;
    this.root = document.getElementById(`panel-${name}`);
    this.tab = document.getElementById(`tab-${name}`);
    this.title = this.tab.textContent.trim();
    this.path = this.root.dataset.path;
    const find = (selector) => this.root.querySelector(selector);
    [this.pill, this.detail, this.switch] = [find(".pill"), find(".detail"), find(".switch")];
    [this.composer, this.sendButton, this.hint] = [find(".composer"), find(".send"), find(".hint")];
    this.box = find("textarea");
    this.addressLine = find(".address");
    this.listElement = find(".log");
    this.jump = find(".jump");
    this.connection = new Connection({
      closeCodes,
      isReachable,
      onState: (state) => this.#changed(state),
      onMessage: (text) => this.#received(text),
    });
  }

  /** Wires the panel up; a subclass's own fields are there by now. */
  start() {
    this.log = new Log(this.listElement, this.jump, this.emptyText);
    this.box.value = memory.get(`draft.${this.name}`) ?? "";
    this.box.addEventListener("input", () => this.#drafted());
    this.box.addEventListener("keydown", (event) => this.#pressed(event));
    this.composer.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send();
    });
    this.switch.addEventListener("click", () => this.#switched());
    this.#changed(this.connection.state);
  }

  // What a subclass may say otherwise.

  /** The address to connect to, or null where the fields don't make one. */
  url() {
    return address(this.path);
  }

  /** The same address as it may be shown. */
  shownAddress(url) {
    return url.href;
  }

  /** What the server answers to a text once it has it. */
  answerTo(text) {
    return `Message text was: ${text}`;
  }

  showSent(text) {
    this.log.add("own", text);
  }

  showReceived(text) {
    this.log.add("other", text);
  }

  // Connecting.

  connect() {
    const url = this.url();
    if (url === null) return;
    this.addressLine.textContent = this.shownAddress(url);
    this.#explain("");
    this.connection.connect(url);
  }

  #switched() {
    const { name } = this.connection.state;
    if (name === "waiting") this.connection.reconnectNow();
    else if (name === "idle" || name === "closed") this.connect();
    else this.connection.disconnect();
  }

  #changed(state) {
    const { name } = state;
    clearInterval(this.#ticking);
    if (name === "waiting") this.#ticking = setInterval(() => this.#label(state), 200);
    if (name !== "connected") this.#giveBack();
    const look = name === "closed" && state.code === 1000 ? "idle" : name;
    this.pill.dataset.state = this.tab.dataset.state = look;
    this.#label(state);
    this.switch.textContent = SWITCH[name];
    this.switch.classList.toggle("quiet", name !== "waiting" && name !== "closed");
    if (name !== "connecting" && name !== "checking") this.#explain(this.describe(state));
    this.#judge();
    this.#announce(state);
    this.changed?.(state);
  }

  #label(state) {
    this.pill.textContent = PILL[state.name](state);
  }

  /** Why it is not connected, in words. */
  describe({ name, code, meaning, reason, problem, refused }) {
    if (name !== "waiting" && name !== "closed") return "";
    const parts = [problem ?? `Closed with code ${code}: ${meaning}`];
    if (reason) parts.push(`Reason: ${reason}`);
    if (refused) parts.push(this.refusedAdvice);
    else if (name === "waiting") parts.push("Trying again by itself.");
    else if (code !== 1000 && code !== undefined) parts.push("Not trying again by itself.");
    return parts.join(" ");
  }

  #explain(text) {
    this.detail.textContent = text;
    this.detail.hidden = text === "";
  }

  /** A problem of the fields, before anything is sent. */
  complain(text) {
    this.connection.disconnect();
    this.#explain(text);
    this.page.announce(text);
  }

  /** Says a change aloud; of all the attempts to come back, only the first. */
  #announce(state) {
    if (!["connected", "waiting", "closed"].includes(state.name)) return;
    if (state.name === "waiting" && this.#announced === "waiting") return;
    this.#announced = state.name;
    if (this.root.hidden) return;
    this.page.announce(`${this.title}: ${this.pill.textContent}. ${this.describe(state)}`.trim());
  }

  // Messages.

  #received(text) {
    const answered = this.#unanswered.findIndex((sent) => this.answerTo(sent) === text);
    if (answered >= 0) this.#unanswered.splice(answered, 1);
    this.showReceived(text);
  }

  /** What was sent and never answered may be lost: say so, and put it back if there is room. */
  #giveBack() {
    const texts = this.#unanswered.splice(0);
    if (texts.length === 0) return;
    this.log.add("system", "The connection ended before the server answered your last message. It may not have arrived.");
    if (this.box.value === "") {
      this.box.value = texts.join("\n");
      this.#drafted();
    }
  }

  // Writing.

  #pressed(event) {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    this.#send();
  }

  #send() {
    const text = this.box.value;
    if (text === "") return;
    if (!this.#judge()) {
      this.page.announce(this.hint.textContent);
      return;
    }
    if (!this.connection.send(text)) return;
    this.#unanswered.push(text);
    this.showSent(text);
    this.box.value = "";
    this.#drafted();
    this.box.focus();
  }

  #drafted() {
    memory.set(`draft.${this.name}`, this.box.value);
    this.#judge();
  }

  /** Says whether what is written can be sent now, and why not. */
  #judge() {
    const size = new TextEncoder().encode(this.box.value).length;
    const tooLarge = size > LARGEST_MESSAGE;
    const connected = this.connection.state.name === "connected";
    let hint = KEYS;
    if (tooLarge) {
      hint = `This message has ${size.toLocaleString("en")} bytes, the server takes at most ${LARGEST_MESSAGE.toLocaleString("en")}.`;
    } else if (!connected) {
      hint = "Not connected. What you type is kept.";
    }
    if (this.hint.textContent !== hint) this.hint.textContent = hint;
    this.hint.classList.toggle("warning", tooLarge);
    this.box.setAttribute("aria-invalid", String(tooLarge));
    this.sendButton.setAttribute("aria-disabled", String(tooLarge || !connected));
    return connected && !tooLarge;
  }
}
