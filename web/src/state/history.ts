import { computed, signal } from "@preact/signals";
import { listJobs } from "../api/generated/sdk.gen";
import type { Job } from "../api/generated/types.gen";
import { isOver, track, viewOf } from "./jobs";

const PAGE_SIZE = 24;

/** Ids of the jobs of the service, newest first, as far as they are loaded. */
export const historyIds = signal<string[]>([]);
/** Those jobs, newest first: a tab also knows older jobs than the pages that are loaded. */
export const historyJobs = computed<Job[]>(() =>
  historyIds.value
    .flatMap((id) => viewOf(id).value?.job ?? [])
    .sort((a, b) => Date.parse(b.created_at) - Date.parse(a.created_at)),
);
/** For how many seconds the service keeps a job after its end; null while no job that has ended is known. */
export const keptSeconds = computed<number | null>(() => {
  const ended = historyJobs.value.find(({ finished_at, expires_at }) => finished_at && expires_at);
  if (!ended?.finished_at || !ended.expires_at) return null;
  return (Date.parse(ended.expires_at) - Date.parse(ended.finished_at)) / 1000;
});
/** `cursor` of the next page; null on the last one. */
export const nextCursor = signal<string | null>(null);

/** Load the newest jobs, or with a cursor the page after it. Throws ApiError. */
export async function loadHistory(cursor?: string): Promise<void> {
  const { data } = await listJobs({ query: { limit: PAGE_SIZE, cursor }, throwOnError: true });
  for (const job of data.jobs) remember(job);
  const ids = data.jobs.map(({ id }) => id);
  historyIds.value = cursor ? [...new Set([...historyIds.value, ...ids])] : ids;
  nextCursor.value = data.next_cursor;
}

/** Put a job that was just submitted at the front. */
export function addToHistory(id: string): void {
  historyIds.value = [id, ...historyIds.value.filter((other) => other !== id)];
}

function remember(job: Job): void {
  const known = viewOf(job.id);
  // Jobs of others that still run are shown as they were when the list was loaded, and are not followed.
  if (isOver(job)) track(job);
  else known.value ??= { job, preview: null, lost: "" };
}
