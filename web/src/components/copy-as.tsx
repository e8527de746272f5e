import { signal } from "@preact/signals";
import { BASE } from "../api/client";
import type { Img2ImgRequest } from "../api/generated/types.gen";
import { t } from "../i18n";
import { CODE_LANGUAGES, type CodeLanguage, codeFor } from "../lib/copy-as";
import { apiKey } from "../state/session";
import { CopyButton } from "./copy-button";

const chosen = signal<CodeLanguage>("curl");

/** The request of a result as code that makes the same image. */
export function CopyAs({ request, seed }: { request: Img2ImgRequest; seed: number }) {
  const target = { service: BASE, needsKey: apiKey.value !== null };
  const code = codeFor(chosen.value, { ...request, seed }, target);
  return (
    <details class="copy-as">
      <summary>{t().copy.title}</summary>
      <div class="segmented" role="radiogroup" aria-label={t().copy.title}>
        {(Object.keys(CODE_LANGUAGES) as CodeLanguage[]).map((name) => (
          <label key={name} class={chosen.value === name ? "is-chosen" : ""}>
            <input
              type="radio"
              name="code-language"
              value={name}
              checked={chosen.value === name}
              onChange={() => (chosen.value = name)}
            />
            {CODE_LANGUAGES[name]}
          </label>
        ))}
      </div>
      {/* biome-ignore lint/a11y/noNoninteractiveTabindex: the code scrolls, also by keyboard */}
      <pre class="code" tabIndex={0}>
        <code>{code}</code>
      </pre>
      <div class="actions">
        <CopyButton label={t().copy.copy} text={() => code} />
        <span class="hint">{t().copy.images}</span>
      </div>
    </details>
  );
}
