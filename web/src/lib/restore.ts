import type { Img2ImgRequest, Job } from "../api/generated/types.gen";
import type { Mode } from "../state/form";

/** The fields of a request that a job or the metadata of a result also has, under the same name. */
const FIELDS = (
  "prompt negative_prompt prompt_weighting instruction strength denoising_start denoising_end guidance_scale image_guidance_scale " +
  "guidance_rescale guidance_until fast_vae deterministic num_inference_steps scheduler seed num_images width height resize upscale eta clip_skip loras model"
).split(" ");
// Values that count as not given.
const NEUTRAL: Record<string, unknown> = {
  clip_skip: 0,
  eta: 0,
  guidance_rescale: 0,
  guidance_until: 1,
  num_images: 1,
  resize: "crop",
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
  for (const name of FIELDS) {
    if (isGiven(name, job[name])) values[name] = job[name];
  }
  const region = job.region as
    | { blur?: number; padding?: number | null; margins?: Record<string, number> }
    | undefined;
  if (Object.values(region?.margins ?? {}).some((pixels) => pixels > 0)) values.outpaint = region?.margins;
  // 0 is not the default of a request, and is left out of the metadata.
  if (region) values.mask_blur = region.blur ?? 0;
  if (region?.padding != null) values.mask_padding = region.padding;
  const mode = job.task === "edit" || job.task === "upscale" ? job.task : "transform";
  const controls = ((job.controls ?? []) as (RestoredControl & { image?: unknown })[]).map(
    ({ image: _, ...control }) => control,
  );
  return { mode, values: values as Partial<Img2ImgRequest>, controls };
}

function isGiven(name: string, value: unknown): boolean {
  if (value === undefined || value === null || value === "" || value === false) return false;
  return !(Array.isArray(value) && value.length === 0) && value !== NEUTRAL[name];
}
