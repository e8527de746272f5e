/** What a person does with the form: choose an image, run, use a result as the next input. */

import { effect, signal } from "@preact/signals";
import { ApiError, fetchFromService, uploadImage } from "../api/client";
import type { Img2ImgRequest, Job } from "../api/generated/types.gen";
import { t } from "../i18n";
import { modesOf } from "../lib/capability";
import { buildRequest, type Images, type Situation, takes } from "../lib/request";
import { restored } from "../lib/restore";
import {
  changeMode,
  controls,
  fieldErrors,
  imagePrompts,
  inputError,
  inputImage,
  mask,
  references,
  values,
} from "./form";
import { restoreImage, type StoredImage, storeImage, uploaded } from "./images";
import { card } from "./models";
import { showError, submit } from "./runs";
import { saved } from "./saved";
import { restoreSettings } from "./settings";
import { situation } from "./situation";

/** Id of the input image in the browser's storage. */
const inputId = saved<string | null>("input", null);

/** Use a file as the input image. */
export async function chooseInput(file: Blob, name: string): Promise<void> {
  try {
    replaceInput(await storeImage(file, name));
    fieldErrors.value = fieldErrors.value.filter(({ field }) => field !== "image");
  } catch {
    inputError.value = t().input.unreadable(name);
  }
}

function replaceInput(image: StoredImage | null): void {
  // Object URLs of earlier images stay valid: runs show them.
  inputImage.value = image;
  mask.value = null;
  inputError.value = "";
  inputId.value = image?.id ?? null;
}

export function removeInput(): void {
  replaceInput(null);
}

/** Bring back the input image of before a reload. */
export async function restoreInput(): Promise<void> {
  const id = inputId.value;
  const image = id ? await restoreImage(id) : null;
  if (image && inputImage.value === null) inputImage.value = image;
}

/** Use a result image of a job as the input image. Returns whether the service still had it. */
export async function useResult(jobId: string, index: number): Promise<boolean> {
  try {
    replaceInput(await resultImage(jobId, index));
    return true;
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    showError(error);
    return false;
  }
}

/** Use a result image as the input of "Upscale". */
export async function upscaleResult(jobId: string, index: number): Promise<void> {
  const mode = situation.value?.mode;
  if (mode && (await useResult(jobId, index))) changeMode(mode, "upscale");
}

async function resultImage(jobId: string, index: number): Promise<StoredImage> {
  const response = await fetchFromService(`/jobs/${jobId}/images/${index}`);
  return storeImage(await response.blob(), `${jobId}-${index}.png`);
}

/** Whether variants of a result are being submitted. */
export const isMakingMore = signal(false);

const SIMILAR = { strength: 0.5, num_images: 4 };

/** Make variants of a result, with the prompt of its job and a moderate strength. The form keeps its image and settings. */
export async function moreLikeThis(job: Job, index: number): Promise<void> {
  // A second click while the first one is being followed would make four more.
  if (isMakingMore.value) return;
  isMakingMore.value = true;
  try {
    await makeVariants(job, index);
  } finally {
    isMakingMore.value = false;
  }
}

async function makeVariants(job: Job, index: number): Promise<void> {
  const model = card.value;
  if (!model) return;
  const { values: settings } = restored(job.request);
  const { background } = settings;
  const replaced = typeof background === "object" ? background.prompt : "";
  const prompt = settings.prompt ?? settings.instruction ?? replaced;
  const now: Situation = {
    card: model,
    mode: modesOf(model)[0] ?? "transform",
    values: {
      ...values.value,
      ...SIMILAR,
      prompt,
      instruction: prompt,
      seed: undefined,
      outpaint: undefined,
      // A background that was replaced is part of the new input.
      background: replaced ? undefined : background,
    },
    hasImage: true,
    hasMask: false,
    hasControls: false,
  };
  try {
    const input = await resultImage(job.id, index);
    const images: Images = { image: await uploaded(input) };
    if (takes(now, "image_prompts")) images.image_prompts = await promptImages();
    await submit([{ label: "", request: buildRequest(now, images) }], { imageId: input.id });
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    showError(error);
  }
}

/** Put the settings of a job into the form, and its input image if the browser has it. */
export async function restoreJob(job: Job, imageId: string | null): Promise<void> {
  restoreSettings(job.request);
  const image = imageId && imageId !== inputImage.value?.id ? await restoreImage(imageId) : null;
  if (image) replaceInput(image);
  else if (!imageId || imageId !== inputImage.value?.id) inputError.value = t().input.notRestored;
}

/** Upload the images of the form and return the request. Throws ApiError. */
export async function currentRequest(): Promise<Img2ImgRequest | null> {
  const now = situation.value;
  if (!now) return null;
  const images: Images = {};
  if (inputImage.value) images.image = await uploaded(inputImage.value);
  if (mask.value && takes(now, "mask")) images.mask = await maskReference();
  if (takes(now, "images")) images.images = await Promise.all(references.value.map(uploaded));
  if (takes(now, "controls")) {
    images.controls = await Promise.all(
      controls.value.map(async ({ key: _, image, ...control }) =>
        image ? { ...control, image: await uploaded(image) } : control,
      ),
    );
  }
  if (takes(now, "image_prompts")) {
    images.image_prompts = await promptImages();
  }
  return buildRequest(now, images);
}

function promptImages(): Promise<NonNullable<Images["image_prompts"]>> {
  const rows = imagePrompts.value.flatMap(({ image, scale }) => (image ? [{ image, scale }] : []));
  return Promise.all(rows.map(async ({ image, scale }) => ({ image: await uploaded(image), scale })));
}

async function maskReference(): Promise<string | undefined> {
  const source = mask.value;
  if (source === null || source === "alpha") return source ?? undefined;
  // Not stored in the browser, where the masks of many runs would take the place of input images.
  return (await uploadImage(await source())).sha256;
}

/** A way to make several requests of one, with the layout of their results. */
export interface Plan {
  axes: string[];
  columns: number;
  requests: (base: Img2ImgRequest) => { label: string; request: Img2ImgRequest }[];
}

/** Submit the request of the form; with a plan, the requests that it makes of it. */
export async function run(plan?: Plan): Promise<void> {
  try {
    const request = await currentRequest();
    if (!request) return;
    const requests = plan?.requests(request) ?? [{ label: "", request }];
    await submit(requests, { ...plan, imageId: inputImage.value?.id ?? null });
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    showError(error);
  }
}

effect(() => {
  // The choice of the image outlasts a reload only together with the image.
  if (inputImage.value) inputId.value = inputImage.value.id;
});
