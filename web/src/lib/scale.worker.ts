/** Scales an image down on a thread of its own. */

export interface ScaleRequest {
  file: Blob;
  width: number;
  height: number;
}
export type ScaleResult = { blob: Blob } | { error: string };

self.onmessage = async ({ data }: MessageEvent<ScaleRequest>) => {
  let result: ScaleResult;
  try {
    result = { blob: await scale(data) };
  } catch (error) {
    result = { error: String(error) };
  }
  self.postMessage(result);
};

async function scale({ file, width, height }: ScaleRequest): Promise<Blob> {
  const bitmap = await createImageBitmap(file, {
    resizeWidth: width,
    resizeHeight: height,
    resizeQuality: "high",
  });
  const canvas = new OffscreenCanvas(width, height);
  canvas.getContext("2d")?.drawImage(bitmap, 0, 0);
  bitmap.close();
  // A JPEG has no transparency to lose.
  const type = file.type === "image/jpeg" ? "image/jpeg" : "image/webp";
  return canvas.convertToBlob({ type, quality: 0.95 });
}
