import { t } from "../i18n";
import { modesOf } from "../lib/capability";
import { takes } from "../lib/request";
import { changeMode, type Mode, set, values } from "../state/form";
import { card } from "../state/models";
import { situation } from "../state/situation";
import { BackgroundPrompt } from "./background";
import { Controls } from "./controls";
import { ImagePrompts } from "./image-prompts";
import { Loras } from "./loras";
import { MoreSettings } from "./more-settings";
import { Presets } from "./presets";
import { References } from "./references";
import { Settings } from "./settings";
import { Strength } from "./strength";
import { Strips } from "./strips";
import { TextField } from "./text-field";

export function Form() {
  const now = situation.value;
  if (!now) return null;
  const { prompt = "", negative_prompt = "", instruction } = values.value;
  return (
    <div class="form">
      <Modes />
      {takes(now, "instruction") && (
        <TextField
          field="instruction"
          label={t().form.instruction}
          hint={t().form.instructionHint}
          rows={2}
          value={instruction ?? ""}
          onChange={(text) => set({ instruction: text })}
        />
      )}
      {takes(now, "prompt") && (
        <TextField
          field="prompt"
          label={t().form.prompt}
          hint={t().form.promptHint}
          rows={2}
          value={prompt}
          onChange={(text) => set({ prompt: text })}
        />
      )}
      <BackgroundPrompt />
      <Strength />
      {takes(now, "negative_prompt") && (
        <TextField
          field="negative_prompt"
          label={t().form.negativePrompt}
          hint={t().form.negativeHint}
          rows={1}
          value={negative_prompt}
          onChange={(text) => set({ negative_prompt: text })}
        />
      )}
      <References />
      <Settings />
      <Controls />
      <ImagePrompts />
      <Loras />
      <MoreSettings />
      <Strips />
      <Presets />
    </div>
  );
}

/** Tabs of the tasks that the model supports. */
function Modes() {
  const modes = card.value ? modesOf(card.value) : [];
  if (modes.length < 2) return null;
  return (
    <div class="segmented" role="radiogroup" aria-label={t().mode.label}>
      {modes.map((one: Mode) => (
        <label key={one} class={situation.value?.mode === one ? "is-chosen" : ""}>
          <input
            type="radio"
            name="mode"
            value={one}
            checked={situation.value?.mode === one}
            onChange={() => changeMode(situation.value?.mode ?? one, one)}
          />
          {t().mode[one]}
        </label>
      ))}
    </div>
  );
}
