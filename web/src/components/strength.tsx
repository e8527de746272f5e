import { t } from "../i18n";
import { defaultStrength } from "../lib/capability";
import { takes, taskOf } from "../lib/request";
import { set, values } from "../state/form";
import { situation } from "../state/situation";
import { Slider } from "./slider";

export function Strength() {
  const now = situation.value;
  if (!now || !takes(now, "strength")) return null;
  return (
    <Slider
      field="strength"
      label={t().form.strength}
      value={values.value.strength}
      fallback={defaultStrength(taskOf(now))}
      min={0}
      max={1}
      step={0.01}
      low={t().form.strengthLow}
      high={t().form.strengthHigh}
      onChange={(strength) => set({ strength })}
    />
  );
}
