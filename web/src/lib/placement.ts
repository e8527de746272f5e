import type { Job } from "../api/generated/types.gen";

export interface Placement {
  /** How the input is fitted into its box. */
  fit: "cover" | "contain" | "fill";
  /** Its box in the result, in percent. */
  left: string;
  top: string;
  width: string;
  height: string;
}

const FITS = { crop: "cover", pad: "contain", stretch: "fill" } as const;
const WHOLE = { left: "0%", top: "0%", width: "100%", height: "100%" };

/** Return where the input image is in a result, so that both can be laid on each other. */
export function placement(request: Job["request"]): Placement {
  if (!("task" in request) || request.task === "upscale") return { fit: "fill", ...WHOLE };
  if (request.task !== "inpaint") {
    return { fit: FITS["resize" in request ? (request.resize ?? "crop") : "crop"], ...WHOLE };
  }
  const { canvas, margins = {} } = request.region;
  const [width = 1, height = 1] = canvas as number[];
  const { left = 0, top = 0, right = 0, bottom = 0 } = margins;
  const percent = (pixels: number, of: number) => `${(100 * pixels) / of}%`;
  return {
    fit: "fill",
    left: percent(left, width),
    top: percent(top, height),
    width: percent(width - left - right, width),
    height: percent(height - top - bottom, height),
  };
}
