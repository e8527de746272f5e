import { t } from "../i18n";

/** A section in place of one whose fields the model does not take with a mask. */
export function Unavailable({ title }: { title: string }) {
  return (
    <div class="settings unavailable">
      <span>{title}</span> <span class="hint">{t().form.notWithMask}</span>
    </div>
  );
}
