/** What was done to a mask, in order. The mask is drawn again from these, so that each can be undone. */

export interface Point {
  x: number;
  y: number;
}

export type Operation =
  | { kind: "stroke"; points: Point[]; size: number; isEraser: boolean }
  | { kind: "invert" }
  | { kind: "load"; image: ImageBitmap };

type Context = CanvasRenderingContext2D;

/** Draw all operations on an empty mask. */
export function draw(context: Context, operations: readonly Operation[]): void {
  const { width, height } = context.canvas;
  context.clearRect(0, 0, width, height);
  for (const operation of operations) apply(context, operation);
}

/** Draw one operation on the mask: opaque where the image is regenerated, else transparent. */
export function apply(context: Context, operation: Operation): void {
  const { width, height } = context.canvas;
  context.save();
  context.fillStyle = context.strokeStyle = MASK_COLOR;
  switch (operation.kind) {
    case "stroke":
      drawStroke(context, operation);
      break;
    case "invert":
      context.globalCompositeOperation = "xor";
      context.fillRect(0, 0, width, height);
      break;
    case "load":
      context.clearRect(0, 0, width, height);
      context.drawImage(operation.image, 0, 0, width, height);
      break;
  }
  context.restore();
}

// It is shown over the image, which can have any colour.
export const MASK_COLOR = "#ff2d9b";

function drawStroke(context: Context, { points, size, isEraser }: Operation & { kind: "stroke" }): void {
  const [first, ...others] = points;
  if (!first) return;
  if (isEraser) context.globalCompositeOperation = "destination-out";
  context.lineWidth = size;
  context.lineCap = context.lineJoin = "round";
  // A line without length is not drawn.
  context.beginPath();
  context.arc(first.x, first.y, size / 2, 0, 2 * Math.PI);
  context.fill();
  context.beginPath();
  context.moveTo(first.x, first.y);
  for (const { x, y } of others) context.lineTo(x, y);
  context.stroke();
}

/** Return the mask as the service takes it: a PNG of the same size, white where the image is regenerated. */
export function exported(mask: HTMLCanvasElement): Promise<Blob> {
  const canvas = document.createElement("canvas");
  canvas.width = mask.width;
  canvas.height = mask.height;
  const context = canvas.getContext("2d") as Context;
  context.drawImage(mask, 0, 0);
  context.globalCompositeOperation = "source-in";
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.globalCompositeOperation = "destination-over";
  context.fillStyle = "#000";
  context.fillRect(0, 0, canvas.width, canvas.height);
  return new Promise((resolve, reject) => {
    canvas.toBlob(
      (blob) => (blob ? resolve(blob) : reject(new Error("the mask cannot be written"))),
      "image/png",
    );
  });
}

/** Return a mask file as an image that is opaque where the file is light. */
export async function maskFromFile(file: Blob): Promise<ImageBitmap> {
  const bitmap = await createImageBitmap(file);
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d") as OffscreenCanvasRenderingContext2D;
  context.drawImage(bitmap, 0, 0);
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
  lightToMask(pixels.data);
  context.putImageData(pixels, 0, 0);
  return createImageBitmap(canvas);
}

const [RED, GREEN, BLUE] = [0xff, 0x2d, 0x9b];
const WHITE_FROM = 128;

/** Make light pixels opaque, in the colour of the mask, and all others transparent. As the service reads a mask. */
export function lightToMask(data: Uint8ClampedArray): void {
  for (let at = 0; at < data.length; at += 4) {
    const [r = 0, g = 0, b = 0, a = 0] = data.subarray(at, at + 4);
    // In integers: 128 times these fractions would be less than 128.
    const light = (299 * r + 587 * g + 114 * b) * a;
    data.set([RED, GREEN, BLUE, light >= WHITE_FROM * 1000 * 255 ? 255 : 0], at);
  }
}
