import { type Language, language, t } from "../i18n";
import { set } from "../state/form";
import { card, models } from "../state/models";
import { apiKey, isReachable, keyNeeded, wasRefused } from "../state/session";
import { noModelText } from "../state/submitting";

export function Header() {
  return (
    <header class="header">
      <h1 class="brand">
        <Mark />
        img2img
      </h1>
      <ModelChooser />
      <Status />
      <nav class="header-links">
        {(apiKey.value || wasRefused.value) && (
          <button type="button" class="link" onClick={() => (keyNeeded.value = true)}>
            {t().key.change}
          </button>
        )}
        <select
          class="plain"
          aria-label={t().app.language}
          value={language.value}
          onChange={(event) => (language.value = event.currentTarget.value as Language)}
        >
          <option value="en">English</option>
          <option value="zh">中文</option>
        </select>
        <a href="docs">{t().app.docs}</a>
      </nav>
    </header>
  );
}

function Mark() {
  return (
    <svg viewBox="0 0 32 32" width="24" height="24" aria-hidden="true">
      <rect width="32" height="32" rx="7" class="mark-ground" />
      <path d="M6 24 13 13l5 7 3-4 5 8z" fill="#fff" />
      <circle cx="21.5" cy="10" r="2.8" fill="#ffd27a" />
    </svg>
  );
}

function ModelChooser() {
  const model = card.value;
  if (!model) return null;
  const all = models.value ?? [];
  return (
    <div class="model">
      <label class="model-label" for="model">
        {t().model.label}
      </label>
      {all.length > 1 ? (
        <select id="model" value={model.name} onChange={(event) => set({ model: event.currentTarget.value })}>
          {all.map(({ name }) => (
            <option key={name}>{name}</option>
          ))}
        </select>
      ) : (
        <output id="model" class="model-name">
          {model.name}
        </output>
      )}
      <span class="model-can">
        {abilities(model.tasks ?? [])
          .concat(t().model.native(model.native_size))
          .join(" · ")}
      </span>
    </div>
  );
}

function abilities(tasks: string[]): string[] {
  return tasks.map((task) => t().model.can[task] ?? task);
}

function Status() {
  let text = "";
  if (!isReachable.value) text = t().service.away;
  else if (!models.value?.length && !keyNeeded.value) text = noModelText();
  return (
    <p class={`status ${isReachable.value ? "" : "is-away"}`} role="status">
      {text}
    </p>
  );
}
