import type { Job, JobImage } from "../api/generated/types.gen";
import { t } from "../i18n";
import { duration } from "../lib/duration";
import { useResultUrl } from "../lib/result-url";
import { useResult } from "../state/actions";
import { set } from "../state/form";

/** What can be done with a finished image. */
export function ResultActions({ job, image }: { job: Job; image: JobImage }) {
  const url = useResultUrl(job.id, image.index);
  const { run } = job.timings;
  return (
    <div class="actions">
      <a class="button" href={url ?? undefined} download={`${job.id}-${image.index}.png`}>
        {t().result.download}
      </a>
      <button type="button" onClick={() => void useResult(job.id, image.index)}>
        {t().result.useAsInput}
      </button>
      <button type="button" onClick={() => set({ seed: image.seed })} title={t().result.lockSeed}>
        {t().result.seed(String(image.seed))}
      </button>
      {run !== undefined && <span class="hint">{t().run.took(duration(run))}</span>}
    </div>
  );
}
