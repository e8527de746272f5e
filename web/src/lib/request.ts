import type { Img2ImgRequest, ServedModel, Task } from "../api/generated/types.gen";
import type { Mode, Values } from "../state/form";
import { has, takesAdapters, takesParameter, upscalerOf } from "./capability";

/** References to the images of a request. */
export interface Images {
  image?: string;
  images?: string[];
  mask?: string;
  controls?: NonNullable<Img2ImgRequest["controls"]>;
  image_prompts?: NonNullable<Img2ImgRequest["image_prompts"]>;
}

/** What decides which fields a request may have. */
export interface Situation {
  card: ServedModel;
  mode: Mode;
  values: Values;
  hasImage: boolean;
  hasMask: boolean;
  hasControls: boolean;
}

const SIZE_FIELDS = ["width", "height", "resize"] as const;
// Without guidance these have no effect, and the service refuses them.
const GUIDED = ["negative_prompt", "guidance_rescale", "guidance_until", "image_guidance_scale"] as const;
const OPTIONAL = [
  ...(["clip_skip", "denoising_start", "eta", "freeu", "guess_mode", "guidance_rescale"] as const),
  ...([
    "pag_adaptive_scale",
    "pag_scale",
    "soft_inpainting",
    "subseed",
    "seamless_tiling",
    "subseed_strength",
  ] as const),
] as const;
const MASK_OPTIONS = ["mask_blur", "mask_content", "mask_padding", "soft_inpainting"] as const;

/** Return the task that the service will choose for the request of the form. */
export function taskOf(situation: Situation): Task {
  const { mode, values, hasImage, hasMask, hasControls } = situation;
  if (mode === "edit") return "edit";
  if (mode === "upscale") return "upscale";
  if (hasMask || hasMargins(values) || replacesBackground(situation)) return "inpaint";
  return hasControls && !hasImage ? "control" : "img2img";
}

/** The guidance scale of the request, with the default of the model or of its super-resolution model. */
export function guidanceOf({ card, mode, values }: Situation): number {
  const upscaler = mode === "upscale" ? upscalerOf(card, values.upscale) : undefined;
  const own = card.guidance === false ? 1 : (card.default_guidance_scale ?? 7.5);
  return values.guidance_scale ?? upscaler?.default_guidance_scale ?? own;
}

/** Whether the model can replace the background of the input image in this mode. */
export function canReplaceBackground({ card, mode }: Situation): boolean {
  return card.matting === true && mode === "transform" && has(card, "inpaint");
}

/** Whether the request replaces the background of its image, by a prompt that takes the place of others. */
export function replacesBackground(situation: Situation): boolean {
  return typeof situation.values.background === "object" && canReplaceBackground(situation);
}

function hasMargins({ outpaint }: Values): boolean {
  return Object.values(outpaint ?? {}).some((pixels) => (pixels ?? 0) > 0);
}

/** Return whether the model takes a field in this situation. What it does not take is neither shown nor sent. */
export function takes(situation: Situation, field: keyof Img2ImgRequest): boolean {
  const { card, mode, values, hasControls } = situation;
  const task = taskOf(situation);
  const upscaler = task === "upscale" ? upscalerOf(card, values.upscale) : undefined;
  if (includes(OPTIONAL, field)) {
    const isTaken = upscaler
      ? (upscaler.parameters ?? []).includes(field)
      : takesParameter(card, field, task, hasControls);
    if (!isTaken) return false;
  }
  if (includes(GUIDED, field) && guidanceOf(situation) <= 1) return false;
  // An inpainted image keeps its size; only images of controls are brought to it.
  if (field === "resize" && task === "inpaint" && !hasControls) return false;
  if (includes(SIZE_FIELDS, field)) return task !== "upscale";
  switch (field) {
    case "prompt":
      return mode !== "edit" && !replacesBackground(situation);
    case "instruction":
      return mode === "edit";
    case "image_guidance_scale":
      return mode === "edit" && card.image_guidance !== false;
    case "negative_prompt":
      return upscaler !== undefined || card.negative_prompt !== false;
    case "prompt_weighting":
    case "weighting_method":
      return card.prompt_weighting === true;
    case "fast_vae":
      return card.fast_vae === true && !upscaler;
    case "guidance_until":
      return card.guidance_until === true && task !== "edit" && !upscaler;
    case "guidance_scale":
      return upscaler !== undefined || card.guidance !== false;
    case "strength":
      return task !== "edit" && task !== "control" && !upscaler && values.denoising_start == null;
    case "mask_blur":
      return mode === "transform" && has(card, "inpaint");
    case "mask":
    case "mask_padding":
    case "outpaint":
      return mode === "transform" && has(card, "inpaint") && !replacesBackground(situation);
    case "mask_content":
      return task === "inpaint" && card.mask_content === true;
    case "sigmas":
      return Object.keys((upscaler ?? card).scheduler_sigmas ?? {}).length > 0;
    case "speed":
      return (card.scheduler_parameters?.speed ?? []).length > 0 && !upscaler;
    case "background":
      return card.matting === true;
    case "images":
      return mode === "edit" && (card.max_images ?? 1) > 1;
    case "reuse":
      return values.seed != null && values.seed >= 0;
    case "exact_steps":
      return values.denoising_start == null;
    case "subseed":
      return Boolean(values.subseed_strength);
    case "pag_adaptive_scale":
      return Boolean(values.pag_scale);
    case "refine":
      return mode === "transform" && has(card, "inpaint") && (card.masks ?? []).includes("text");
    case "controls":
      return mode === "transform" && (card.controls ?? []).length > 0;
    case "loras":
      return (card.loras ?? []).length > 0 && takesAdapters(card, task) && !upscaler;
    case "image_prompts":
      return card.image_prompts === true && takesAdapters(card, task) && !upscaler;
    case "denoising_end":
      return card.refiner === true && (task === "img2img" || task === "inpaint") && !hasControls;
    case "upscale":
      return mode === "upscale";
    default:
      return true;
  }
}

/** Whether the model takes a field only as long as there is no mask, no margin and no new background. */
export function isLostToMask(situation: Situation, field: keyof Img2ImgRequest): boolean {
  if (taskOf(situation) !== "inpaint" || takes(situation, field)) return false;
  const values = { ...situation.values, outpaint: undefined, background: undefined };
  return takes({ ...situation, values, hasMask: false }, field);
}

// Values can come from a link of another person, which must not send images or the URL of a webhook.
const NOT_SETTINGS = new Set(["webhook", "image", "images", "mask", "controls", "image_prompts"]);

/** Return the request of the form: the fields that the model takes and that differ from "not given". */
export function buildRequest(situation: Situation, images: Images): Img2ImgRequest {
  const { values, hasMask } = situation;
  const request: Record<string, unknown> = {};
  const task = taskOf(situation);
  const settings = Object.entries(values).filter(([name]) => !NOT_SETTINGS.has(name));
  for (const [field, value] of [...Object.entries(images), ...settings]) {
    const isMaskOption = includes(MASK_OPTIONS, field) && task !== "inpaint";
    if (isEmpty(value) || isMaskOption || (field === "outpaint" && !hasMargins(values))) continue;
    if (field === "mask" && !hasMask) continue;
    if (field === "background" && typeof value === "object" && !replacesBackground(situation)) continue;
    if (takes(situation, field as keyof Img2ImgRequest)) request[field] = value;
  }
  return request;
}

function isEmpty(value: unknown): boolean {
  return (
    value === undefined || value === null || value === "" || (Array.isArray(value) && value.length === 0)
  );
}

function includes(names: readonly string[], field: string): boolean {
  return names.includes(field);
}
