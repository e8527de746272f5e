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

/** Set fields of the request; undefined leaves a field to the service. */
export function set(changes: Partial<Values>): void {
  const entries = Object.entries({ ...values.value, ...changes }).filter(([, value]) => value !== undefined);
  values.value = Object.fromEntries(entries);
  const changed = Object.keys(changes);
  fieldErrors.value = fieldErrors.value.filter(({ field }) => !changed.includes(field.split(".")[0] ?? ""));
}
