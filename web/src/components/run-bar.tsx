import { signal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { t } from "../i18n";
import { run } from "../state/actions";
import { inputImage } from "../state/form";
import { isReachable } from "../state/session";
import { situation } from "../state/situation";

const isSubmitting = signal(false);

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
  return (
    <div class="run-bar">
      <button type="button" class="primary run" disabled={reason !== ""} onClick={() => void start()}>
        {isSubmitting.value ? t().run.submitting : t().run.run}
        <kbd>{t().run.shortcut}</kbd>
      </button>
      {reason && !isSubmitting.value && <p class="hint">{reason}</p>}
    </div>
  );
}

async function start(): Promise<void> {
  if (whyNot() !== "") return;
  isSubmitting.value = true;
  try {
    await run();
  } finally {
    isSubmitting.value = false;
  }
}

/** Why the form cannot be run; empty if it can. */
function whyNot(): string {
  if (isSubmitting.value) return t().run.submitting;
  if (!isReachable.value) return t().service.away;
  const now = situation.value;
  if (!now) return t().service.connecting;
  return inputImage.value || now.hasControls ? "" : t().run.needsImage;
}
