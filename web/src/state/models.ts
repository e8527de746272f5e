import { computed, signal } from "@preact/signals";
import { listModels } from "../api/generated/sdk.gen";
import type { ServedModel } from "../api/generated/types.gen";
import { values } from "./form";

/** The models that live workers serve; null until the service has answered. */
export const models = signal<ServedModel[] | null>(null);

/** Whether a worker is loading a model that the service does not serve yet. */
export const isModelLoading = signal(false);

/** The model of the form: the chosen one, else the service's default. Null while there is none. */
export const card = computed<ServedModel | null>(() => {
  const all = models.value ?? [];
  return (
    all.find(({ name }) => name === values.value.model) ?? all.find((one) => one.default) ?? all[0] ?? null
  );
});

/** Load the list of models. Throws ApiError. */
export async function loadModels(): Promise<void> {
  const { data } = await listModels({ throwOnError: true });
  isModelLoading.value = (data.pending ?? []).some(({ state }) => state === "loading");
  // An unchanged list makes no component render again.
  if (JSON.stringify(data.models) !== JSON.stringify(models.value)) models.value = data.models;
}
