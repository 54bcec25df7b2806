/**
 * The frames of a connection, both ways, the newest at the bottom. What comes between two pictures
 * of the screen is drawn together, so that thousands of frames a second don't stop the page. The
 * newest `KEPT` are kept, or fewer where they are large.
 *
 * Every text goes in as a text node, whoever wrote it.
 */

import { element } from "../element.js";

const KEPT = 500;
const KEPT_BYTES = 8 * 1024 * 1024;
const PREVIEW = 160; // characters of a frame in its row
const SHOWN = 100_000; // characters, or bytes of a binary frame, that an opened row shows
const ANNOUNCED_EVERY = 2_000; // ms between two announcements
const NEAR = 48; // px from the bottom that still count as being there
const time = new Intl.DateTimeFormat([], {
  hour: "2-digit",
  minute: "2-digit",
  second: "2-digit",
  fractionalSecondDigits: 3,
  hour12: false,
});
const encoder = new TextEncoder();
const ARROWS = { sent: "↑", received: "↓", event: "•" };

export class Frames {
  #entries = []; // those with a row, the oldest first
  #waiting = []; // those that get a row with the next picture
  #bytes = 0;
  #dropped = 0;
  #scheduled = false;
  #following = true;
  #missed = 0;
  #ids = new Map(); // of sent messages that wait for their answer
  #lastSent = null; // the newest sent frame, while nothing came after it
  #current = null; // the row that the keyboard is at
  #unannounced = 0;
  #announcing = 0;

  constructor(root, announce) {
    const find = (selector) => root.querySelector(selector);
    [this.list, this.empty, this.jump] = [find(".log"), find(".empty"), find(".jump")];
    [this.filter, this.ways, this.note] = [find(".filter"), find(".ways"), find(".dropped")];
    this.announce = announce;
    this.filter.addEventListener("input", () => this.#applyFilter());
    this.ways.addEventListener("change", () => this.#applyFilter());
    find(".clear").addEventListener("click", () => this.clear());
    this.jump.addEventListener("click", () => this.#toBottom());
    this.list.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    this.list.addEventListener("keydown", (event) => this.#pressed(event));
    this.list.addEventListener("click", (event) => {
      const head = event.target.closest(".head");
      if (head) this.#toggle(head);
    });
  }

  invite(sentence) {
    this.empty.textContent = sentence;
  }

  sent(data) {
    const entry = this.#add("sent", data);
    const id = idOf(entry.json);
    if (id !== undefined) this.#ids.set(JSON.stringify(id), entry);
    if (this.#ids.size > KEPT) this.#ids.delete(this.#ids.keys().next().value);
    this.#lastSent = entry;
  }

  received(data) {
    const entry = this.#add("received", data);
    const key = JSON.stringify(idOf(entry.json));
    const asked = this.#ids.get(key);
    if (asked) {
      this.#ids.delete(key);
      entry.after = `answer after ${milliseconds(entry.at - asked.at)}`;
    } else if (this.#lastSent) {
      entry.after = `next frame after ${milliseconds(entry.at - this.#lastSent.at)}`;
    }
    if (asked === this.#lastSent || !asked) this.#lastSent = null;
    this.#unannounced += 1;
    if (!this.#announcing) this.#announcing = setTimeout(() => this.#tell(), ANNOUNCED_EVERY / 4);
  }

  /** Something that happened to the connection itself. */
  event(sentence) {
    this.#ids.clear();
    this.#lastSent = null;
    this.#add("event", sentence);
  }

  clear() {
    this.#entries = [];
    this.#waiting = [];
    this.#bytes = this.#dropped = 0;
    this.#current = null;
    this.list.replaceChildren();
    this.#toBottom();
    this.#summarise();
  }

  #add(way, data) {
    const size = typeof data === "string" ? encoder.encode(data).length : data.byteLength;
    const entry = { way, data, size, json: way === "event" ? undefined : parsed(data), at: performance.now(), date: new Date(), after: "" };
    this.#waiting.push(entry);
    this.#bytes += size;
    while (this.#count() > KEPT || (this.#bytes > KEPT_BYTES && this.#count() > 1)) this.#drop();
    if (!this.#scheduled) {
      this.#scheduled = true;
      requestAnimationFrame(() => this.#draw());
    }
    return entry;
  }

  #count() {
    return this.#entries.length + this.#waiting.length;
  }

  #drop() {
    const oldest = this.#entries.length ? this.#entries.shift() : this.#waiting.shift();
    this.#bytes -= oldest.size;
    this.#dropped += 1;
    oldest.row?.remove();
  }

  #draw() {
    this.#scheduled = false;
    const rows = this.#waiting.map((entry) => this.#row(entry));
    this.#entries.push(...this.#waiting);
    this.#waiting = [];
    this.list.append(...rows);
    if (!this.#following) this.#miss(rows.filter((row) => !row.hidden).length);
    this.#summarise();
    if (this.#following) this.list.scrollTop = this.list.scrollHeight;
  }

  #summarise() {
    this.empty.hidden = this.#count() > 0;
    this.note.hidden = this.#dropped === 0;
    const [what, verb] = this.#dropped === 1 ? ["frame", "is"] : ["frames", "are"];
    this.note.textContent = `${this.#dropped.toLocaleString("en")} older ${what} ${verb} not kept.`;
  }

  #row(entry) {
    const row = element("li", `frame ${entry.way}`);
    entry.row = row;
    const opens = entry.way !== "event";
    const head = element(opens ? "button" : "div", "head");
    if (opens) Object.assign(head, { type: "button", ariaExpanded: "false", tabIndex: -1 });
    head.entry = entry;
    const arrow = element("span", "arrow", ARROWS[entry.way]);
    arrow.setAttribute("aria-hidden", "true");
    head.append(arrow, element("span", "visually-hidden", entry.way === "event" ? "" : `${entry.way} `));
    const stamp = element("time", "", time.format(entry.date));
    stamp.dateTime = entry.date.toISOString();
    head.append(stamp);
    if (opens) {
      head.append(element("span", "type", typeOf(entry)), element("span", "size", bytes(entry.size)));
      if (entry.after) head.append(element("span", "after", entry.after));
    }
    const line = element("span", "preview", preview(entry));
    line.dir = "auto";
    head.append(line);
    row.append(head);
    row.hidden = !this.#matches(entry);
    return row;
  }

  #toggle(head) {
    const opened = head.parentElement.querySelector(".body");
    this.#focus(head);
    head.ariaExpanded = String(!opened);
    if (opened) opened.remove();
    else head.after(element("pre", "body", whole(head.entry, this.list.clientWidth < 600 ? 8 : 16)));
  }

  // Reading it.

  #matches({ way, data, json }) {
    if (this.ways.value && way !== this.ways.value) return false;
    const wanted = this.filter.value.toLowerCase();
    if (!wanted) return true;
    return (typeof data === "string" ? data : hexLine(data)).toLowerCase().includes(wanted) || String(json?.type ?? "").includes(wanted);
  }

  #applyFilter() {
    for (const entry of this.#entries) entry.row.hidden = !this.#matches(entry);
    const shown = this.#entries.filter((entry) => !entry.row.hidden).length;
    this.announce(`${shown} of ${this.#entries.length} frames are shown.`);
  }

  /** One stop for Tab; arrows, Home and End move within the list. */
  #pressed(event) {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const heads = [...this.list.querySelectorAll(".frame:not([hidden]) > button.head")];
    if (heads.length === 0) return;
    const here = heads.indexOf(this.#current);
    const to = { ArrowDown: here + 1, ArrowUp: here < 0 ? -1 : here - 1, Home: 0, End: -1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    this.#focus(heads.at(Math.min(to, heads.length - 1)) ?? heads[0]);
  }

  #focus(head) {
    this.#current = head;
    head.focus();
  }

  #miss(count) {
    this.#missed += count;
    this.jump.textContent = `${this.#missed} new ${this.#missed === 1 ? "frame" : "frames"} ↓`;
    this.jump.hidden = this.#missed === 0;
  }

  #toBottom() {
    this.#following = true;
    this.#missed = 0;
    this.jump.hidden = true;
    this.list.scrollTop = this.list.scrollHeight;
  }

  #scrolled() {
    if (this.list.clientHeight === 0) return;
    const below = this.list.scrollHeight - this.list.scrollTop - this.list.clientHeight;
    if (below <= NEAR) {
      this.#following = true;
      this.#missed = 0;
      this.jump.hidden = true;
    } else if (!this.#scheduled) {
      this.#following = false;
    }
  }

  /** Says what came, at most once in two seconds. */
  #tell() {
    const count = this.#unannounced;
    this.#unannounced = 0;
    const newest = [...this.#entries, ...this.#waiting].findLast(({ way }) => way === "received");
    if (count === 1 && newest) this.announce(`Received ${typeOf(newest)}: ${preview(newest)}`);
    else if (count > 0) this.announce(`${count} frames received.`);
    this.#announcing = count > 0 ? setTimeout(() => this.#tell(), ANNOUNCED_EVERY) : 0;
  }
}

function parsed(data) {
  if (typeof data !== "string" || !/^\s*[[{]/.test(data)) return undefined;
  try {
    return JSON.parse(data);
  } catch {
    return undefined;
  }
}

function idOf(json) {
  return json !== null && typeof json === "object" && ["string", "number"].includes(typeof json.id) ? json.id : undefined;
}

function typeOf({ data, json }) {
  if (typeof data !== "string") return "binary";
  if (json === undefined) return "text";
  return typeof json?.type === "string" ? json.type.slice(0, 40) : "JSON";
}

function bytes(size) {
  return size < 1024 ? `${size} B` : `${(size / 1024).toLocaleString("en", { maximumFractionDigits: 1 })} KiB`;
}

function milliseconds(duration) {
  return `${duration.toLocaleString("en", { maximumFractionDigits: duration < 10 ? 1 : 0 })} ms`;
}

function preview({ data }) {
  if (typeof data !== "string") return hexLine(data.slice(0, 24)) + (data.byteLength > 24 ? " …" : "");
  return data.length > PREVIEW ? `${data.slice(0, PREVIEW)}…` : data;
}

/** What an opened row shows: JSON with indents as long as no number loses digits, or a hex dump. */
function whole({ data, json }, width) {
  if (typeof data !== "string") return hexDump(data, width);
  const isExact = json !== undefined && !/\d{16}/.test(data);
  const text = isExact ? JSON.stringify(json, null, 2) : data;
  return text.length > SHOWN ? `${text.slice(0, SHOWN)}\n… ${text.length - SHOWN} more characters` : text;
}

function hexLine(buffer) {
  return [...new Uint8Array(buffer)].map((byte) => byte.toString(16).padStart(2, "0")).join(" ");
}

export function hexDump(buffer, width) {
  const shown = new Uint8Array(buffer, 0, Math.min(buffer.byteLength, SHOWN / 10));
  const lines = [];
  for (let at = 0; at < shown.length; at += width) {
    const part = shown.slice(at, at + width);
    const letters = [...part].map((byte) => (byte >= 0x20 && byte < 0x7f ? String.fromCharCode(byte) : ".")).join("");
    lines.push(`${at.toString(16).padStart(6, "0")}  ${hexLine(part).padEnd(3 * width - 1)}  ${letters}`);
  }
  const rest = buffer.byteLength - shown.length;
  return [...lines, ...(rest ? [`… ${rest} more bytes`] : [])].join("\n");
}
