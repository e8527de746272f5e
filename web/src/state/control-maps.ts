import { signal } from "@preact/signals";
import { submitControlMap } from "../api/generated/sdk.gen";
import { type ControlRow, inputImage, values } from "./form";
import { uploaded } from "./images";
import { track } from "./jobs";

/** Ids of the jobs that make the map of a control, by the key of its row. */
export const mapJobs = signal<Record<string, string>>({});

/** Make the map that the control will follow, without running the model. Throws ApiError. */
export async function previewMap(row: ControlRow): Promise<void> {
  const source = row.image ?? inputImage.value;
  if (!source) return;
  const { width, height, resize, model } = values.value;
  const body = { image: await uploaded(source), type: row.type, width, height, resize, model };
  const { data } = await submitControlMap({ body, throwOnError: true });
  track(data);
  mapJobs.value = { ...mapJobs.value, [row.key]: data.id };
}

/** Forget the map of a row: it was made of another image or for another type. */
export function forgetMap(key: string): void {
  const { [key]: _, ...others } = mapJobs.value;
  mapJobs.value = others;
}
