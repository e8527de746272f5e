import { type Signal, signal } from "@preact/signals";
import { ApiError, uploadImage } from "../api/client";
import { newId } from "../lib/new-id";
import { pngMetadata } from "../lib/png-metadata";
import { scaledToFit } from "../lib/scale";
import { keepImage, keptImage } from "./image-store";

export type Upload =
  | { state: "uploading" }
  | { state: "done"; sha256: string }
  | { state: "failed"; message: string };

/** An image of the person, which is uploaded as soon as it is chosen. */
export interface StoredImage {
  id: string;
  name: string;
  blob: Blob;
  /** An object URL of `blob`. */
  url: string;
  /** Upright size in pixels. */
  width: number;
  height: number;
  /** Size before it was scaled down; null if it was not. */
  scaledFrom: [number, number] | null;
  upload: Signal<Upload>;
  /** The parameters by which this service made the image; null for another image. */
  metadata: Record<string, unknown> | null;
}

const uploads = new WeakMap<StoredImage, Promise<string>>();
const bySha256 = new Map<string, StoredImage>();
const restoredById = new Map<string, Promise<StoredImage | null>>();

/** Read an image file and begin to upload it. Throws an Error if the browser cannot read it. */
export async function storeImage(file: Blob, name: string, id = newId()): Promise<StoredImage> {
  const { blob, width, height, scaledFrom } = await scaledToFit(file);
  const image: StoredImage = {
    id,
    name,
    blob,
    url: URL.createObjectURL(blob),
    width,
    height,
    scaledFrom,
    upload: signal<Upload>({ state: "uploading" }),
    metadata: await pngMetadata(file),
  };
  begin(image);
  void keepImage({ id, name, blob });
  return image;
}

/** Return an image that was kept for a reload; null if the browser no longer has it. */
export function restoreImage(id: string): Promise<StoredImage | null> {
  // Once: each call would upload the image again.
  const known = restoredById.get(id) ?? readImage(id);
  restoredById.set(id, known);
  return known;
}

async function readImage(id: string): Promise<StoredImage | null> {
  const kept = await keptImage(id);
  return kept && storeImage(kept.blob, kept.name, id);
}

/** Return the SHA-256 by which requests refer to the image. Waits for its upload. Throws ApiError. */
export function uploaded(image: StoredImage): Promise<string> {
  if (image.upload.value.state === "failed") begin(image);
  return uploads.get(image) ?? begin(image);
}

/** Upload images again that the service no longer has. Returns whether the error is about such images. */
export async function uploadForgotten(error: ApiError): Promise<boolean> {
  const forgotten = new Set(error.fields.flatMap(({ got }) => bySha256.get(got ?? "") ?? []));
  const uploaded = await Promise.allSettled([...forgotten].map(begin));
  return uploaded.length > 0 && uploaded.every(({ status }) => status === "fulfilled");
}

function begin(image: StoredImage): Promise<string> {
  image.upload.value = { state: "uploading" };
  const upload = uploadImage(image.blob).then(({ sha256 }) => {
    image.upload.value = { state: "done", sha256 };
    bySha256.set(sha256, image);
    return sha256;
  });
  upload.catch((error: unknown) => {
    image.upload.value = {
      state: "failed",
      message: error instanceof ApiError ? error.message : String(error),
    };
  });
  uploads.set(image, upload);
  return upload;
}
