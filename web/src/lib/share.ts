/** Settings in the fragment of the page's URL, which browsers do not send to the server. */

const NAME = "settings";

/** Return the fragment for a value, such as `#settings=eyJ...`. */
export function toHash(value: unknown): string {
  const bytes = new TextEncoder().encode(JSON.stringify(value));
  const base64 = btoa(String.fromCharCode(...bytes));
  return `#${NAME}=${base64.replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "")}`;
}

/** Return the value of a fragment; null if it has none. */
export function fromHash(hash: string): unknown {
  const text = new URLSearchParams(hash.slice(1)).get(NAME);
  if (text === null) return null;
  try {
    const base64 = text.replaceAll("-", "+").replaceAll("_", "/");
    const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
    return JSON.parse(new TextDecoder().decode(bytes));
  } catch {
    return null;
  }
}
