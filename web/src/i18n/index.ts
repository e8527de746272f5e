import { computed } from "@preact/signals";
import { saved } from "../state/saved";
import { en } from "./en";
import { zh } from "./zh";

export type Texts = typeof en;
export type Language = "en" | "zh";

const LANGUAGES: Record<Language, Texts> = { en, zh };

export const language = saved<Language>(
  "language",
  navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en",
  localStorage,
);
/** The texts of the page in the chosen language. */
export const texts = computed(() => LANGUAGES[language.value] ?? en);
/** Shorthand for components: `t().run`. */
export const t = (): Texts => texts.value;
