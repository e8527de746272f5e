import { t } from "../i18n";
import { set, values } from "../state/form";
import { FieldError } from "./field-error";
import { Slider } from "./slider";

const USUAL = { b1: 1.3, b2: 1.4, s1: 0.9, s2: 0.2 };
const FACTORS = ["b1", "b2", "s1", "s2"] as const;
const MAX_FACTOR = 4;

/** FreeU with its usual factors, which can be changed while it is on. */
export function FreeU() {
  const { freeu } = values.value;
  return (
    <div class="field" title={t().form.freeuHint}>
      <label class="check">
        <input
          type="checkbox"
          name="freeu"
          checked={freeu != null}
          onChange={(event) => set({ freeu: event.currentTarget.checked ? USUAL : undefined })}
        />
        FreeU
      </label>
      {freeu &&
        FACTORS.map((factor) => (
          <Slider
            key={factor}
            field={`freeu.${factor}`}
            label={factor}
            value={freeu[factor] === USUAL[factor] ? undefined : freeu[factor]}
            fallback={USUAL[factor]}
            min={factor.startsWith("b") ? 0.05 : 0}
            max={MAX_FACTOR}
            step={0.05}
            onChange={(value = USUAL[factor]) => set({ freeu: { ...freeu, [factor]: value } })}
          />
        ))}
      <FieldError field="freeu" />
    </div>
  );
}
