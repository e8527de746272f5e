import { useId } from "preact/hooks";
import { t } from "../i18n";
import { set, values } from "../state/form";
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
          value={seed ?? ""}
          {...invalid("seed")}
          onChange={({ currentTarget: { value } }) =>
            set({ seed: value.trim() === "" ? undefined : Number(value) })
          }
        />
        <button
          type="button"
          disabled={seed === undefined}
          title={t().form.random}
          onClick={() => set({ seed: undefined })}
        >
          <span aria-hidden="true">⚄</span>
          <span class="hidden">{t().form.random}</span>
        </button>
      </div>
      <FieldError field="seed" />
    </div>
  );
}
