import { useState } from "preact/hooks";
import { t } from "../i18n";
import { apply, deletePreset, presets, savePreset, sharedUrl } from "../state/settings";
import { CopyButton } from "./copy-button";

/** Settings that are kept in this browser, and a link to those of the form. */
export function Presets() {
  const [name, setName] = useState("");
  const texts = t().presets;
  const save = (event: Event) => {
    event.preventDefault();
    savePreset(name.trim());
    setName("");
  };
  return (
    <details class="settings">
      <summary>{texts.title}</summary>
      <ul class="presets">
        {presets.value.map((preset) => (
          <li key={preset.name}>
            <button type="button" class="preset-name" onClick={() => apply(preset.settings)}>
              {preset.name}
            </button>
            <button type="button" onClick={() => deletePreset(preset.name)} title={texts.remove(preset.name)}>
              <span aria-hidden="true">×</span>
              <span class="hidden">{texts.remove(preset.name)}</span>
            </button>
          </li>
        ))}
      </ul>
      <form class="joined" onSubmit={save}>
        <input
          type="text"
          aria-label={texts.name}
          placeholder={texts.name}
          required
          value={name}
          onInput={(event) => setName(event.currentTarget.value)}
        />
        <button type="submit">{texts.save}</button>
      </form>
      <p class="hint">{texts.linkHint}</p>
      <CopyButton label={texts.link} text={sharedUrl} />
    </details>
  );
}
