import { useEffect } from "preact/hooks";
import { t } from "../i18n";
import { cancel, prefer, viewOf } from "../state/jobs";
import { type Cell, cancelRun, type Run, shown, shownCell } from "../state/runs";
import { Grid } from "./grid";
import { JobProgress } from "./job-progress";
import { ResultActions } from "./result-actions";
import { Viewer } from "./viewer";

/** The run that is shown: one image with its input, or a grid of images and the chosen one of them. */
export function Result() {
  const run = shown.value;
  if (!run) return <Empty />;
  const images = imagesOf(run);
  const chosen = images[Math.min(shownCell.value, images.length - 1)];
  if (!chosen) return <Empty />;
  return (
    <div class="result">
      <Stage key={`${chosen.cell.jobId}-${chosen.index}`} run={run} image={chosen} />
      {images.length > 1 && <Grid run={run} images={images} />}
    </div>
  );
}

/** One image of a run: of a cell, by its index in the job. */
export interface RunImage {
  cell: Cell;
  index: number;
}

function imagesOf({ cells }: Run): RunImage[] {
  return cells.flatMap((cell) =>
    Array.from({ length: cell.request.num_images ?? 1 }, (_, index) => ({ cell, index })),
  );
}

function Empty() {
  return (
    <div class="stage is-empty">
      <svg viewBox="0 0 64 48" width="72" aria-hidden="true" class="empty-mark">
        <rect x="1" y="1" width="62" height="46" rx="6" />
        <path d="m8 38 14-17 9 10 7-8 18 15" />
        <circle cx="45" cy="14" r="4" />
      </svg>
      <p>{t().result.empty}</p>
    </div>
  );
}

function Stage({ run, image }: { run: Run; image: RunImage }) {
  const { cell, index } = image;
  if (!cell.jobId) return <Waiting cell={cell} />;
  return <JobStage run={run} jobId={cell.jobId} index={index} error={cell.error} />;
}

function Waiting({ cell }: { cell: Cell }) {
  return (
    <div class="stage is-empty">
      {cell.error ? <p class="error">{cell.error}</p> : <p role="status">{t().run.submitting}</p>}
    </div>
  );
}

function JobStage({ run, jobId, index, error }: { run: Run; jobId: string; index: number; error: string }) {
  const view = viewOf(jobId).value;
  useEffect(() => prefer(jobId), [jobId]);
  if (!view)
    return <div class="stage is-empty">{error ? <p class="error">{error}</p> : <p role="status">…</p>}</div>;
  const { job, preview, lost } = view;
  const image = job.images[index];
  const isRunning = job.status === "queued" || job.status === "running";
  const stop = () => void (run.cells.length > 1 ? cancelRun(run) : cancel(jobId).catch(() => undefined));
  return (
    <>
      {image && !lost ? (
        <Viewer job={job} image={image} imageId={run.imageId} />
      ) : (
        <div class="stage is-waiting">
          {preview && isRunning && <img class="preview" src={preview} alt={t().result.preview} />}
          {lost && <p class="error">{lost}</p>}
          {job.error && <p class="error">{job.error.message}</p>}
          {job.status === "cancelled" && <p>{t().run.cancelled}</p>}
        </div>
      )}
      {isRunning && !lost && <JobProgress job={job} isGroup={run.cells.length > 1} onCancel={stop} />}
      {image && !lost && <ResultActions job={job} image={image} />}
    </>
  );
}
