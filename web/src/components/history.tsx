import { useEffect } from "preact/hooks";
import { ApiError } from "../api/client";
import type { Job } from "../api/generated/types.gen";
import { t } from "../i18n";
import { longDuration } from "../lib/duration";
import { useResultUrl } from "../lib/result-url";
import { backdropOf } from "../lib/transparency";
import {
  addToHistory,
  historyIds,
  historyJobs,
  keptSeconds,
  loadHistory,
  nextCursor,
} from "../state/history";
import { viewOf } from "../state/jobs";
import { runs, showError, showJob } from "../state/runs";

/** The jobs of the service that this caller may see, with thumbnails. */
export function History() {
  const submitted = runs.value.flatMap(({ cells }) => cells.flatMap(({ jobId }) => jobId ?? []));
  useEffect(() => {
    for (const id of submitted) if (!historyIds.value.includes(id)) addToHistory(id);
  }, [submitted.length]);
  const ids = historyJobs.value.map(({ id }) => id);
  const seconds = keptSeconds.value;
  return (
    <section class="history" aria-labelledby="history-title">
      <h2 id="history-title">{t().history.title}</h2>
      {seconds !== null && <p class="hint">{t().history.kept(longDuration(seconds))}</p>}
      {ids.length === 0 ? (
        <p class="hint">{t().history.empty}</p>
      ) : (
        <ul class="history-list">
          {ids.map((id) => (
            <li key={id}>
              <Entry id={id} />
            </li>
          ))}
        </ul>
      )}
      {nextCursor.value && (
        <button type="button" onClick={() => void loadMore()}>
          {t().history.more}
        </button>
      )}
    </section>
  );
}

async function loadMore(): Promise<void> {
  try {
    await loadHistory(nextCursor.value ?? undefined);
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    showError(error);
  }
}

function Entry({ id }: { id: string }) {
  const view = viewOf(id).value;
  if (!view) return null;
  const { job } = view;
  const label = labelOf(job);
  const tag = t().history.tags[job.request.task];
  return (
    <button type="button" class="history-entry" title={label} onClick={() => showJob(job)}>
      {job.images.length > 0 ? <Thumbnail job={job} /> : <span class="history-state">{stateText(job)}</span>}
      {tag && <span class="history-tag">{tag}</span>}
      <span class="hidden">{t().history.open(label)}</span>
    </button>
  );
}

function Thumbnail({ job }: { job: Job }) {
  const url = useResultUrl(job.id, 0, "webp");
  return url ? <img src={url} alt="" class={backdropOf(job.request)} loading="lazy" /> : null;
}

function labelOf({ request, created_at }: Job): string {
  const { prompt, instruction } = request as { prompt?: string; instruction?: string };
  const tag = t().history.tags[request.task];
  const time = new Date(created_at).toLocaleString();
  return prompt || instruction || (tag ? `${tag}, ${time}` : time);
}

function stateText({ status, progress }: Job): string {
  if (status === "failed") return t().run.failed;
  if (status === "cancelled") return t().run.cancelled;
  return status === "running" ? `${Math.round(progress.fraction * 100)} %` : "…";
}
