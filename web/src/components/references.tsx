import { t } from "../i18n";
import { takes } from "../lib/request";
import { fieldErrors, formError, references } from "../state/form";
import type { StoredImage } from "../state/images";
import { situation } from "../state/situation";
import { FieldError } from "./field-error";
import { ImageSlot } from "./image-slot";

/** Further images that an instruction refers to, and a place for the next one while the model takes more. */
export function References() {
  const now = situation.value;
  if (!now || !takes(now, "images")) return null;
  const texts = t().references;
  const images: (StoredImage | null)[] = [...references.value];
  if (images.length + 1 < (now.card.max_images ?? 1)) images.push(null);
  return (
    <details class="settings" open>
      <summary>{texts.title}</summary>
      <p class="hint">{texts.hint}</p>
      <div class="references">
        {images.map((image, index) => (
          <ImageSlot
            key={image?.id ?? "next"}
            image={image}
            // The input image is the first.
            label={texts.one(index + 2)}
            placeholder={texts.one(index + 2)}
            onChange={(chosen) => change(index, chosen)}
            onError={(message) => (formError.value = message)}
          />
        ))}
      </div>
      <FieldError field="images" />
    </details>
  );
}

/** Put an image in place of that at an index; null removes it. */
function change(index: number, image: StoredImage | null): void {
  const images = references.value;
  references.value = [...images.slice(0, index), ...(image ? [image] : []), ...images.slice(index + 1)];
  fieldErrors.value = fieldErrors.value.filter(({ field }) => field.split(".")[0] !== "images");
}
