/** The settings of the form as one value: to restore, to share and to keep as a preset. */

import type { Job } from "../api/generated/types.gen";
import { newId } from "../lib/new-id";
import { type Restored, type RestoredControl, restored } from "../lib/restore";
import { fromHash, toHash } from "../lib/share";
import { controls, fieldErrors, formError, mode, type Values, values, wrongSeed } from "./form";
import { saved } from "./saved";

export interface Preset {
  name: string;
  settings: Restored;
}

export const presets = saved<Preset[]>("presets", [], localStorage);

/** Return the settings of the form, without its images. */
export function currentSettings(): Restored {
  const rows = controls.value.map(({ key: _key, image: _image, ...control }): RestoredControl => control);
  return { mode: mode.value, values: values.value, controls: rows };
}

/** Put settings into the form, in place of those it has. */
export function apply({ mode: newMode, values: newValues, controls: rows }: Restored): void {
  mode.value = newMode;
  values.value = newValues as Values;
  const base = { scale: 1, start: 0, end: 1, preprocess: true, image: null };
  controls.value = rows.map((row) => ({ ...base, ...row, key: newId() }));
  fieldErrors.value = [];
  formError.value = "";
  wrongSeed.value = "";
}

/** Put the settings of a job, or of the metadata of a result, into the form. */
export function restoreSettings(request: Job["request"] | Record<string, unknown>): void {
  apply(restored(request));
}

/** Return the URL of the page with the settings of the form. */
export function sharedUrl(): string {
  return location.href.split("#")[0] + toHash(currentSettings());
}

/** Take over the settings of the URL, if it has any, and remove them from it. */
export function applyShared(): void {
  const shared = fromHash(location.hash);
  if (!isSettings(shared)) return;
  apply(shared);
  history.replaceState(null, "", location.pathname + location.search);
}

function isSettings(value: unknown): value is Restored {
  const settings = value as Partial<Restored> | null;
  return (
    typeof settings?.values === "object" &&
    settings.values !== null &&
    Array.isArray(settings.controls) &&
    ["transform", "edit", "upscale"].includes(settings.mode ?? "")
  );
}

export function savePreset(name: string): void {
  const others = presets.value.filter((preset) => preset.name !== name);
  presets.value = [...others, { name, settings: currentSettings() }];
}

export function deletePreset(name: string): void {
  presets.value = presets.value.filter((preset) => preset.name !== name);
}
