/** Where the client stands in the channels of a class that recovers, as the messages tell it. */

export class Positions {
  #since = new Map();

  /** Begins with what the query says. */
  begin(text) {
    const given = parsed(text) ?? {};
    this.#since = new Map(Object.entries(given));
  }

  received(data) {
    const { channel, since, offset } = parsed(data) ?? {};
    if (since) this.#since.set(channel, since);
    else if (offset && this.#since.has(channel)) this.#since.set(channel, { ...this.#since.get(channel), offset });
  }

  /** What the query says of a client that comes back. */
  get text() {
    return this.#since.size ? JSON.stringify(Object.fromEntries(this.#since)) : "";
  }
}

function parsed(data) {
  try {
    return JSON.parse(data);
  } catch {
    return null; // an answer may be anything
  }
}
