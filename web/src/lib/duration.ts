import { language } from "../i18n";

/** Return seconds as text such as `9 s` or `2 min 5 s`. */
export function duration(seconds: number): string {
  const [s, min] = language.value === "zh" ? ["秒", "分"] : ["s", "min"];
  if (seconds < 10) return `${Math.max(0, seconds).toFixed(1)} ${s}`;
  const whole = Math.round(seconds);
  return whole < 60 ? `${whole} ${s}` : `${Math.floor(whole / 60)} ${min} ${whole % 60} ${s}`;
}

/** Return seconds as text such as `45 minutes`, `24 hours` or `7 days`. */
export function longDuration(seconds: number): string {
  const [unit, size] =
    seconds < 2 * 3600
      ? (["minute", 60] as const)
      : seconds < 72 * 3600
        ? (["hour", 3600] as const)
        : (["day", 86_400] as const);
  const style = { style: "unit", unit, unitDisplay: "long" } as const;
  return new Intl.NumberFormat(language.value, style).format(Math.round(seconds / size));
}
