import type { ServedModel } from "../api/generated/types.gen";
import type { Situation } from "./request";

/** A model with every task, as `GET /models` lists it, for tests. */
export const CARD: ServedModel = {
  name: "able",
  family: "stable-diffusion",
  native_size: 512,
  size_multiple: 8,
  min_size: 64,
  max_size: 1024,
  sizes: [
    [512, 512],
    [576, 448],
  ],
  schedulers: ["ddim", "euler"],
  default_scheduler: "ddim",
  default_steps: 30,
  default_guidance_scale: 7.5,
  tasks: ["img2img", "inpaint", "control", "edit", "upscale"],
  controls: ["canny"],
  preprocessors: ["canny"],
  image_prompts: true,
  loras: ["ink"],
  adapter_tasks: ["img2img"],
  upscales: [2, 4],
  upscalers: [
    {
      times: 4,
      native_size: 512,
      size_multiple: 16,
      schedulers: ["ddim"],
      default_scheduler: "ddim",
      default_steps: 15,
      default_guidance_scale: 1,
    },
  ],
  parameters: { eta: ["img2img"] },
  state: "loaded",
  statuses: [],
  workers: ["w"],
  queued: 0,
  default: true,
};

/** A request of the form with an image, for tests. */
export function situationWith(changes: Partial<Situation> = {}): Situation {
  const base = { hasImage: true, hasMask: false, hasControls: false };
  return { card: CARD, mode: "transform", values: { prompt: "a house" }, ...base, ...changes };
}
