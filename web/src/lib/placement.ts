import type { Job, Padding } from "../api/generated/types.gen";

interface Placement {
  /** How the input is fitted into its box. */
  fit: "cover" | "contain" | "fill";
  /** Distances of that box from the edges of the result, in percent of the result. */
  inset: string;
}

const FITS = { crop: "cover", pad: "contain", stretch: "fill" } as const;

/** Return where the input image is in a result, so that both can be laid on each other. */
export function placement(request: Job["request"]): Placement {
  const { resize, task, region } = request as unknown as {
    resize?: keyof typeof FITS;
    task: string;
    region?: { outpaint?: Padding } & Record<string, unknown>;
  };
  void region;
  // The result of an upscale or inpainting has the aspect ratio of the input.
  const fit = task === "upscale" || task === "inpaint" ? "fill" : FITS[resize ?? "crop"];
  return { fit, inset: "0%" };
}
