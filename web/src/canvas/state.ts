import { computed, effect, signal } from "@preact/signals";
import { inputImage, type MaskSource, mask, set } from "../state/form";
import { exported, type Operation } from "./operations";

export type Tool = "move" | "brush" | "eraser" | "outpaint";

export const tool = signal<Tool>("move");
/** Diameter of the brush, in pixels of the image. */
export const brushSize = signal(32);
export const operations = signal<readonly Operation[]>([]);
export const undone = signal<readonly Operation[]>([]);
/** The canvas that shows the mask. */
export const maskCanvas = signal<HTMLCanvasElement | null>(null);
export const view = signal({ scale: 1, x: 0, y: 0 });

export const isAlpha = computed(() => mask.value === "alpha");

const MAX_SCALE = 16;

const fromCanvas: MaskSource = () => {
  if (!maskCanvas.value) throw new Error("there is no mask");
  return exported(maskCanvas.value);
};

/** Add an operation, after which those that were undone are gone. */
export function add(operation: Operation): void {
  operations.value = [...operations.value, operation];
  undone.value = [];
  mask.value = fromCanvas;
}

export function undo(): void {
  const last = operations.value.at(-1);
  if (!last) return;
  operations.value = operations.value.slice(0, -1);
  undone.value = [...undone.value, last];
  mask.value = operations.value.length > 0 ? fromCanvas : null;
}

export function redo(): void {
  const next = undone.value.at(-1);
  if (!next) return;
  undone.value = undone.value.slice(0, -1);
  operations.value = [...operations.value, next];
  mask.value = fromCanvas;
}

export function clear(): void {
  operations.value = [];
  undone.value = [];
  mask.value = null;
}

/** Regenerate the transparent pixels of the image, in place of a painted mask. */
export function useTransparency(): void {
  clear();
  mask.value = "alpha";
}

/** Zoom by a factor around a point, in pixels of the screen from the centre of the image. */
export function zoom(factor: number, at = { x: 0, y: 0 }): void {
  const { scale, x, y } = view.value;
  const next = Math.min(Math.max(scale * factor, 1), MAX_SCALE);
  const change = next / scale;
  view.value =
    next === 1
      ? { scale: 1, x: 0, y: 0 }
      : { scale: next, x: at.x - (at.x - x) * change, y: at.y - (at.y - y) * change };
}

export function pan(dx: number, dy: number): void {
  const { scale, x, y } = view.value;
  if (scale > 1) view.value = { scale, x: x + dx, y: y + dy };
}

let imageId: string | undefined;
effect(() => {
  const image = inputImage.value;
  if (image?.id === imageId) return;
  const isReplaced = imageId !== undefined;
  imageId = image?.id;
  operations.value = [];
  undone.value = [];
  view.value = { scale: 1, x: 0, y: 0 };
  if (image) brushSize.value = Math.max(4, Math.round(Math.max(image.width, image.height) / 12));
  // Margins belong to the image they were drawn for.
  if (isReplaced) set({ outpaint: undefined });
});
