import { t } from "../i18n";
import { newId } from "../lib/new-id";
import { isLostToMask, takes } from "../lib/request";
import { formError, type ImagePromptRow, imagePrompts } from "../state/form";
import { situation } from "../state/situation";
import { FieldError } from "./field-error";
import { ImageSlot } from "./image-slot";
import { Slider } from "./slider";
import { Unavailable } from "./unavailable";

const DEFAULT_SCALE = 0.6;

/** Images whose content or style the result takes up. */
export function ImagePrompts() {
  const now = situation.value;
  if (!now) return null;
  if (isLostToMask(now, "image_prompts")) return <Unavailable title={t().imagePrompts.title} />;
  if (!takes(now, "image_prompts")) return null;
  const rows = imagePrompts.value;
  const add = () => {
    imagePrompts.value = [...rows, { key: newId(), scale: DEFAULT_SCALE, image: null }];
  };
  return (
    <details class="settings" open={rows.length > 0}>
      <summary>{t().imagePrompts.title}</summary>
      <p class="hint">{t().imagePrompts.hint}</p>
      {rows.map((row, index) => (
        <Row key={row.key} row={row} index={index} />
      ))}
      <FieldError field="image_prompts" />
      {rows.length < (now.card.max_image_prompts ?? 0) && (
        <button type="button" onClick={add}>
          {t().imagePrompts.add}
        </button>
      )}
    </details>
  );
}

function change(key: string, changes: Partial<ImagePromptRow>): void {
  imagePrompts.value = imagePrompts.value.map((row) => (row.key === key ? { ...row, ...changes } : row));
}

function Row({ row, index }: { row: ImagePromptRow; index: number }) {
  const texts = t().imagePrompts;
  return (
    <fieldset class="row row-inline">
      <legend class="hidden">{texts.one(index + 1)}</legend>
      <ImageSlot
        image={row.image}
        label={texts.image}
        placeholder={texts.image}
        onChange={(image) => change(row.key, { image })}
        onError={(message) => (formError.value = message)}
      />
      <Slider
        field={`image_prompts.${index}.scale`}
        label={texts.scale}
        value={row.scale === DEFAULT_SCALE ? undefined : row.scale}
        fallback={DEFAULT_SCALE}
        min={0}
        max={2}
        step={0.05}
        onChange={(scale = DEFAULT_SCALE) => change(row.key, { scale })}
      />
      <button
        type="button"
        onClick={() => (imagePrompts.value = imagePrompts.value.filter(({ key }) => key !== row.key))}
      >
        {texts.remove}
      </button>
    </fieldset>
  );
}
