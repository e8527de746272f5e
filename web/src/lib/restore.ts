import type { Img2ImgRequest, Job } from "../api/generated/types.gen";
import type { Mode } from "../state/form";

// Images, what a job has under another name, and what concerns only the submission.
type Elsewhere =
  | ("image" | "images" | "mask" | "image_prompts" | "controls" | "regions")
  | ("outpaint" | "mask_blur" | "mask_content" | "mask_padding" | "soft_inpainting")
  | ("deadline_s" | "deadline_policy" | "priority" | "webhook" | "reuse");
/**
 * The fields of a request that a job or the metadata of a result also has, under the same name, each with the value
 * that counts as not given. So do null, "", false and an empty list.
 */
const FIELDS: Record<Exclude<keyof Img2ImgRequest, Elsewhere>, unknown> = {
  prompt: "",
  negative_prompt: "",
  prompt_weighting: false,
  weighting_method: "compel",
  instruction: "",
  strength: null,
  denoising_start: null,
  denoising_end: null,
  guidance_scale: null,
  image_guidance_scale: null,
  guidance_rescale: 0,
  guidance_until: 1,
  pag_scale: 0,
  pag_adaptive_scale: 0,
  freeu: null,
  seamless_tiling: false,
  speed: "exact",
  fast_vae: false,
  deterministic: false,
  guess_mode: false,
  num_inference_steps: null,
  exact_steps: false,
  scheduler: null,
  sigmas: null,
  seed: null,
  subseed: null,
  subseed_strength: 0,
  num_images: 1,
  width: null,
  height: null,
  resize: "crop",
  upscale: null,
  eta: 0,
  clip_skip: 0,
  loras: null,
  refine: null,
  background: null,
  model: null,
};

export type RestoredControl = Omit<NonNullable<Img2ImgRequest["controls"]>[number], "image">;

/** What the form can take over from a job. Images are not part of it. */
export interface Restored {
  mode: Mode;
  values: Partial<Img2ImgRequest>;
  controls: RestoredControl[];
}

/** Return the settings of a job, or of a result by its metadata. */
export function restored(request: Job["request"] | Record<string, unknown>): Restored {
  const job = request as Record<string, unknown>;
  const values: Record<string, unknown> = {};
  for (const [name, neutral] of Object.entries(FIELDS)) {
    if (isGiven(job[name]) && job[name] !== neutral) values[name] = job[name];
  }
  const region = job.region as
    | (Record<"blur" | "padding", number | null | undefined> & {
        content?: string;
        is_soft?: boolean;
        background?: boolean;
        margins?: Record<string, number>;
      })
    | undefined;
  if (Object.values(region?.margins ?? {}).some((pixels) => pixels > 0)) values.outpaint = region?.margins;
  // 0 is not the default of a request, and is left out of the metadata.
  if (region) values.mask_blur = region.blur ?? 0;
  if (region?.padding != null) values.mask_padding = region.padding;
  if (region?.content && region.content !== "original") values.mask_content = region.content;
  if (region?.is_soft) values.soft_inpainting = true;
  if (region?.background) {
    values.background = { prompt: values.prompt ?? "" };
    delete values.prompt;
  }
  const mode = job.task === "edit" || job.task === "upscale" ? job.task : "transform";
  const controls = ((job.controls ?? []) as (RestoredControl & { image?: unknown })[]).map(
    ({ image: _, ...control }) => control,
  );
  return { mode, values: values as Partial<Img2ImgRequest>, controls };
}

function isGiven(value: unknown): boolean {
  if (value === undefined || value === null || value === "" || value === false) return false;
  return !(Array.isArray(value) && value.length === 0);
}
