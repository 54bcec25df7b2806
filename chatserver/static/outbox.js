/**
 * Own messages on their way. Each becomes delivered when the server has answered it; without an
 * answer for some seconds, or when the connection ends before, it is not delivered.
 */

const SLOW_AFTER = 1_000; // ms; most answers come before anyone could read "sending…"
const ANSWER_WITHIN = 8_000; // ms

export class Outbox {
  #letters = []; // not delivered yet
  #heard = 0; // counts what came from the server

  /**
   * @param {object} options
   * @param {(text: string) => boolean} options.send false if it can't be sent now
   * @param {(message: HTMLElement, state: "slow" | "delivered" | "failed", text: string) => void} options.onState
   * @param {() => void} options.onSilence a message was not answered, and nothing else came either
   */
  constructor({ send, onState, onSilence }) {
    this.send = send;
    this.onState = onState;
    this.onSilence = onSilence;
  }

  /**
   * Sends a text now, or as soon as there is a connection.
   *
   * @param {string} text
   * @param {string[]} answers what the server says once it has the text, in this order
   * @param {HTMLElement} message the text's place in the log
   */
  post(text, answers, message) {
    this.#letters = this.#letters.filter((letter) => letter.message.isConnected);
    const letter = { text, answers, message, state: "waiting", timer: 0 };
    this.#letters.push(letter);
    this.#try(letter);
  }

  /** Takes what came from the server; true if it answers one of the letters. */
  receive(text) {
    this.#heard += 1;
    const letter = this.#letters.find(({ state, answers }) => state !== "waiting" && answers[0] === text);
    if (!letter) return false;
    letter.answers = letter.answers.slice(1);
    if (letter.answers.length === 0) this.#delivered(letter);
    return true;
  }

  /** There is a connection: what waits for one is sent. */
  connected() {
    for (const letter of this.#letters) if (letter.state === "waiting") this.#try(letter);
  }

  /** There is none any more: what it carried is not answered now. */
  disconnected() {
    const carried = this.#letters.filter(({ state }) => state !== "waiting");
    this.#letters = this.#letters.filter(({ state }) => state === "waiting");
    for (const letter of carried) this.#failed(letter);
  }

  #try(letter) {
    clearTimeout(letter.timer);
    letter.timer = setTimeout(() => this.#slow(letter), SLOW_AFTER);
    if (!this.send(letter.text)) return;
    letter.state = "sent";
    letter.heardBefore = this.#heard;
  }

  #slow(letter) {
    this.onState(letter.message, "slow", letter.text);
    if (letter.state === "sent") {
      letter.timer = setTimeout(() => this.#overdue(letter), ANSWER_WITHIN - SLOW_AFTER);
    }
  }

  /** Its answer may still come, as long as the connection lasts. */
  #overdue(letter) {
    this.#failed(letter);
    if (letter.heardBefore === this.#heard) this.onSilence();
  }

  #delivered(letter) {
    clearTimeout(letter.timer);
    this.#letters = this.#letters.filter((other) => other !== letter);
    this.onState(letter.message, "delivered", letter.text);
  }

  #failed(letter) {
    clearTimeout(letter.timer);
    if (letter.state === "failed") return;
    letter.state = "failed";
    this.onState(letter.message, "failed", letter.text);
  }
}
