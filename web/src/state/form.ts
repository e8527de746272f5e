import { signal } from "@preact/signals";
import type { ControlRequest, FieldProblem, Img2ImgRequest } from "../api/generated/types.gen";
import type { StoredImage } from "./images";
import { saved } from "./saved";

/** The way in which the image is used. */
export type Mode = "transform" | "edit" | "upscale";
/** The fields of a request without its images. A field that is absent has the service's default. */
export type Values = Omit<Img2ImgRequest, "image" | "images" | "mask" | "controls" | "image_prompts">;

export interface ControlRow {
  key: string;
  type: ControlRequest["type"];
  scale: number;
  start: number;
  end: number;
  /** Null: the input image. */
  image: StoredImage | null;
  /** Whether the control map is made from the image. */
  preprocess: boolean;
}

export interface ImagePromptRow {
  key: string;
  scale: number;
  image: StoredImage | null;
}

/** A mask of the size of the input image, made when the request is sent; `alpha`: the image's transparency. */
export type MaskSource = "alpha" | (() => Promise<Blob>);

export const mode = saved<Mode>("mode", "transform");
export const values = saved<Values>("values", { prompt: "" });
export const inputImage = signal<StoredImage | null>(null);
/** Set by the mask editor while something is painted. */
export const mask = signal<MaskSource | null>(null);
export const controls = signal<ControlRow[]>([]);
/** Images that the instruction of an edit refers to, after the input image. */
export const references = signal<StoredImage[]>([]);
export const imagePrompts = signal<ImagePromptRow[]>([]);
/** The fields that the service has rejected, with its sentences. */
export const fieldErrors = signal<FieldProblem[]>([]);
/** An error of the last submit that names no field of the form. */
export const formError = signal("");
/** What is wrong with the input image, or with the file that should have become it. */
export const inputError = signal("");
/** What the field of the seed contains in place of a seed; empty if it contains one, or nothing. */
export const wrongSeed = signal("");
/** The strengths of the modes that are not chosen: each has its own. */
const strengths = saved<Partial<Record<Mode, number>>>("strengths", {});

/** Set fields of the request; undefined leaves a field to the service. */
export function set(changes: Partial<Values>): void {
  const entries = Object.entries({ ...values.value, ...changes }).filter(([, value]) => value !== undefined);
  values.value = Object.fromEntries(entries);
  const changed = Object.keys(changes);
  if (changed.includes("seed")) wrongSeed.value = "";
  fieldErrors.value = fieldErrors.value.filter(({ field }) => !changed.includes(field.split(".")[0] ?? ""));
}

/** Change from one mode to another, which has a strength of its own. */
export function changeMode(from: Mode, to: Mode): void {
  if (from === to) return;
  strengths.value = { ...strengths.value, [from]: values.value.strength ?? undefined };
  mode.value = to;
  set({ strength: strengths.value[to] });
}

/** Take a seed as it was typed. What is no whole number is not taken, and `wrongSeed` is set. */
export function typeSeed(text: string): void {
  const seed = text.trim();
  if (seed === "") set({ seed: undefined });
  else if (/^[+-]?\d+$/.test(seed)) set({ seed: Number(seed) });
  else wrongSeed.value = seed;
}
