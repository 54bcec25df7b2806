/** What this browser tab remembers across a reload. Never a token. */

export function recall(key) {
  try {
    return sessionStorage.getItem(`chatserver.${key}`);
  } catch {
    return null; // storage can be switched off
  }
}

export function remember(key, value) {
  try {
    sessionStorage.setItem(`chatserver.${key}`, value);
  } catch {
    // then it is not remembered
  }
}
