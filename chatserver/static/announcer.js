/** Says things aloud; what comes at the same moment is said together, as a new text ends the old. */
export function announcer(status) {
  const texts = new Set();
  return (text) => {
    if (texts.size === 0) {
      queueMicrotask(() => {
        status.textContent = [...texts].join(" ");
        texts.clear();
      });
    }
    texts.add(text);
  };
}
