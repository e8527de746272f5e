import { computed } from "@preact/signals";
import { modesOf } from "../lib/capability";
import type { Situation } from "../lib/request";
import { controls, inputImage, mask, mode, values } from "./form";
import { card } from "./models";

/** What decides which fields the form shows; null while no model is known. */
export const situation = computed<Situation | null>(() => {
  const model = card.value;
  if (!model) return null;
  const modes = modesOf(model);
  const chosen = modes.includes(mode.value) ? mode.value : (modes[0] ?? "transform");
  const upscales = model.upscales ?? [];
  const upscale = upscales.find((times) => times === values.value.upscale) ?? upscales[0];
  return {
    card: model,
    mode: chosen,
    values: chosen === "upscale" ? ({ ...values.value, upscale } as typeof values.value) : values.value,
    hasImage: inputImage.value !== null,
    hasMask: mask.value !== null,
    hasControls: chosen === "transform" && controls.value.length > 0,
  };
});
