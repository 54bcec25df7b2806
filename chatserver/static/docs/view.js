/** One endpoint: its handshake, its messages and its frames. */

import { address } from "../address.js";
import { element } from "../element.js";
import { tabs } from "../tabs.js";
import { Connection } from "./connection.js";
import { Problem, field } from "./form.js";
import { Frames } from "./frames.js";
import { Positions } from "./positions.js";
import { javascript, python, wscat } from "./snippets.js";

const PILL = {
  idle: () => "Not connected",
  connecting: () => "Connecting…",
  connected: () => "Connected",
  closed: ({ code }) => (code ? `Closed (${code})` : "Refused"),
};
const ACTION = { idle: "Connect", connecting: "Cancel", connected: "Disconnect", closed: "Connect" };
const NOT_FROM_HERE = {
  header: "A browser can't send headers of a page's own: these go into the copied commands only.",
  cookie: "The browser sends its own cookies; these go into the copied commands only.",
};
const GROUPS = { path: "", query: "Query", header: "Headers", cookie: "Cookies" };
const IDS = ["for", "aria-controls", "aria-labelledby", "aria-describedby"];

export class View {
  #writers = []; // of the messages that the endpoint takes: {message, field}
  #tokenField = null;
  #positions = new Positions();
  #since = null; // the field that says where the client stands, if the endpoint recovers

  /**
   * @param {object} endpoint one of the description's
   * @param {Description} description
   * @param {{root: string, place: HTMLElement, announce: (text: string) => void, onState: (state: object) => void}} page
   */
  constructor(endpoint, description, page) {
    [this.endpoint, this.description, this.page] = [endpoint, description, page];
    this.root = copyOf(document.getElementById("view"), endpoint.key);
    page.place.append(this.root);
    this.find = (selector) => this.root.querySelector(selector);
    this.frames = new Frames(this.find(".frames"), page.announce);
    this.connection = new Connection({
      onState: (state) => this.#changed(state),
      onFrame: (data) => {
        this.frames.received(data);
        if (this.#since) this.#positions.received(data);
      },
    });
    this.#about();
    this.#parameters();
    this.#compose();
    this.#copies();
    this.#reference();
    this.find(".action").addEventListener("click", () => this.#act());
    this.root.addEventListener("input", () => this.#edited());
    this.root.addEventListener("change", () => this.#edited());
    this.#changed(this.connection.state);
    this.#edited();
  }

  #about() {
    this.find("h2").textContent = this.endpoint.title;
    this.find(".about .address").textContent = this.endpoint.address;
    paragraphs(this.find(".about .description"), this.endpoint.description);
  }

  // The handshake.

  #parameters() {
    const form = this.find(".parameters");
    const tokens = this.endpoint.takesToken;
    this.parameters = this.endpoint.parameters
      .filter((each) => !(tokens && each.in === "query" && each.name === "token"))
      .map((each) => ({ ...each, ...field(this.description, each.schema, each) }));
    if (this.endpoint.recovers) {
      const { node } = this.parameters.find((each) => each.in === "query" && each.name === "since");
      this.#since = node.querySelector("input");
    }
    for (const [where, title] of Object.entries(GROUPS)) {
      const nodes = this.parameters.filter((each) => each.in === where).map((each) => each.node);
      if (nodes.length === 0) continue;
      const group = element("fieldset", "group");
      if (title) group.append(element("legend", "", title));
      if (NOT_FROM_HERE[where]) group.append(element("p", "hint", NOT_FROM_HERE[where]));
      group.append(...nodes);
      form.append(group);
    }
    if (tokens) form.append(this.#tokenGroup());
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.isComposing || event.target.localName !== "input") return;
      event.preventDefault();
      if (!["connected", "connecting"].includes(this.connection.state.name)) this.#act();
    });
  }

  #tokenGroup() {
    const group = element("fieldset", "group");
    group.append(element("legend", "", "Token"));
    const box = element("input", "secret");
    Object.assign(box, { autocomplete: "off", spellcheck: false, ariaLabel: "Token", autocapitalize: "none" });
    const where = element("select");
    where.ariaLabel = "Where the token stands";
    where.append(new Option("as a subprotocol", "subprotocol"), new Option("in the query", "query"));
    const row = element("div", "row");
    row.append(box, where);
    group.append(row);
    this.#tokenField = { box, where };
    return group;
  }

  get #token() {
    const { box, where } = this.#tokenField ?? {};
    return { value: box?.value.trim() ?? "", where: where?.value ?? "" };
  }

  /** What the fields say of a handshake, without the token. */
  #handshake() {
    let path = this.endpoint.address;
    const query = [];
    const headers = [];
    const cookies = [];
    for (const each of this.parameters) {
      const value = each.read();
      if (value === undefined || value === null) continue;
      if (each.in === "path") path = path.replaceAll(`{${each.name}}`, () => this.#segment(each, value));
      else if (each.in === "query") for (const one of [value].flat()) query.push(`${encoded(each.name)}=${encoded(one)}`);
      else if (each.in === "header") headers.push([each.name, String(value)]);
      else cookies.push(`${each.name}=${value}`);
    }
    if (cookies.length) headers.push(["Cookie", cookies.join("; ")]);
    const url = address(this.page.root + path.replace(/^\//, ""));
    url.search = query.join("&");
    return { url, headers, subprotocols: this.endpoint.subprotocols };
  }

  #segment({ name, node, schema }, value) {
    const text = String(value);
    const control = node.querySelector("input, select, textarea");
    if (text === "") throw new Problem(control, `${name} is needed.`);
    const isPath = schema.description === "May contain `/`.";
    if (text === "." || text === ".." || (text.includes("/") && !isPath)) {
      throw new Problem(control, `"${text}" can't stand in an address for ${name}.`);
    }
    return text.split("/").map(encoded).join("/");
  }

  #act() {
    if (["connected", "connecting"].includes(this.connection.state.name)) {
      this.connection.disconnect();
      return;
    }
    const handshake = this.#attempt("connect-problem", () => this.#handshake());
    if (!handshake) return;
    const { value, where } = this.#token;
    const { url } = handshake;
    let subprotocols = handshake.subprotocols;
    if (value && where === "query") url.search += `${url.search ? "&" : "?"}token=${encoded(value)}`;
    if (value && where === "subprotocol") subprotocols = ["bearer", value, ...subprotocols];
    if (this.#since) this.#positions.begin(this.#since.value);
    const wantsToken = this.#tokenField && !value ? "It may want a token. " : "";
    this.connection.connect(url, subprotocols, `${wantsToken}Its log says why.`);
  }

  /** Runs what reads fields; a problem is shown beside them. */
  #attempt(place, read) {
    const shown = this.find(`#${this.prefix}${place}`);
    try {
      return read();
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem;
      problem.control.ariaInvalid = "true";
      shown.textContent = problem.message;
      shown.hidden = false;
      problem.control.focus();
      this.page.announce(problem.message);
      return null;
    }
  }

  get prefix() {
    return prefixOf(this.endpoint.key);
  }

  #changed(state) {
    const { name, code, reason, problem } = state;
    const pill = this.find(".pill");
    pill.textContent = PILL[name](state);
    this.root.dataset.state = pill.dataset.state = code === 1000 ? "idle" : name;
    this.find(".action").textContent = ACTION[name];
    this.find(".action").classList.toggle("quiet", name === "connected" || name === "connecting");
    const meaning = this.description.closeCodes.get(code)?.meaning ?? "This code has no meaning here.";
    const because = reason && reason !== meaning ? ` Reason: ${reason}` : "";
    const sentence = problem ?? (code === undefined ? "" : `Closed with code ${code}: ${meaning}${because}`);
    const detail = this.find(".detail");
    detail.textContent = sentence;
    detail.hidden = sentence === "";
    if (name === "connected") this.frames.event(`Connected${state.protocol ? `, subprotocol ${state.protocol}` : ""}.`);
    if (name === "closed") {
      this.frames.event(sentence);
      this.#stand();
    }
    this.frames.invite(name === "connected" ? "Nothing was sent or received yet." : "Connect, and the frames of both ways are shown here.");
    if (name === "connected" || name === "closed") this.page.announce(`${this.endpoint.title}: ${pill.textContent}. ${sentence}`.trim());
    this.#judge();
    this.page.onState(this.root.dataset.state);
  }

  /** The next connection begins where this one ended, unless somebody empties the field. */
  #stand() {
    if (!this.#since) return;
    this.#since.value = this.#positions.text;
    this.#edited();
  }

  // Messages.

  #compose() {
    const { takes } = this.endpoint;
    const kind = this.find(".kind");
    this.#writers = takes.filter((message) => message.payload.type === "object" && message.payload.properties)
      .map((message) => ({ message, field: field(this.description, message.payload, { name: message.title, required: true }) }));
    const select = kind.querySelector("select");
    for (const { message } of this.#writers) select.append(element("option", "", message.title));
    kind.hidden = this.#writers.length < 2;
    this.find(".modes").hidden = this.#writers.length === 0;
    const [formTab, rawTab] = this.root.querySelectorAll(".modes [role=tab]");
    const { select: selectTab } = tabs(this.find(".modes"), (tab) => {
      if (tab === rawTab && this.#writers.length) this.#prefill();
      if (this.copies) this.#edited();
    });
    selectTab(this.#writers.length ? formTab : rawTab);
    if (this.#writers.length) {
      Object.assign(this.find(".panel-raw"), { role: "tabpanel", ariaLabel: rawTab.textContent });
    }
    select.addEventListener("change", () => this.#chooseMessage());
    this.#chooseMessage();
    this.#raw(takes);
    this.find(".with-id").hidden = this.#writers.length === 0;
    this.find(".compose > form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send();
    });
    this.find(".panel-raw textarea").addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
      event.preventDefault();
      this.#send();
    });
  }

  get #writer() {
    return this.#writers[Math.max(0, this.find(".kind select").selectedIndex)];
  }

  get #isRaw() {
    return this.find(".panel-form").hidden;
  }

  #chooseMessage() {
    if (!this.#writer) return;
    paragraphs(this.find(".panel-form .description"), this.#writer.message.description);
    this.find(".form").replaceChildren(this.#writer.field.node);
    if (this.#isRaw) this.#prefill();
  }

  /** The raw frame begins with what the form says, as far as it says something. */
  #prefill() {
    const { field: writer, message } = this.#writer;
    let value = message.example ?? this.description.example(message.payload);
    try {
      value = writer.read();
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem;
    }
    this.find(".panel-raw select").value = "json";
    this.find(".panel-raw textarea").value = JSON.stringify(value, null, 2);
  }

  #raw([first]) {
    if (this.#writers.length) return;
    const select = this.find(".panel-raw select");
    const kinds = { "application/octet-stream": "binary", "text/plain": "text" };
    select.value = first ? (kinds[first.contentType] ?? "json") : "text";
    if (select.value === "json") {
      const example = first.example ?? this.description.example(first.payload);
      this.find(".panel-raw textarea").value = JSON.stringify(example, null, 2);
    }
  }

  /** What would be sent now: a text or an ArrayBuffer. */
  #frame() {
    if (!this.#isRaw) {
      const value = this.#writer.field.read();
      const wantsId = this.find(".with-id input").checked && value.id === undefined;
      return JSON.stringify(wantsId ? { ...value, id: newId() } : value);
    }
    const box = this.find(".panel-raw textarea");
    const kind = this.find(".panel-raw select").value;
    if (kind === "binary") return fromHex(box);
    if (kind === "json") {
      try {
        JSON.parse(box.value);
      } catch (error) {
        throw new Problem(box, `This is no JSON: ${error.message}`);
      }
    }
    return box.value.toWellFormed();
  }

  #send() {
    if (!this.connection.isOpen) {
      this.page.announce(this.find(".compose .bar .hint").textContent);
      return;
    }
    const data = this.#attempt("send-problem", () => this.#frame());
    if (data === null) return;
    this.connection.send(data);
    this.frames.sent(data);
  }

  #judge() {
    const isOpen = this.connection.state.name === "connected";
    this.find(".send").setAttribute("aria-disabled", String(!isOpen));
    this.find(".compose .bar .hint").textContent = isOpen ? "" : "Connect first.";
  }

  // What it says of itself.

  #edited() {
    for (const control of this.root.querySelectorAll("[aria-invalid=true]")) control.ariaInvalid = null;
    for (const problem of this.root.querySelectorAll(".problem")) problem.hidden = true;
    const request = this.#request();
    const { value, where } = this.#token;
    const shown = value && where === "query" ? `${request.url}${request.url.includes("?") ? "&" : "?"}token=…` : request.url;
    this.find(".url").textContent = shown;
    this.#write(request);
  }

  /** The request of the copies; what the fields don't say yet stands as it does in the route. */
  #request() {
    const { value, where } = this.#token;
    const token = value ? where : "";
    let frame = null;
    let handshake;
    try {
      handshake = this.#handshake();
    } catch {
      const url = address(this.page.root).href + this.endpoint.address.replace(/^\//, "");
      handshake = { url: { href: url }, headers: [], subprotocols: this.endpoint.subprotocols };
    }
    try {
      frame = this.#frame();
    } catch {
      // then the copies send nothing
    }
    if (frame === "" || frame?.byteLength === 0) frame = null;
    return { ...handshake, url: handshake.url.href, token, frame };
  }

  #copies() {
    const { all, select } = tabs(this.find(".copies [role=tablist]"), () => {});
    this.copies = Object.entries({ wscat, python, javascript });
    for (const button of this.root.querySelectorAll(".copy")) {
      button.addEventListener("click", () => this.#copy(button.previousElementSibling));
    }
    select(all[0]);
  }

  async #copy(code) {
    try {
      await navigator.clipboard.writeText(code.textContent);
      this.page.announce("Copied.");
    } catch {
      getSelection().selectAllChildren(code); // no clipboard without https
      this.page.announce("It is selected: copy it with your keyboard.");
    }
  }

  #write(request) {
    for (const [name, snippet] of this.copies) {
      this.find(`#${this.prefix}panel-${name} pre`).textContent = snippet(request);
    }
    this.find(".token-hint").hidden = !request.token;
  }

  #reference() {
    const place = this.find(".messages");
    const { takes, sends } = this.endpoint;
    for (const [title, messages] of [["It takes", takes], ["It sends", sends]]) {
      if (messages.length === 0) continue;
      place.append(element("h4", "", title));
      for (const message of messages) place.append(this.#message(message));
    }
    place.hidden = takes.length + sends.length === 0;
    for (const { code, meaning, retry } of this.description.closeCodes.values()) {
      const row = element("tr");
      const number = element("th", "", String(code));
      number.scope = "row";
      row.append(number, element("td", "", meaning), element("td", "", retry ? "yes" : "no"));
      this.find("tbody").append(row);
    }
  }

  #message(message) {
    const node = element("div", "message-type");
    node.append(element("h5", "", message.title));
    const about = element("div", "description");
    paragraphs(about, message.description);
    node.append(about);
    if (message.contentType === "application/json") {
      const example = message.example ?? this.description.example(message.payload);
      node.append(element("pre", "", JSON.stringify(example, null, 2)));
    }
    return node;
  }
}

function prefixOf(key) {
  return `view-${key.replace(/\W/g, "_")}-`;
}

/** A copy of the template, with ids of its own. */
function copyOf(template, key) {
  const root = template.content.cloneNode(true).firstElementChild;
  const prefix = prefixOf(key);
  for (const node of [root, ...root.querySelectorAll("*")]) {
    if (node.id) node.id = prefix + node.id;
    for (const name of IDS) if (node.hasAttribute(name)) node.setAttribute(name, prefix + node.getAttribute(name));
  }
  return root;
}

/** Paragraphs of a docstring; what stands in backticks is code. */
function paragraphs(place, text) {
  const nodes = text.split(/\n\s*\n/).filter(Boolean).map((paragraph) => {
    const node = element("p");
    paragraph.split(/`+([^`]+)`+/).forEach((part, at) => node.append(at % 2 ? element("code", "", part) : part));
    return node;
  });
  place.replaceChildren(...nodes);
}

function encoded(value) {
  const also = (character) => `%${character.charCodeAt(0).toString(16).toUpperCase()}`;
  return encodeURIComponent(String(value).toWellFormed()).replace(/[!'()*]/g, also);
}

function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(8));
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

function fromHex(box) {
  const digits = box.value.replace(/0x|[\s,:]/gi, "");
  if (!/^([0-9a-f]{2})*$/i.test(digits)) throw new Problem(box, "Bytes are pairs of hex digits, such as 00 ff 1a.");
  return Uint8Array.from(digits.match(/../g) ?? [], (pair) => Number.parseInt(pair, 16)).buffer;
}
