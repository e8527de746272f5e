import { useState } from "preact/hooks";
import { t } from "../i18n";

const SHOWN_MS = 2000;

/** Copies text to the clipboard, and shows for a moment that it did. */
export function CopyButton({ label, text }: { label: string; text: () => string }) {
  const [isCopied, setIsCopied] = useState(false);
  const copy = async () => {
    await writeClipboard(text());
    setIsCopied(true);
    setTimeout(() => setIsCopied(false), SHOWN_MS);
  };
  return (
    <>
      <button type="button" onClick={() => void copy()}>
        {isCopied ? t().copy.copied : label}
      </button>
      <span class="hidden" role="status">
        {isCopied ? t().copy.copied : ""}
      </span>
    </>
  );
}

/** Without HTTPS, a browser has the clipboard of `navigator` only on localhost. */
async function writeClipboard(text: string): Promise<void> {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = document.createElement("textarea");
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}
