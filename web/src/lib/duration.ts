import { language } from "../i18n";

/** Return seconds as text such as `9 s` or `2 min 5 s`. */
export function duration(seconds: number): string {
  const [s, min] = language.value === "zh" ? ["秒", "分"] : ["s", "min"];
  if (seconds < 10) return `${Math.max(0, seconds).toFixed(1)} ${s}`;
  const whole = Math.round(seconds);
  return whole < 60 ? `${whole} ${s}` : `${Math.floor(whole / 60)} ${min} ${whole % 60} ${s}`;
}
