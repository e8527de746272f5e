import { t } from "../i18n";
import { isLostToMask, takes } from "../lib/request";
import { set, values } from "../state/form";
import { situation } from "../state/situation";
import { FieldError } from "./field-error";
import { Slider } from "./slider";
import { Unavailable } from "./unavailable";

/** A slider for each LoRA of the model; at 0 it is not applied. */
export function Loras() {
  const now = situation.value;
  if (!now) return null;
  if (isLostToMask(now, "loras")) return <Unavailable title={t().loras.title} />;
  if (!takes(now, "loras")) return null;
  const chosen = values.value.loras ?? [];
  const change = (name: string, scale = 0) => {
    const others = chosen.filter((lora) => lora.name !== name);
    const all = scale === 0 ? others : [...others, { name, scale }];
    set({ loras: all.length > 0 ? all : undefined });
  };
  return (
    <details class="settings" open={chosen.length > 0}>
      <summary>{t().loras.title}</summary>
      <p class="hint">{t().loras.hint}</p>
      <div class="settings-grid">
        {(now.card.loras ?? []).map((name) => (
          <Slider
            key={name}
            field={`loras.${name}`}
            label={name}
            value={chosen.find((lora) => lora.name === name)?.scale}
            fallback={0}
            min={-2}
            max={2}
            step={0.05}
            onChange={(scale) => change(name, scale)}
          />
        ))}
      </div>
      <FieldError field="loras" />
    </details>
  );
}
