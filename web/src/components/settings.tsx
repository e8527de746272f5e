import type { Speed } from "../api/generated/types.gen";
import { t } from "../i18n";
import { upscalerOf } from "../lib/capability";
import { guidanceOf, takes } from "../lib/request";
import { set, values } from "../state/form";
import { situation } from "../state/situation";
import { BackgroundField } from "./background";
import { SeedField } from "./seed-field";
import { SelectField } from "./select-field";
import { SizeField } from "./size-field";
import { Slider } from "./slider";

const SPEEDS = ["exact", "fast", "turbo"] as const;
const MAX_IMAGES = 8;
const MAX_STEPS = 150;
const USUAL_STEPS = 60;
const USUAL_GUIDANCE = 20;

/** The settings that most requests leave to the model. */
export function Settings() {
  const now = situation.value;
  if (!now) return null;
  const { card } = now;
  const upscaler = now.mode === "upscale" ? upscalerOf(card, now.values.upscale) : undefined;
  const { guidance_scale, image_guidance_scale, num_inference_steps, scheduler } = values.value;
  const schedulers = upscaler?.schedulers ?? card.schedulers;
  return (
    <details class="settings" open>
      <summary>{t().form.settings}</summary>
      <div class="settings-grid">
        {now.mode === "upscale" && (
          <SelectField
            field="upscale"
            label={t().form.times}
            value={String(now.values.upscale ?? "")}
            options={(card.upscales ?? []).map((times) => ({ value: String(times), label: `${times}×` }))}
            onChange={(times) => set({ upscale: Number(times) as 2 | 4 })}
          />
        )}
        {takes(now, "guidance_scale") && (
          <Slider
            field="guidance_scale"
            label={t().form.guidance}
            value={guidance_scale}
            fallback={guidanceOf({ ...now, values: { ...now.values, guidance_scale: undefined } })}
            min={1}
            max={USUAL_GUIDANCE}
            step={0.5}
            low={t().form.guidanceLow}
            high={t().form.guidanceHigh}
            onChange={(value) => set({ guidance_scale: value })}
          />
        )}
        {takes(now, "image_guidance_scale") && (
          <Slider
            field="image_guidance_scale"
            label={t().form.imageGuidance}
            value={image_guidance_scale}
            fallback={1.5}
            min={1}
            max={5}
            step={0.1}
            low={t().form.imageGuidanceLow}
            high={t().form.imageGuidanceHigh}
            onChange={(value) => set({ image_guidance_scale: value })}
          />
        )}
        <Slider
          field="num_inference_steps"
          label={t().form.steps}
          value={num_inference_steps}
          fallback={upscaler?.default_steps ?? card.default_steps ?? 30}
          min={1}
          max={(num_inference_steps ?? 0) > USUAL_STEPS ? MAX_STEPS : USUAL_STEPS}
          step={1}
          onChange={(value) => set({ num_inference_steps: value })}
        />
        <Slider
          field="num_images"
          label={t().form.images}
          value={values.value.num_images}
          fallback={1}
          min={1}
          max={MAX_IMAGES}
          step={1}
          onChange={(value) => set({ num_images: value })}
        />
        <SelectField
          field="scheduler"
          label={t().form.scheduler}
          value={scheduler ?? ""}
          options={[
            {
              value: "",
              label: t().form.modelDefault(upscaler?.default_scheduler ?? card.default_scheduler),
            },
            ...schedulers.map((name) => ({ value: name, label: name })),
          ]}
          onChange={(name) => set({ scheduler: (name || undefined) as typeof scheduler })}
        />
        {takes(now, "speed") && (
          <SelectField
            field="speed"
            label={t().form.speed}
            value={values.value.speed ?? "exact"}
            options={SPEEDS.map((speed) => ({ value: speed, label: t().form.speeds[speed] }))}
            onChange={(speed) => set({ speed: speed === "exact" ? undefined : (speed as Speed) })}
          />
        )}
        <SeedField />
        {takes(now, "width") && <SizeField />}
        <BackgroundField />
      </div>
    </details>
  );
}
