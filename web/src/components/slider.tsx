import { useId } from "preact/hooks";
import { t } from "../i18n";
import { FieldError, invalid } from "./field-error";

interface Props {
  /** Name of the field of the request. */
  field: string;
  label: string;
  /** Undefined: the service's default, which is `fallback`. */
  value: number | null | undefined;
  fallback: number;
  min: number;
  max: number;
  step: number;
  /** What both ends mean. */
  low?: string;
  high?: string;
  onChange: (value: number | undefined) => void;
}

/** A number as a slider and as a text field, which also takes values beyond the slider. */
export function Slider(props: Props) {
  const { field, label, value, fallback, min, max, step, low, high, onChange } = props;
  const id = useId();
  const isDefault = value === undefined || value === null;
  const shown = isDefault ? fallback : value;
  return (
    <div class="field slider">
      <div class="slider-head">
        <label for={id}>{label}</label>
        {!isDefault && (
          <button
            type="button"
            class="reset"
            title={t().form.resetOne(label)}
            onClick={() => onChange(undefined)}
          >
            <span aria-hidden="true">↺</span>
            <span class="hidden">{t().form.resetOne(label)}</span>
          </button>
        )}
        <input
          class="number"
          type="number"
          aria-label={label}
          step="any"
          value={shown}
          {...invalid(field)}
          onChange={({ currentTarget: { value: text } }) => onChange(text === "" ? undefined : Number(text))}
        />
      </div>
      <input
        id={id}
        name={field}
        type="range"
        min={min}
        max={max}
        step={step}
        value={shown}
        style={{ "--share": (Math.min(Math.max(shown, min), max) - min) / (max - min) }}
        onInput={(event) => onChange(event.currentTarget.valueAsNumber)}
      />
      {low && (
        <div class="slider-ends" aria-hidden="true">
          <span>{low}</span>
          <span>{high}</span>
        </div>
      )}
      <FieldError field={field} />
    </div>
  );
}
