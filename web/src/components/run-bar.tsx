import { useEffect, useState } from "preact/hooks";
import { t } from "../i18n";
import { takes } from "../lib/request";
import { STRENGTHS } from "../lib/strips";
import { fieldErrors, formError } from "../state/form";
import { planFor } from "../state/plans";
import { situation } from "../state/situation";
import { isSubmitting, start, whyNot } from "../state/submitting";

/** Run the form. Ctrl-Enter does the same from anywhere. */
export function RunBar() {
  useEffect(() => {
    const onKey = (event: KeyboardEvent) => {
      if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
      event.preventDefault();
      void start();
    };
    document.addEventListener("keydown", onKey);
    return () => document.removeEventListener("keydown", onKey);
  }, []);
  const reason = whyNot();
  const now = situation.value;
  return (
    <div class="run-bar">
      <OtherErrors />
      <div class="run-buttons">
        <button type="button" class="primary run" disabled={reason !== ""} onClick={() => void start()}>
          {isSubmitting.value ? t().run.submitting : t().run.run}
          <kbd>{t().run.shortcut}</kbd>
        </button>
        {now && takes(now, "strength") && (
          <button
            type="button"
            class="strip"
            disabled={reason !== ""}
            title={t().strips.strengthHint}
            onClick={() => void start(planFor({ field: "strength", values: STRENGTHS }))}
          >
            {t().strips.strength}
          </button>
        )}
      </div>
      {reason && !isSubmitting.value && <p class="hint">{reason}</p>}
    </div>
  );
}

/** The error of a request that no field shows. */
function OtherErrors() {
  const [isShown, setIsShown] = useState(false);
  const [message, errors] = [formError.value, fieldErrors.value];
  // After the fields have shown theirs.
  useEffect(() => setIsShown(document.querySelector("[data-field]") !== null), [message, errors]);
  if (!message || isShown) return null;
  return (
    <p class="error" role="alert">
      {message}
    </p>
  );
}
