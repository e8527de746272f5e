import type { Job } from "../api/generated/types.gen";

/** The class of an image that lets what is behind its transparent pixels be seen as such; empty if it has none. */
export function backdropOf(request: Job["request"]): string {
  return "background" in request && request.background === "transparent" ? "is-transparent" : "";
}
