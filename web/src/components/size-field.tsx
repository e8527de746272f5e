import { t } from "../i18n";
import { isLostToMask, takes } from "../lib/request";
import { set, values } from "../state/form";
import { situation } from "../state/situation";
import { FieldError } from "./field-error";
import { SelectField } from "./select-field";

const RESIZES = ["crop", "pad", "stretch"] as const;

/** The size of the result: automatic, or one of the sizes that the model was trained for; and how the image fits it. */
export function SizeField() {
  const now = situation.value;
  if (!now) return null;
  const { width, height, resize } = values.value;
  const sizes = now.card.sizes.map(([x, y]) => `${x}×${y}`);
  const chosen = width && height ? `${width}×${height}` : "";
  if (chosen && !sizes.includes(chosen)) sizes.push(chosen);
  const choose = (size: string) => {
    const [x, y] = size.split("×").map(Number);
    set({ width: x || undefined, height: y || undefined });
  };
  return (
    <>
      <div>
        <SelectField
          field="width"
          label={t().form.size}
          value={chosen}
          options={[
            { value: "", label: t().form.automatic },
            ...sizes.map((size) => ({ value: size, label: size })),
          ]}
          onChange={choose}
        />
        <FieldError field="height" />
      </div>
      {(takes(now, "resize") || isLostToMask(now, "resize")) && (
        <SelectField
          field="resize"
          label={t().form.resize}
          value={resize ?? "crop"}
          whyNot={takes(now, "resize") ? "" : t().form.notWithMask}
          options={RESIZES.map((name) => ({ value: name, label: t().form.resizes[name] ?? name }))}
          onChange={(name) => set({ resize: name as (typeof RESIZES)[number] })}
        />
      )}
    </>
  );
}
