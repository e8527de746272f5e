import { effect, type Signal, signal } from "@preact/signals";
import { ApiError } from "../api/client";
import { followJob, type JobStreamEvent, pause } from "../api/events";
import { cancelJob, listJobs } from "../api/generated/sdk.gen";
import type { Job } from "../api/generated/types.gen";
import { isReachable } from "./session";

/** A job that the page shows. */
export interface JobView {
  job: Job;
  /** The last preview, a data: URI. */
  preview: string | null;
  /** Why the job can no longer be followed: it was deleted, has expired, or belongs to another key. */
  lost: string;
}

// A browser has six connections to a server, for all its tabs.
const MAX_STREAMS = 2;
const POLL_MS = 1500;
const PAGE_SIZE = 100;

const views = new Map<string, Signal<JobView | null>>();
const streams = new Map<string, AbortController>();
/** Ids of jobs that have not ended, in the order in which they are followed. */
const unfinished = signal<string[]>([]);

export function isOver({ status }: Job): boolean {
  return status === "succeeded" || status === "failed" || status === "cancelled";
}

/** Return the job as the page knows it; null until it is loaded. */
export function viewOf(id: string): Signal<JobView | null> {
  let view = views.get(id);
  if (!view) {
    view = signal<JobView | null>(null);
    views.set(id, view);
  }
  return view;
}

/** Take over a job as the service returned it, and follow it until it has ended. */
export function track(job: Job): void {
  const view = viewOf(job.id);
  const known = view.peek();
  // A page of the list may be older than the last event.
  if (known && isOver(known.job) && !isOver(job)) return;
  view.value = { preview: known?.preview ?? null, lost: "", job };
  const others = unfinished.peek().filter((id) => id !== job.id);
  if (isOver(job)) {
    if (others.length < unfinished.peek().length) unfinished.value = others;
  } else if (others.length === unfinished.peek().length) {
    unfinished.value = [...others, job.id];
  }
}

/** Follow a job before others: the one that is looked at. */
export function prefer(id: string): void {
  const ids = unfinished.peek();
  if (ids.includes(id) && ids[0] !== id) unfinished.value = [id, ...ids.filter((other) => other !== id)];
}

/** Cancel a job. Throws ApiError. */
export async function cancel(id: string): Promise<void> {
  track((await cancelJob({ path: { job_id: id }, throwOnError: true })).data);
}

effect(() => {
  const followed = unfinished.value.slice(0, MAX_STREAMS);
  for (const [id, controller] of streams) {
    if (!followed.includes(id)) {
      controller.abort();
      streams.delete(id);
    }
  }
  for (const id of followed) if (!streams.has(id)) void follow(id);
});

async function follow(id: string): Promise<void> {
  const controller = new AbortController();
  streams.set(id, controller);
  try {
    await followJob(id, (event) => apply(id, event), controller.signal);
  } catch (error) {
    if (!controller.signal.aborted) lose(id, error instanceof ApiError ? error.message : String(error));
  } finally {
    if (streams.get(id) === controller) streams.delete(id);
  }
}

function lose(id: string, message: string): void {
  const view = viewOf(id);
  if (view.value) view.value = { ...view.value, lost: message };
  unfinished.value = unfinished.value.filter((other) => other !== id);
}

function apply(id: string, { name, data }: JobStreamEvent): void {
  const view = viewOf(id);
  const known = view.peek();
  if (name === "succeeded" || name === "failed" || name === "cancelled") track(data);
  else if (name === "gone") lose(id, data.message);
  else if (name === "error") lose(id, data.detail);
  else if (known && name === "preview") view.value = { ...known, preview: data.image };
  else if (known)
    view.value = { ...known, job: { ...known.job, queue_position: null, eta_s: null, ...data } };
}

/** Poll the jobs without a stream, until aborted. */
export async function pollJobs(signal: AbortSignal): Promise<void> {
  for (;;) {
    await pause(POLL_MS, signal);
    const polled = new Set(unfinished.value.filter((id) => !streams.has(id)));
    if (polled.size === 0 || !isReachable.value) continue;
    try {
      const { data } = await listJobs({ query: { limit: PAGE_SIZE }, throwOnError: true });
      for (const job of data.jobs) if (polled.has(job.id)) track(job);
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
    }
  }
}
