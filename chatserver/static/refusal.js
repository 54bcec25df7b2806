/**
 * What can be told of a refused handshake. A browser says the same of every refusal, so the same
 * path is asked over plain HTTP: 426 means that a WebSocket is there.
 */

const OVERLOADED = 500; // and above: a server that can't answer now, or a gateway without one

/**
 * The HTTP status at the path of a WebSocket address, or null where no server answers.
 *
 * The query stays away: a token belongs into the handshake only.
 */
export async function statusAt(url) {
  const options = { cache: "no-store", redirect: "manual", signal: AbortSignal.timeout(5_000) };
  try {
    const { status } = await fetch(url.pathname, options);
    return status < OVERLOADED ? status : null;
  } catch {
    return null;
  }
}

/**
 * A sentence about a refusal.
 *
 * @param {number} status what plain HTTP was answered; 0 for a redirect
 * @param {string} advice the endpoint's own, for a handshake that reached it
 */
export function explainRefusal(status, advice) {
  if (status === 426) return advice;
  if (status === 404) return "It has no WebSocket at this address.";
  const answer = status === 0 ? "a redirect" : status;
  return `A plain request for this address is answered with ${answer}, perhaps by a proxy in front of the server.`;
}
