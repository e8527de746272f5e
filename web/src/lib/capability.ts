import type { ServedModel, Task } from "../api/generated/types.gen";
import type { Mode } from "../state/form";

type Card = ServedModel;

/** Return the modes that the model supports, in the order in which the page offers them. */
export function modesOf(card: Card): Mode[] {
  const modes: Mode[] = [];
  if (has(card, "img2img") || has(card, "inpaint") || has(card, "control")) modes.push("transform");
  if (has(card, "edit")) modes.push("edit");
  if (canUpscale(card)) modes.push("upscale");
  return modes;
}

export function canUpscale(card: Card): boolean {
  return (card.upscales ?? []).length > 0;
}

export function has(card: Card, task: Task): boolean {
  return (card.tasks ?? ["img2img"]).includes(task);
}

/** Whether the model takes LoRAs or image prompts with this task. */
export function takesAdapters(card: Card, task: Task): boolean {
  return (card.adapter_tasks ?? []).includes(task);
}

/** Whether the model takes one of the optional parameters of the pipelines with this task. */
export function takesParameter(card: Card, name: string, task: Task, withControls: boolean): boolean {
  const parameters = (withControls ? card.control_parameters : card.parameters) ?? {};
  return (parameters[name] ?? []).includes(task);
}

/** The super-resolution model for a factor; undefined if image-to-image in tiles makes it. */
export function upscalerOf(card: Card, times: number | null | undefined) {
  return (card.upscalers ?? []).find((upscaler) => upscaler.times === times);
}

/** The strength that the service uses for a request that gives none. */
export function defaultStrength(task: Task): number {
  return { inpaint: 1, upscale: 0.3 }[task as string] ?? 0.8;
}
