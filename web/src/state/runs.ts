import { computed, signal } from "@preact/signals";
import { ApiError } from "../api/client";
import { getJob, submitImg2Img } from "../api/generated/sdk.gen";
import type { Img2ImgRequest, Job } from "../api/generated/types.gen";
import { t } from "../i18n";
import { newId } from "../lib/new-id";
import { fieldErrors, formError } from "./form";
import { uploadForgotten } from "./images";
import { cancel, isOver, track, viewOf } from "./jobs";
import { saved } from "./saved";

/** One job of a run. */
export interface Cell {
  /** Null until the service has taken the job. */
  jobId: string | null;
  /** The value that distinguishes the job from the others of its run, such as `0.4`; empty for a single job. */
  label: string;
  error: string;
  /** Null if another client sent it. */
  request: Img2ImgRequest | null;
}

/** Jobs that were submitted together, and are shown and cancelled together. */
export interface Run {
  key: string;
  cells: Cell[];
  /** Names of the fields that differ, of the columns and of the rows; empty for a single job. */
  axes: string[];
  columns: number;
  /** Id of the input image in the browser's storage; null if it is unknown. */
  imageId: string | null;
}

// Requests that are sent at the same time. A browser has six connections to a server.
const CONCURRENCY = 3;
const KEPT = 20;

/** The runs of this tab, newest last. */
export const runs = saved<Run[]>("runs", []);
/** The run that is shown; null: the newest one. */
export const shownKey = signal<string | null>(null);
/** Position of the image of that run that is shown large. */
export const shownCell = signal(0);
export const shown = computed<Run | null>(
  () => runs.value.find(({ key }) => key === shownKey.value) ?? runs.value.at(-1) ?? null,
);

/** Submit requests as one run and show it. Errors of a single request go to the form. */
export async function submit(
  requests: { label: string; request: Img2ImgRequest }[],
  layout: { axes?: string[]; columns?: number; imageId?: string | null } = {},
): Promise<void> {
  const cells = requests.map((one) => ({ ...one, jobId: null, error: "" }));
  const { axes = [], columns = cells.length, imageId = null } = layout;
  const run = { key: newId(), cells, axes, columns, imageId };
  fieldErrors.value = [];
  formError.value = "";
  const before = runs.value;
  runs.value = [...before, run].slice(-KEPT);
  shownKey.value = run.key;
  shownCell.value = 0;
  const waiting = cells.map((_, index) => index);
  const errors: ApiError[] = [];
  await Promise.all(
    Array.from({ length: CONCURRENCY }, async () => {
      for (let index = waiting.shift(); index !== undefined; index = waiting.shift()) {
        const error = await submitCell(run.key, index);
        if (error) errors.push(error);
      }
    }),
  );
  if (errors.length < cells.length) return;
  // Nothing was taken: the form shows why, and the result stays as it was.
  runs.value = runs.value.filter(({ key }) => key !== run.key);
  shownKey.value = before.at(-1)?.key ?? null;
  const [error] = errors;
  if (error) showError(error);
}

/** Submit a cell of a run. Returns the error of the service, if there is one. */
async function submitCell(key: string, index: number, isRepeated = false): Promise<ApiError | null> {
  const cell = cellOf(key, index);
  // The run was cancelled or removed.
  if (!cell?.request || cell.error) return null;
  try {
    const headers = { "Idempotency-Key": `${key}-${index}` };
    const { data } = await submitImg2Img({ body: cell.request, headers, throwOnError: true });
    const job = data as Job;
    track(job);
    change(key, index, { jobId: job.id });
    // It was cancelled before the service had answered.
    if (cellOf(key, index)?.error) await cancel(job.id);
    return null;
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    if (!isRepeated && (await uploadForgotten(error))) return submitCell(key, index, true);
    change(key, index, { error: error.message });
    return error;
  }
}

function cellOf(key: string, index: number): Cell | undefined {
  return runs.value.find((run) => run.key === key)?.cells[index];
}

function change(key: string, index: number, changes: Partial<Cell>): void {
  runs.value = runs.value.map((run) =>
    run.key === key
      ? { ...run, cells: run.cells.map((cell, at) => (at === index ? { ...cell, ...changes } : cell)) }
      : run,
  );
}

export function showError(error: ApiError): void {
  fieldErrors.value = error.fields;
  formError.value = error.message;
}

/** Cancel every job of a run that has not ended, and those that are not submitted yet. */
export async function cancelRun(run: Run): Promise<void> {
  run.cells.forEach((cell, index) => {
    if (!cell.jobId) change(run.key, index, { error: t().run.cancelled });
  });
  const ids = run.cells.flatMap(({ jobId }) => (jobId ? [jobId] : []));
  await Promise.all(
    ids.filter((id) => !isFinished(id)).map((id) => cancel(id).catch((error) => showError(error))),
  );
}

function isFinished(id: string): boolean {
  const view = viewOf(id).value;
  return view !== null && isOver(view.job);
}

/** Show a job of the history as a run of its own. */
export function showJob(job: Job): void {
  track(job);
  const known = runs.value.find(({ cells }) => cells.some(({ jobId }) => jobId === job.id));
  if (!known) {
    const cell = { jobId: job.id, label: "", error: "", request: null };
    const run = { key: job.id, cells: [cell], axes: [], columns: 1, imageId: null };
    runs.value = [run, ...runs.value].slice(-KEPT);
  }
  shownKey.value = known?.key ?? job.id;
  shownCell.value = 0;
}

/** Load the jobs of the runs that this tab knew before it was reloaded. */
export async function restoreRuns(): Promise<void> {
  for (const { key, cells } of runs.value) {
    for (const [index, { jobId, error }] of cells.entries()) {
      if (!jobId) {
        // The page was closed before the answer came: the idempotency key finds the job, or makes it.
        if (!error) await submitCell(key, index);
        continue;
      }
      try {
        track((await getJob({ path: { job_id: jobId }, throwOnError: true })).data);
      } catch (problem) {
        if (!(problem instanceof ApiError)) throw problem;
        if (!problem.isOutage && problem.status !== 401) change(key, index, { error: problem.message });
      }
    }
  }
}
