import type { Img2ImgRequest, ServedModel } from "../api/generated/types.gen";

/** Fields over which requests can be varied. */
export const AXIS_FIELDS = [
  "strength",
  "guidance_scale",
  "num_inference_steps",
  "scheduler",
  "seed",
  "image_guidance_scale",
] as const;
export type AxisField = (typeof AXIS_FIELDS)[number];

export interface Axis {
  field: AxisField;
  values: (number | string)[];
}

export const MAX_CELLS = 25;
export const STRENGTHS = [0.2, 0.4, 0.6, 0.8, 1];
const SEEDS = 2 ** 32;

/** Return the values that a strip over the field begins with. */
export function usualValues(field: AxisField, card: ServedModel): (number | string)[] {
  switch (field) {
    case "strength":
      return STRENGTHS;
    case "guidance_scale":
      return [2, 4, 7.5, 10, 14];
    case "image_guidance_scale":
      return [1, 1.5, 2, 3];
    case "num_inference_steps":
      return [10, 20, 30, 40, 50];
    case "scheduler":
      return card.schedulers.slice(0, 5);
    case "seed":
      return [1, 2, 3, 4, 5];
  }
}

/** Read values that a person has typed, with commas between. Numbers, except for a scheduler. */
export function parseValues(text: string, field: AxisField): (number | string)[] {
  const parts = text
    .split(",")
    .map((part) => part.trim())
    .filter(Boolean);
  if (field === "scheduler") return parts;
  return parts.map(Number).filter((value) => Number.isFinite(value));
}

/** The seed of all cells: images that differ in their noise cannot be compared. */
export function commonSeed(base: Img2ImgRequest): number {
  return base.seed == null || base.seed < 0 ? Math.floor(Math.random() * SEEDS) : base.seed;
}

/** Return the requests of a strip, or of a table with `rows`, row by row. */
export function vary(
  base: Img2ImgRequest,
  columns: Axis,
  rows?: Axis,
): { label: string; request: Img2ImgRequest }[] {
  const common = { ...base, num_images: 1, seed: commonSeed(base) };
  const cell = (x: number | string, y?: number | string) => ({
    label: y === undefined ? String(x) : `${x} · ${y}`,
    request: { ...common, [columns.field]: x, ...(rows && { [rows.field]: y }) } as Img2ImgRequest,
  });
  if (!rows) return columns.values.map((x) => cell(x));
  return rows.values.flatMap((y) => columns.values.map((x) => cell(x, y)));
}
