import { effect, signal } from "@preact/signals";

const KEY = "img2img.api-key";

/** The API key, for as long as the tab is open. */
export const apiKey = signal<string | null>(sessionStorage.getItem(KEY));
/** Whether the page asks for a key, because the service has refused a request for want of a valid one. */
export const keyNeeded = signal(false);
/** Whether the service has refused the key, or that there is none. */
export const wasRefused = signal(false);
/** How often a key was entered. */
export const keyEntries = signal(0);
/** Whether the last request reached the service. */
export const isReachable = signal(true);

effect(() => {
  if (apiKey.value) sessionStorage.setItem(KEY, apiKey.value);
  else sessionStorage.removeItem(KEY);
});

/** Use this key for every further request. */
export function enterKey(key: string): void {
  apiKey.value = key.trim() || null;
  keyNeeded.value = false;
  wasRefused.value = false;
  keyEntries.value += 1;
}
