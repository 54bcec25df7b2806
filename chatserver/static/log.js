/**
 * The list of messages: the newest at the bottom, at most `KEPT` of them. It follows the
 * newest only while its reader is there; otherwise a button tells how many came.
 *
 * Every text goes in as a text node, whoever wrote it.
 */

import { element } from "./element.js";

const KEPT = 500;
const NEAR = 48; // px from the bottom that still count as being there
const time = new Intl.DateTimeFormat([], { hour: "2-digit", minute: "2-digit" });
const day = new Intl.DateTimeFormat([], { dateStyle: "full" });
const moment = new Intl.DateTimeFormat([], { dateStyle: "full", timeStyle: "medium" });

export class Log {
  #missed = 0;
  #following = true;
  #scheduled = false;
  #top = 0; // where its reader was: a list that is hidden forgets it
  #day = ""; // of the newest entry

  constructor(list, jump, emptyText) {
    this.list = list;
    this.jump = jump;
    this.empty = element("p", "empty", emptyText);
    list.append(this.empty);
    list.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    new ResizeObserver(() => this.#resized()).observe(list); // also when its tab is shown
    jump.addEventListener("click", () => {
      this.toBottom();
      list.focus({ preventScroll: true });
    });
  }

  /** Says what to do while there is no message. */
  invite(text) {
    this.empty.textContent = text;
  }

  /**
   * Adds a message.
   *
   * @param {"own" | "other" | "system"} kind whose it is
   * @param {string} text
   * @param {{label?: string, hue?: number}} options the label stands before the text
   * @returns {HTMLElement} the message
   */
  add(kind, text, { label, hue } = {}) {
    const message = element("div", `message ${kind}`);
    if (hue !== undefined) message.dataset.hue = hue;
    if (label) message.append(element("span", "who", label));
    else if (kind === "own") message.append(element("span", "visually-hidden", "You: "));
    const body = element("span", "text", text);
    body.dir = "auto";
    message.append(body);
    this.#append(message);
    if (kind === "own") this.#following = true;
    else if (!this.#following) this.#miss();
    this.#follow();
    return message;
  }

  /** Adds a line across the list: something that happened to the conversation itself. */
  mark(text) {
    const line = element("div", "mark");
    const words = element("span");
    words.append(element("span", "", text));
    line.append(words);
    this.#append(line, words);
    this.#follow();
  }

  /**
   * Tells beside an own message's time how it fares.
   *
   * @param {HTMLElement} message
   * @param {"slow" | "delivered" | "failed"} state
   * @param {() => void} onAgain the button of a failed one was pressed
   */
  setDelivery(message, state, onAgain) {
    message.querySelector(".delivery")?.remove();
    message.querySelector(".again")?.remove();
    message.dataset.delivery = state;
    message.querySelector(".meta").append(delivery(state));
    if (state === "failed") {
      const again = element("button", "again", "Send again");
      again.type = "button";
      again.addEventListener("click", onAgain);
      message.append(again);
    }
    this.#follow();
  }

  toBottom() {
    this.#following = true;
    this.#follow();
  }

  /** Puts an entry at the end with its time in a place, below the day if that is a new one. */
  #append(entry, place = entry) {
    const now = new Date();
    const stamp = element("time", "", time.format(now));
    stamp.dateTime = now.toISOString();
    stamp.title = moment.format(now);
    const meta = element("span", "meta");
    meta.append(stamp);
    place.append(meta);
    this.empty.remove();
    const today = day.format(now);
    if (this.#day !== "" && this.#day !== today) this.list.append(element("div", "mark day", today));
    this.#day = today;
    this.list.append(entry);
    while (this.list.childElementCount > KEPT) this.list.firstElementChild.remove();
  }

  #miss() {
    this.#missed += 1;
    this.jump.textContent = `${this.#missed} new ${this.#missed === 1 ? "message" : "messages"} ↓`;
    this.jump.hidden = false;
  }

  /** Scrolls to the bottom, once per frame however many messages came. */
  #follow() {
    if (!this.#following || this.#scheduled) return;
    this.#scheduled = true;
    requestAnimationFrame(() => {
      this.#scheduled = false;
      if (this.#following) this.list.scrollTop = this.list.scrollHeight;
    });
  }

  #resized() {
    if (this.#following) this.#follow();
    else this.list.scrollTop = this.#top;
  }

  #scrolled() {
    if (this.#scheduled || this.list.clientHeight === 0) return;
    this.#top = this.list.scrollTop;
    const below = this.list.scrollHeight - this.list.scrollTop - this.list.clientHeight;
    this.#following = below <= NEAR;
    if (!this.#following) return;
    this.#missed = 0;
    this.jump.hidden = true;
  }
}

function delivery(state) {
  const node = element("span", "delivery");
  node.ariaLive = "off"; // the page itself says aloud what matters
  const words = { slow: "sending…", delivered: "delivered", failed: "not delivered" }[state];
  if (state === "delivered") node.title = words; // over the tick that is seen instead
  node.append(element("span", state === "delivered" ? "visually-hidden" : "", words));
  return node;
}
