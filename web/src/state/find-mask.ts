import { effect, signal } from "@preact/signals";
import { ApiError, fetchFromService } from "../api/client";
import { submitMask } from "../api/generated/sdk.gen";
import type { Job } from "../api/generated/types.gen";
import { maskFromFile } from "../canvas/operations";
import { add } from "../canvas/state";
import { fieldErrors, inputImage, values } from "./form";
import { type StoredImage, uploaded } from "./images";
import { isOver, track, viewOf } from "./jobs";

/** Whether the model is looking for what words name. */
export const isFinding = signal(false);

/** The field of the words among the errors of the fields. */
export const WORDS = "mask_words";

/** Let the model find what words name in the image, and take it as the mask. Errors are shown at the words. */
export async function findMask(image: StoredImage, text: string): Promise<void> {
  if (isFinding.value || text.trim() === "") return;
  isFinding.value = true;
  clearWordsError();
  try {
    const body = { image: await uploaded(image), text, model: values.value.model };
    const { data } = await submitMask({ body, throwOnError: true });
    track(data);
    const job = await ended(data.id);
    if (job.status !== "succeeded") throw new Error(job.error?.message ?? job.status);
    const found = await fetchFromService(`/jobs/${job.id}/images/0`);
    const mask = await maskFromFile(await found.blob());
    // Another image may have been chosen meanwhile.
    if (inputImage.value?.id === image.id) add({ kind: "load", image: mask });
  } catch (error) {
    const fields = error instanceof ApiError ? error.fields.map(({ message }) => message) : [];
    const message = fields.join("; ") || (error instanceof Error ? error.message : String(error));
    fieldErrors.value = [...fieldErrors.value, { field: WORDS, message }];
  } finally {
    isFinding.value = false;
  }
}

/** Forget why words were not found. */
export function clearWordsError(): void {
  fieldErrors.value = fieldErrors.value.filter(({ field }) => field !== WORDS);
}

/** Wait until a job that the page follows has ended, or is no longer available. */
function ended(id: string): Promise<Job> {
  return new Promise((resolve, reject) => {
    const stop = effect(() => {
      const view = viewOf(id).value;
      if (!view || (!isOver(view.job) && !view.lost)) return;
      if (isOver(view.job)) resolve(view.job);
      else reject(new Error(view.lost));
      // Not at once: an effect cannot be disposed of while it runs for the first time.
      queueMicrotask(() => stop());
    });
  });
}
