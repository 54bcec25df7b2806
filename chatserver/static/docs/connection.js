/** One WebSocket at a time, as it is: it never comes back by itself, so that each end is seen. */

import { explainRefusal, statusAt } from "../refusal.js";

const OPEN_WITHIN = 10_000; // ms for a handshake

export class Connection {
  #socket = null;
  #turn = 0; // counts attempts; whatever belongs to an earlier one is ignored
  #timer = 0;

  /**
   * @param {object} options
   * @param {(state: object) => void} options.onState `{name}`: idle, connecting, connected, closed
   * @param {(data: string | ArrayBuffer) => void} options.onFrame
   */
  constructor({ onState, onFrame }) {
    this.onState = onState;
    this.onFrame = onFrame;
    this.state = { name: "idle" };
  }

  get isOpen() {
    return this.state.name === "connected" && this.#socket.readyState === WebSocket.OPEN;
  }

  /**
   * @param {URL} url
   * @param {string[]} subprotocols
   * @param {string} advice about a refusal by the endpoint
   */
  connect(url, subprotocols, advice) {
    this.#abandon();
    const turn = this.#turn;
    const current = (handler) => (event) => turn === this.#turn && handler(event);
    this.#become({ name: "connecting" });
    try {
      this.#socket = new WebSocket(url, subprotocols);
    } catch (error) {
      this.#become({ name: "closed", problem: `The browser can't use this: ${error.message}` });
      return;
    }
    const socket = this.#socket;
    socket.binaryType = "arraybuffer";
    let opened = false;
    this.#timer = setTimeout(() => this.#refused(url, advice), OPEN_WITHIN);
    socket.addEventListener("open", current(() => {
      opened = true;
      clearTimeout(this.#timer);
      this.#become({ name: "connected", protocol: socket.protocol });
    }));
    socket.addEventListener("message", current(({ data }) => this.onFrame(data)));
    socket.addEventListener("close", current(({ code, reason }) => {
      if (opened) this.#become({ name: "closed", code, reason });
      else this.#refused(url, advice);
    }));
  }

  send(data) {
    this.#socket.send(data);
  }

  /** Closes an open connection, and waits for the other side's close; gives up an attempt. */
  disconnect() {
    if (this.state.name === "connected") {
      this.#socket.close(1000);
      return;
    }
    this.#abandon();
    this.#become({ name: "idle" });
  }

  #abandon() {
    this.#turn += 1;
    clearTimeout(this.#timer);
    this.#socket?.close(1000);
    this.#socket = null;
  }

  /** A browser says the same of every failure, so plain HTTP is asked. */
  async #refused(url, advice) {
    this.#abandon();
    const turn = this.#turn;
    const status = await statusAt(url);
    if (turn !== this.#turn) return;
    const problem =
      status === null
        ? "The server can't be reached, or it failed."
        : `The server refused this connection. ${explainRefusal(status, advice)}`;
    this.#become({ name: "closed", problem });
  }

  #become(state) {
    this.state = state;
    this.onState(state);
  }
}
