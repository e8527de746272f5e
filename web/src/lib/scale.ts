import type { ScaleRequest, ScaleResult } from "./scale.worker";

// The service takes larger images, but brings them to the model's size anyway.
export const MAX_PIXELS = 16_000_000;
const MAX_BYTES = 24 * 1024 * 1024;

export interface ScaledImage {
  blob: Blob;
  width: number;
  height: number;
  scaledFrom: [number, number] | null;
}

/** Return the size that an image of this size is scaled to: at most `maxPixels`, with the same aspect ratio. */
export function fittingSize(width: number, height: number, maxPixels: number): [number, number] {
  const factor = Math.min(1, Math.sqrt(maxPixels / (width * height)));
  return [Math.max(1, Math.floor(width * factor)), Math.max(1, Math.floor(height * factor))];
}

/** Return the file, or a smaller copy if it is too large to send. Throws an Error if it is no readable image. */
export async function scaledToFit(file: Blob): Promise<ScaledImage> {
  const [width, height] = await sizeOf(file);
  if (width * height <= MAX_PIXELS && file.size <= MAX_BYTES) {
    return { blob: file, width, height, scaledFrom: null };
  }
  const [newWidth, newHeight] = fittingSize(width, height, MAX_PIXELS);
  const blob = await scaleInWorker({ file, width: newWidth, height: newHeight });
  return { blob, width: newWidth, height: newHeight, scaledFrom: [width, height] };
}

async function sizeOf(file: Blob): Promise<[number, number]> {
  const image = new Image();
  const url = URL.createObjectURL(file);
  try {
    image.src = url;
    // Not `decode`, which would decode all of a large image.
    await new Promise((resolve, reject) => {
      image.onload = resolve;
      image.onerror = reject;
    });
    return [image.naturalWidth, image.naturalHeight];
  } finally {
    URL.revokeObjectURL(url);
  }
}

/** Decoding and encoding of a large image take seconds, in which the page has to respond. */
function scaleInWorker(request: ScaleRequest): Promise<Blob> {
  const worker = new Worker(new URL("./scale.worker.ts", import.meta.url), { type: "module" });
  return new Promise<Blob>((resolve, reject) => {
    worker.onmessage = ({ data }: MessageEvent<ScaleResult>) =>
      "blob" in data ? resolve(data.blob) : reject(new Error(data.error));
    worker.onerror = (event) => reject(new Error(event.message));
    worker.postMessage(request);
  }).finally(() => worker.terminate());
}
