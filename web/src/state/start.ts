import { effect } from "@preact/signals";
import { ApiError } from "../api/client";
import { pause } from "../api/events";
import { language } from "../i18n";
import { restoreInput } from "./actions";
import { loadHistory } from "./history";
import { pollJobs } from "./jobs";
import { loadModels } from "./models";
import { restoreRuns } from "./runs";
import { isReachable, keyEntries, keyNeeded } from "./session";
import { applyShared } from "./settings";

const MODELS_MS = 15_000;
const RETRY_MS = 2000;

/** Load everything, and again after the service was away or a key was entered. */
export async function start(): Promise<void> {
  effect(() => {
    document.documentElement.lang = language.value;
  });
  const forever = new AbortController().signal;
  applyShared();
  addEventListener("hashchange", applyShared);
  void restoreInput();
  void pollJobs(forever);
  let loadedWith = -1;
  for (;;) {
    try {
      await loadModels();
      isReachable.value = true;
      if (loadedWith !== keyEntries.value) {
        loadedWith = keyEntries.value;
        await Promise.all([restoreRuns(), loadHistory()]);
      }
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      if (error.isOutage) isReachable.value = false;
    }
    await Promise.race([pause(isReachable.value ? MODELS_MS : RETRY_MS), change()]);
    // Without a valid key every request is refused.
    while (keyNeeded.value) await change();
  }
}

/** Wait until a key is entered, or the service can no longer be reached. */
function change(): Promise<void> {
  const [entries, wasReachable] = [keyEntries.peek(), isReachable.peek()];
  return new Promise((resolve) => {
    const stop = effect(() => {
      const isNewKey = keyEntries.value !== entries && !keyNeeded.value;
      if (!isNewKey && !(wasReachable && !isReachable.value)) return;
      queueMicrotask(() => stop());
      resolve();
    });
  });
}
