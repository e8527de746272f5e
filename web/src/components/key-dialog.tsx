import { useEffect, useRef, useState } from "preact/hooks";
import { t } from "../i18n";
import { apiKey, enterKey, keyNeeded, wasRefused } from "../state/session";

/** Asks for the API key. The page behind it cannot be used without one. */
export function KeyDialog() {
  const dialog = useRef<HTMLDialogElement>(null);
  const [key, setKey] = useState("");
  useEffect(() => dialog.current?.showModal(), []);
  const submit = (event: Event) => {
    event.preventDefault();
    enterKey(key);
  };
  return (
    <dialog
      ref={dialog}
      class="dialog"
      aria-labelledby="key-title"
      onCancel={() => (keyNeeded.value = false)}
    >
      <form onSubmit={submit}>
        <h2 id="key-title">{t().key.title}</h2>
        <p>{t().key.why}</p>
        {wasRefused.value && apiKey.value && <p class="error">{t().key.refused}</p>}
        <label class="field">
          <span>{t().key.label}</span>
          <input
            type="password"
            autocomplete="off"
            required
            value={key}
            onInput={(event) => setKey(event.currentTarget.value)}
          />
        </label>
        <button type="submit" class="primary">
          {t().key.use}
        </button>
      </form>
    </dialog>
  );
}
