import { computed, signal } from "@preact/signals";
import { ApiError, fetchFromService } from "../api/client";
import { followBatch } from "../api/events";
import { cancelBatch, getJob, listBatchJobs, submitImg2Img } from "../api/generated/sdk.gen";
import type { Batch, Img2ImgRequest, Job } from "../api/generated/types.gen";
import { t } from "../i18n";
import { newId } from "../lib/new-id";
import { MAX_CELLS } from "../lib/strips";
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
  /** Id of the batch of several jobs; null until the service has taken it, and for a single job. */
  batchId?: string | null;
}

const KEPT = 20;
let followed: AbortController | null = null;

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
  const error = cells.length > 1 ? await submitBatch(run.key) : await submitCell(run.key);
  if (!error) return;
  // Nothing was taken: the form shows why, and the result stays as it was.
  runs.value = runs.value.filter(({ key }) => key !== run.key);
  shownKey.value = before.at(-1)?.key ?? null;
  showError(error);
}

/** Submit the jobs of a run as one batch. Returns the error of the service, if there is one. */
async function submitBatch(key: string, isRepeated = false): Promise<ApiError | null> {
  const run = runOf(key);
  // The run was cancelled or removed.
  if (!run || run.cells.some(({ request, error }) => !request || error)) return null;
  try {
    const body = run.cells.map(({ request }) => JSON.stringify(request)).join("\n");
    const headers = { "Content-Type": "application/jsonl", "Idempotency-Key": key };
    const response = await fetchFromService("/batches", { method: "POST", body, headers });
    const batch: Batch = await response.json();
    changeRun(key, { batchId: batch.id });
    await loadBatch(key, batch.id);
    // It was cancelled before the service had answered.
    if (runOf(key)?.cells.some(({ error }) => error)) await cancelBatchOf(key, batch.id);
    return null;
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    if (!isRepeated && (await uploadForgotten(error))) return submitBatch(key, true);
    run.cells.forEach((_, index) => {
      change(key, index, { error: error.message });
    });
    return error;
  }
}

/** Load the jobs of a batch, and follow it. Throws ApiError. */
async function loadBatch(key: string, id: string): Promise<void> {
  const query = { limit: MAX_CELLS };
  const { data } = await listBatchJobs({ path: { batch_id: id }, query, throwOnError: true });
  for (const job of data.jobs) {
    track(job);
    if (job.batch) change(key, job.batch.index, { jobId: job.id });
  }
  if (!data.jobs.every(isOver)) void followRun(id);
}

/** Follow the batch of a run in place of the one before, whose jobs are then polled: a browser has few connections. */
async function followRun(id: string): Promise<void> {
  const controller = new AbortController();
  followed?.abort();
  followed = controller;
  try {
    await followBatch(id, ({ name, data }) => name === "job" && track(data), controller.signal);
  } catch (error) {
    if (!controller.signal.aborted && !(error instanceof ApiError)) throw error;
  }
}

async function cancelBatchOf(key: string, id: string): Promise<void> {
  await cancelBatch({ path: { batch_id: id }, throwOnError: true });
  await loadBatch(key, id);
}

/** Submit the only job of a run. Returns the error of the service, if there is one. */
async function submitCell(key: string, isRepeated = false): Promise<ApiError | null> {
  const index = 0;
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
    if (!isRepeated && (await uploadForgotten(error))) return submitCell(key, true);
    change(key, index, { error: error.message });
    return error;
  }
}

function runOf(key: string): Run | undefined {
  return runs.value.find((run) => run.key === key);
}

function cellOf(key: string, index: number): Cell | undefined {
  return runOf(key)?.cells[index];
}

function changeRun(key: string, changes: Partial<Run>): void {
  runs.value = runs.value.map((run) => (run.key === key ? { ...run, ...changes } : run));
}

function change(key: string, index: number, changes: Partial<Cell>): void {
  const cells = runOf(key)?.cells.map((cell, at) => (at === index ? { ...cell, ...changes } : cell));
  if (cells) changeRun(key, { cells });
}

export function showError(error: ApiError): void {
  // Of a batch, the form shows the errors of all jobs at the same fields.
  const fields = error.fields.map((one) => ({ ...one, field: one.field.replace(/^items\.\d+\./, "") }));
  fieldErrors.value = fields.filter(
    ({ field, message }, at) =>
      fields.findIndex((one) => one.field === field && one.message === message) === at,
  );
  formError.value = error.message;
}

/** Cancel every job of a run that has not ended, and those that are not submitted yet. */
export async function cancelRun(run: Run): Promise<void> {
  run.cells.forEach((cell, index) => {
    if (!cell.jobId) change(run.key, index, { error: t().run.cancelled });
  });
  const { batchId } = runOf(run.key) ?? run;
  if (batchId) {
    await cancelBatchOf(run.key, batchId).catch((error) => showError(error));
    return;
  }
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
  for (const { key, cells, batchId } of runs.value) {
    if (batchId) {
      await loadBatch(key, batchId).catch((problem) => lose(key, problem));
      continue;
    }
    // The page was closed before the answer came: the idempotency key finds the jobs, or makes them.
    if (cells.every(({ jobId, error }) => !jobId && !error)) {
      await (cells.length > 1 ? submitBatch(key) : submitCell(key));
      continue;
    }
    for (const [index, { jobId }] of cells.entries()) {
      if (!jobId) continue;
      try {
        track((await getJob({ path: { job_id: jobId }, throwOnError: true })).data);
      } catch (problem) {
        lose(key, problem, index);
      }
    }
  }
}

/** Show why jobs of a run cannot be loaded; not during an outage. */
function lose(key: string, problem: unknown, index?: number): void {
  if (!(problem instanceof ApiError)) throw problem;
  if (problem.isOutage || problem.status === 401) return;
  runOf(key)?.cells.forEach((_, at) => {
    if (index === undefined || index === at) change(key, at, { error: problem.message });
  });
}
