import { effect, type Signal, signal } from "@preact/signals";

/** Return a signal whose value is kept by the browser for this tab, and survives a reload. */
export function saved<T>(name: string, initial: T, storage: Storage = sessionStorage): Signal<T> {
  const key = `img2img.${name}`;
  const state = signal<T>(read(storage.getItem(key)) ?? initial);
  effect(() => {
    const text = JSON.stringify(state.value);
    try {
      storage.setItem(key, text);
    } catch {
      // The storage is full: the value lasts as long as the page.
    }
  });
  return state;

  function read(text: string | null): T | null {
    try {
      return text === null ? null : JSON.parse(text);
    } catch {
      return null;
    }
  }
}
