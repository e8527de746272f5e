import { t } from "../i18n";
import { canReplaceBackground, replacesBackground, takes } from "../lib/request";
import { set, values } from "../state/form";
import { situation } from "../state/situation";
import { SelectField } from "./select-field";
import { Slider } from "./slider";
import { TextField } from "./text-field";

const CHOICES = ["keep", "transparent", "replace"] as const;

/** What becomes of the background: it is kept, made transparent, or replaced by what a prompt says. */
export function BackgroundField() {
  const now = situation.value;
  if (!now || !takes(now, "background")) return null;
  const texts = t().background;
  const { background = "keep", mask_blur } = values.value;
  const isReplaced = replacesBackground(now);
  const choices = CHOICES.filter((choice) => choice !== "replace" || canReplaceBackground(now));
  const chosen = typeof background === "string" ? background : isReplaced ? "replace" : "keep";
  const choose = (choice: string) => {
    if (choice === "keep") set({ background: undefined });
    else if (choice === "transparent") set({ background: choice });
    else set({ background: { prompt: "" } });
  };
  return (
    <>
      <SelectField
        field="background"
        label={texts.title}
        value={chosen}
        options={choices.map((choice) => ({ value: choice, label: texts.choices[choice] }))}
        onChange={choose}
      />
      {isReplaced && (
        <Slider
          field="mask_blur"
          label={t().canvas.feather}
          value={mask_blur}
          fallback={4}
          min={0}
          max={64}
          step={1}
          onChange={(value) => set({ mask_blur: value })}
        />
      )}
    </>
  );
}

/** The prompt of the new background, in the place of the other prompt. */
export function BackgroundPrompt() {
  const now = situation.value;
  const { background } = values.value;
  if (!now || typeof background !== "object" || !replacesBackground(now)) return null;
  return (
    <TextField
      field="background.prompt"
      label={t().background.prompt}
      hint={t().background.promptHint}
      rows={2}
      value={background.prompt}
      onChange={(prompt) => set({ background: { prompt } })}
    />
  );
}
