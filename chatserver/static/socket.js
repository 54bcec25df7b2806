/**
 * A WebSocket that comes back by itself. It knows nothing of the page: states and messages
 * go out through two callbacks.
 *
 * idle ──connect()──▶ connecting ──▶ connected ──lost──▶ waiting ──▶ connecting …
 *                         │  ▲                              ▲
 *              never opened  └──────────── back-off ────────┤
 *                         ▼                                 │
 *                      checking ── server unreachable ──────┘
 *                         └─ server there, so it refused ──▶ closed
 */

const FIRST_DELAY = 500; // ms, doubled at each attempt, jittered by half
const LONGEST_DELAY = 15_000; // ms
const STABLE_AFTER = 5_000; // ms connected until the back-off begins anew
const OPEN_WITHIN = 10_000; // ms for a handshake
const UPGRADE_REQUIRED = 426; // what plain HTTP is answered where a WebSocket is

/** How long to wait before attempt number `attempt` (from 0), in milliseconds. */
export function backoff(attempt, random = Math.random) {
  return Math.min(LONGEST_DELAY, FIRST_DELAY * 2 ** attempt) * (0.5 + random() / 2);
}

export class Connection {
  #url = null;
  #socket = null;
  #turn = 0; // counts attempts; whatever belongs to an earlier one is ignored
  #attempt = 0; // since the last stable connection
  #doubted = false; // refused once in the middle of a reconnect: asked once more before believing it
  #timer = 0;
  #stable = 0;

  /**
   * @param {object} options
   * @param {{code: number, meaning: string, retry: boolean}[]} options.closeCodes the server's table
   * @param {(url: URL) => Promise<number | null>} options.statusAt what plain HTTP is answered at
   *   this address, null if there is no server
   * @param {(state: object) => void} options.onState
   * @param {(text: string) => void} options.onMessage
   */
  constructor({ closeCodes, statusAt, onState, onMessage }) {
    this.closeCodes = new Map(closeCodes.map((row) => [row.code, row]));
    this.statusAt = statusAt;
    this.onState = onState;
    this.onMessage = onMessage;
    this.state = { name: "idle" };
  }

  /** Connects to an address, leaving the one before, with the back-off at its beginning. */
  connect(url) {
    this.#url = url;
    this.#attempt = 0;
    this.#doubted = false;
    this.#open();
  }

  disconnect() {
    this.#abandon();
    this.#close({ code: 1000 });
  }

  /** Ends the waiting; does nothing in any other state. */
  reconnectNow() {
    if (this.state.name === "waiting") this.#open();
  }

  /** The network is back: an attempt that began without it is begun anew, and the next come soon. */
  networkIsBack() {
    if (!["waiting", "connecting", "checking"].includes(this.state.name)) return;
    this.#attempt = Math.min(this.#attempt, 1);
    this.#open();
  }

  /** Gives up a connection that is open but carries nothing any more, and comes back. */
  giveUp(problem) {
    if (this.state.name === "connected") this.#wait({ problem });
  }

  /** Sends a text if it can be sent now. */
  send(text) {
    if (this.state.name !== "connected" || this.#socket.readyState !== WebSocket.OPEN) return false;
    this.#socket.send(text);
    return true;
  }

  #open() {
    this.#abandon();
    const turn = this.#turn;
    this.#become({ name: "connecting" });
    let socket;
    try {
      socket = new WebSocket(this.#url);
    } catch {
      this.#close({ problem: "The browser can't use this address." });
      return;
    }
    this.#socket = socket;
    this.#timer = setTimeout(() => this.#unopened(), OPEN_WITHIN);
    const current = (handler) => (event) => turn === this.#turn && handler(event);
    let opened = false;
    socket.addEventListener("open", current(() => {
      opened = true;
      clearTimeout(this.#timer);
      this.#doubted = false;
      this.#stable = setTimeout(() => (this.#attempt = 0), STABLE_AFTER);
      this.#become({ name: "connected" });
    }));
    socket.addEventListener("message", current(({ data }) => {
      this.onMessage(typeof data === "string" ? data : `(${data.size} bytes of binary data)`);
    }));
    socket.addEventListener("close", current((event) => {
      if (opened) this.#closed(event.code, event.reason);
      else this.#unopened();
    }));
  }

  /** Forgets the present socket, if any, and everything that is still to come of it. */
  #abandon() {
    this.#turn += 1;
    clearTimeout(this.#timer);
    clearTimeout(this.#stable);
    this.#socket?.close(1000);
    this.#socket = null;
  }

  #closed(code, reason) {
    const ending = { code, reason, meaning: this.#meaning(code) };
    if (this.#comesBack(code)) this.#wait(ending);
    else this.#close(ending);
  }

  /** A browser says 1006 both for "refused" and for "nobody there"; plain HTTP can tell them apart. */
  async #unopened() {
    this.#abandon();
    const turn = this.#turn;
    this.#become({ name: "checking" });
    const status = await this.statusAt(this.#url);
    if (turn !== this.#turn) return;
    if (status === null) {
      this.#doubted = false;
      this.#wait({ problem: "The server can't be reached." });
    } else if (this.#attempt > 0 && !(this.#doubted && status === UPGRADE_REQUIRED)) {
      // It may have started between the attempt and the question, or only the proxy is there yet.
      this.#doubted = status === UPGRADE_REQUIRED;
      this.#wait({ problem: "The server is there, but did not take the connection." });
    } else {
      this.#close({ refused: true, status, problem: "The server refused this connection." });
    }
  }

  #wait(ending) {
    this.#abandon();
    const delay = backoff(this.#attempt);
    this.#attempt += 1;
    this.#timer = setTimeout(() => this.#open(), delay);
    this.#become({ ...ending, name: "waiting", until: Date.now() + delay });
  }

  #close(ending) {
    this.#abandon();
    const meaning = ending.code === undefined ? undefined : this.#meaning(ending.code);
    this.#become({ meaning, ...ending, name: "closed" });
  }

  #become(state) {
    this.state = state;
    this.onState(state);
  }

  #meaning(code) {
    return this.closeCodes.get(code)?.meaning ?? "This code has no meaning here.";
  }

  /** The table's rule; an unlisted 44xx stands for an HTTP status 4xx: the client's fault. */
  #comesBack(code) {
    return this.closeCodes.get(code)?.retry ?? !(code >= 4400 && code < 4500);
  }
}
