/** The items' panel: the fields that make its address, and what they have to do with a refusal. */

import { address } from "./address.js";
import { recall, remember } from "./memory.js";
import { Panel } from "./panel.js";

const { openMode } = document.querySelector("[data-open-mode]").dataset;

export class ItemsPanel extends Panel {
  emptyText = "Connect with an item ID and a token, then send something.";
  backText = "Connected again. Messages of others in between are not shown.";
  #used = ""; // the fields as they were when it connected

  start() {
    this.fields = this.root.querySelector(".fields");
    this.problem = this.fields.querySelector(".problem");
    const { item_id, q } = this.fields.elements;
    for (const field of [item_id, q]) {
      field.value = recall(`field.${field.name}`) ?? field.value;
      field.addEventListener("input", () => remember(`field.${field.name}`, field.value));
    }
    this.fields.addEventListener("input", () => this.#edited());
    this.fields.addEventListener("keydown", (event) => this.#pressed(event));
    super.start();
    this.#preview();
  }

  url() {
    const { item_id, token, q } = this.fields.elements;
    const problem = this.#problemOf(item_id.value, q.value);
    this.#complain(problem);
    if (problem) return null;
    this.itemId = item_id.value.toWellFormed();
    this.hasToken = token.value !== "";
    this.#used = this.#values();
    return this.#address();
  }

  get invitation() {
    return `This is item ${this.itemId}. Send something to it.`;
  }

  hasChanged() {
    return this.#values() !== this.#used;
  }

  /** Without the token: people share their screens. */
  shownAddress(url) {
    return url.href.replace(/([?&]token=)[^&]*/, "$1…");
  }

  advice() {
    if (!this.hasToken) return { sentence: "It wants a token." };
    if (openMode === "true") return { sentence: "Its log says why." };
    return {
      sentence:
        "Its log says why. With the server's token secret set, this prints a token that opens the item:",
      command: ["chatserver", "token", "--sub", "me", "--item", quoted(this.itemId)],
    };
  }

  answersTo(text) {
    return [`Message text was: ${text}, for item ID: ${this.itemId}`];
  }

  #values() {
    return JSON.stringify(["item_id", "token", "q"].map((name) => this.fields.elements[name].value));
  }

  #address() {
    const { item_id, token, q } = this.fields.elements;
    const url = address(this.path.replace("{item_id}", () => encoded(item_id.value)));
    const query = [];
    if (token.value !== "") query.push(`token=${encoded(token.value)}`);
    if (q.value.trim() !== "") query.push(`q=${encoded(q.value.trim())}`);
    url.search = query.join("&");
    return url;
  }

  /** Which field won't do, and why; what is right here may still be refused by the server. */
  #problemOf(id, q) {
    if (id === "") return ["item_id", "An item ID is needed."];
    if (id === "." || id === ".." || id.includes("/")) {
      return ["item_id", `"${id}" can't be an item ID in an address.`];
    }
    if (!/^(-?\d+)?$/.test(q.trim())) return ["q", "q is a whole number, or left empty."];
    return null;
  }

  #complain(problem) {
    const [wrong, sentence] = problem ?? [];
    for (const field of this.fields.elements) field.ariaInvalid = String(field.name === wrong);
    this.problem.textContent = sentence ?? "";
    this.problem.hidden = !problem;
    if (!problem) return;
    this.fields.elements[wrong].focus();
    this.page.announce(sentence);
  }

  #edited() {
    this.#complain(null);
    this.showAction();
    this.#preview();
  }

  /** Enter connects; it never ends a connection that was made with what the fields say. */
  #pressed(event) {
    if (event.key !== "Enter" || event.isComposing) return;
    event.preventDefault();
    const busy = ["connecting", "checking", "connected"].includes(this.connection.state.name);
    if (!busy || this.hasChanged()) this.act();
    if (!this.fields.checkVisibility()) this.action.focus({ preventScroll: true }); // they fold away
  }

  #preview() {
    if (this.isResting) this.addressLine.textContent = this.shownAddress(this.#address());
  }
}

function encoded(text) {
  return encodeURIComponent(text.toWellFormed());
}

/** A text as one word of a shell. */
function quoted(text) {
  return /^\w[\w.:@%+-]*$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`;
}
