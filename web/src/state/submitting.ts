import { signal } from "@preact/signals";
import { t } from "../i18n";
import { type Plan, run } from "./actions";
import { inputImage, wrongSeed } from "./form";
import { isModelLoading, models } from "./models";
import { shownKey } from "./runs";
import { isReachable } from "./session";
import { situation } from "./situation";

export const isSubmitting = signal(false);

/** Run the form unless it cannot be run. */
export async function start(plan?: Plan): Promise<void> {
  if (whyNot() !== "") return;
  isSubmitting.value = true;
  try {
    const before = shownKey.value;
    await run(plan);
    if (shownKey.value !== before) showResult();
  } finally {
    isSubmitting.value = false;
  }
}

/** In one column, the result is below the form. */
function showResult(): void {
  if (matchMedia("(max-width: 860px)").matches) document.getElementById("result")?.scrollIntoView();
}

/** Why the form cannot be run; empty if it can. */
export function whyNot(): string {
  if (isSubmitting.value) return t().run.submitting;
  if (!isReachable.value) return t().service.away;
  const now = situation.value;
  if (!now) return noModelText();
  if (wrongSeed.value) return t().form.seedRule;
  return inputImage.value || now.hasControls ? "" : t().run.needsImage;
}

/** Why there is no model. */
export function noModelText(): string {
  if (models.value === null) return t().service.connecting;
  return isModelLoading.value ? t().service.loading : t().service.noWorker;
}
