import { useId } from "preact/hooks";
import { t } from "../i18n";
import { set, typeSeed, values, wrongSeed } from "../state/form";
import { FieldError, invalid } from "./field-error";

/** The seed; empty: the service chooses one. */
export function SeedField() {
  const id = useId();
  const { seed } = values.value;
  return (
    <div class="field">
      <label for={id}>{t().form.seed}</label>
      <div class="joined">
        <input
          id={id}
          name="seed"
          type="text"
          inputMode="numeric"
          placeholder={t().form.random}
          value={wrongSeed.value || (seed ?? "")}
          {...invalid("seed")}
          {...(wrongSeed.value && { "aria-invalid": true, "aria-describedby": `${id}-rule` })}
          onChange={({ currentTarget: { value } }) => typeSeed(value)}
        />
        <button
          type="button"
          disabled={seed === undefined && !wrongSeed.value}
          title={t().form.random}
          onClick={() => set({ seed: undefined })}
        >
          <span aria-hidden="true">⚄</span>
          <span class="hidden">{t().form.random}</span>
        </button>
      </div>
      {wrongSeed.value && (
        <p class="error" id={`${id}-rule`}>
          {t().form.seedRule}
        </p>
      )}
      <FieldError field="seed" />
    </div>
  );
}
