/** One tab's panel: its connection's state, its messages, and the box to write in. */

import { address } from "./address.js";
import { Log } from "./log.js";
import { recall, remember } from "./memory.js";
import { Outbox } from "./outbox.js";
import { explainRefusal, statusAt } from "./refusal.js";
import { Connection } from "./socket.js";

const { maxMessageSize } = document.querySelector("[data-max-message-size]").dataset;
const LARGEST_MESSAGE = Number(maxMessageSize); // bytes of UTF-8
const KEYS = "Enter sends, Shift + Enter starts a new line.";
const touch = matchMedia("(hover: none) and (pointer: coarse)"); // a keyboard without Shift + Enter
const PILL = {
  idle: () => "Not connected",
  connecting: () => "Connecting…",
  checking: () => "Connecting…",
  connected: () => "Connected",
  waiting: ({ until }) => `Retry in ${Math.max(1, Math.ceil((until - Date.now()) / 1000))} s`,
  closed: ({ refused, code }) => (refused ? "Refused" : code ? `Closed (${code})` : "Closed"),
};
const ACTION = {
  idle: "Connect",
  connecting: "Cancel",
  checking: "Cancel",
  connected: "Disconnect",
  waiting: "Retry now",
  closed: "Connect",
};

export class Panel {
  emptyText = "Nothing yet.";
  backText = "Connected again.";
  #ticking = 0;
  #announced = ""; // the last state said aloud
  #path = ""; // that it connects to
  #isOpen = false;
  #openedPath = ""; // the last one that it was connected to

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
    [this.pill, this.detail, this.command] = [find(".pill"), find(".detail"), find(".command")];
    [this.composer, this.sendButton, this.hint] = [find(".composer"), find(".send"), find(".hint")];
    this.action = find(".action");
    this.box = find("textarea");
    this.addressLine = find(".address");
    this.listElement = find(".log");
    this.jump = find(".jump");
    this.connection = new Connection({
      closeCodes,
      statusAt,
      onState: (state) => this.#changed(state),
      onMessage: (text) => this.showReceived(text, this.outbox.receive(text)),
    });
    this.outbox = new Outbox({
      send: (text) => this.connection.send(text),
      onState: (...how) => this.#delivery(...how),
      onSilence: () => this.connection.giveUp("The server did not answer."),
    });
  }

  /** Wires the panel up; a subclass's own fields are there by now. */
  start() {
    this.log = new Log(this.listElement, this.jump, this.emptyText);
    this.box.value = recall(`draft.${this.name}`) ?? "";
    this.box.enterKeyHint = touch.matches ? "enter" : "send";
    this.box.addEventListener("input", () => this.#drafted());
    this.box.addEventListener("keydown", (event) => this.#pressed(event));
    this.composer.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send();
    });
    this.action.addEventListener("click", () => this.act());
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

  /** Whether the fields say something else than what was connected with. */
  hasChanged() {
    return false;
  }

  /** What the empty list says while connected. */
  get invitation() {
    return this.emptyText;
  }

  /** What to do about a refusal by the endpoint itself: a sentence, and a command (its words). */
  advice() {
    return { sentence: "Its log says why." };
  }

  /** What the server says, in this order, once it has a text. */
  answersTo(text) {
    return [`Message text was: ${text}`];
  }

  /**
   * Shows what came.
   *
   * @param {string} text
   * @param {boolean} isAnswer whether it answers an own message, which shows that by itself
   */
  showReceived(text, isAnswer) {
    this.log.add("other", text);
  }

  // Connecting.

  connect() {
    const url = this.url();
    if (url === null) return;
    this.addressLine.textContent = this.shownAddress(url);
    this.#path = url.pathname;
    this.connection.connect(url);
  }

  get isResting() {
    return ["idle", "closed"].includes(this.connection.state.name);
  }

  /** Does what the panel's one button says. */
  act() {
    if (this.isResting || this.hasChanged()) this.connect();
    else if (this.connection.state.name === "waiting") this.connection.reconnectNow();
    else this.connection.disconnect();
  }

  /** Names the panel's one button; it stands out where nothing is going on without it. */
  showAction() {
    const { name } = this.connection.state;
    const anew = !this.isResting && this.hasChanged();
    this.action.textContent = anew ? "Reconnect" : ACTION[name];
    this.action.classList.toggle("quiet", !anew && !this.isResting && name !== "waiting");
  }

  #changed(state) {
    const { name } = state;
    this.log.invite(name === "connected" ? this.invitation : this.emptyText);
    clearInterval(this.#ticking);
    if (name === "waiting") this.#ticking = setInterval(() => this.#label(state), 200);
    const look = name === "closed" && state.code === 1000 ? "idle" : name;
    this.root.dataset.state = this.pill.dataset.state = this.tab.dataset.state = look;
    this.#label(state);
    this.showAction();
    this.#explain(state);
    this.#opened(state);
    this.#judge();
    this.#announce(state);
  }

  #label(state) {
    this.pill.textContent = PILL[state.name](state);
  }

  /** Marks in the log where the connection ended and where it is back, and tells the outbox. */
  #opened(state) {
    const isOpen = state.name === "connected";
    if (isOpen === this.#isOpen) return;
    this.#isOpen = isOpen;
    if (isOpen) {
      const isBack = this.#path === this.#openedPath;
      if (this.#openedPath !== "") this.log.mark(isBack ? this.backText : `Connected to ${this.#path}`);
      this.#openedPath = this.#path;
      this.outbox.connected();
    } else {
      if (state.name === "waiting") this.log.mark("Connection lost.");
      if (state.name === "closed") {
        this.log.mark(state.code === 1000 ? "Disconnected." : "Connection closed.");
      }
      this.outbox.disconnected();
    }
  }

  /** Why it is not connected, in words; while an attempt is made, those about the one before. */
  #explain(state) {
    if (["connecting", "checking"].includes(state.name)) return;
    this.detail.textContent = this.describe(state);
    this.detail.hidden = this.detail.textContent === "";
    this.#suggest(state.status === 426 ? this.advice().command : []);
  }

  #suggest(words = []) {
    this.command.replaceChildren();
    for (const word of words) {
      const part = document.createElement("span");
      part.textContent = word;
      this.command.append(part, " ");
    }
    this.command.hidden = words.length === 0;
  }

  describe({ name, code, meaning, reason, problem, refused, status }) {
    if (name !== "waiting" && name !== "closed") return "";
    const parts = [problem ?? `Closed with code ${code}: ${meaning}`];
    if (reason && reason !== meaning) parts.push(`Reason: ${reason}`);
    if (refused) parts.push(explainRefusal(status, this.advice().sentence));
    else if (name === "closed" && code !== 1000 && code !== undefined) parts.push("Not trying again by itself.");
    return parts.join(" ");
  }

  /** Says a change aloud; of all the attempts to come back, only the first. */
  #announce(state) {
    if (!["connected", "waiting", "closed"].includes(state.name)) return;
    if (state.name === "waiting" && this.#announced === "waiting") return;
    this.#announced = state.name;
    if (this.root.hidden) return;
    this.page.announce(`${this.title}: ${this.pill.textContent}. ${this.describe(state)}`.trim());
  }

  // Writing.

  /** Enter sends, except on touch, where it is the only way to a new line. */
  #pressed(event) {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    if (touch.matches && !event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    this.#send();
  }

  #send() {
    const text = this.box.value.toWellFormed(); // as it is sent, and answered
    if (text.trim() === "") return;
    if (!this.#judge()) {
      this.page.announce(this.hint.textContent);
      return;
    }
    this.#post(text);
    this.box.value = "";
    this.#drafted();
    this.box.focus();
  }

  #post(text) {
    this.outbox.post(text, this.answersTo(text), this.log.add("own", text));
  }

  #delivery(message, state, text) {
    this.log.setDelivery(message, state, () => {
      message.remove();
      this.#post(text);
      // The button that had the focus is gone; the box would call a soft keyboard up.
      this.listElement.focus({ preventScroll: true });
    });
    if (state === "failed" && !this.root.hidden) this.page.announce("A message was not delivered.");
  }

  #drafted() {
    remember(`draft.${this.name}`, this.box.value);
    this.#judge();
  }

  /** Says whether what is written can be sent now, and why not. */
  #judge() {
    const size = new TextEncoder().encode(this.box.value).length;
    const tooLarge = size > LARGEST_MESSAGE;
    const isConnected = this.connection.state.name === "connected";
    let hint = touch.matches ? "" : KEYS;
    if (tooLarge) {
      hint = `This message has ${size.toLocaleString("en")} bytes, the server takes at most ${LARGEST_MESSAGE.toLocaleString("en")}.`;
    } else if (!isConnected) {
      hint = "What you type is kept for later.";
    }
    const sendable = isConnected && !tooLarge && this.box.value.trim() !== "";
    if (this.hint.textContent !== hint) this.hint.textContent = hint;
    this.hint.classList.toggle("warning", tooLarge);
    this.box.setAttribute("aria-invalid", String(tooLarge));
    this.sendButton.setAttribute("aria-disabled", String(!sendable));
    return sendable;
  }
}
