import { useEffect } from "preact/hooks";
import type { JobImage } from "../api/generated/types.gen";
import { t } from "../i18n";
import { isOver, type JobView, prefer, viewOf } from "../state/jobs";
import { type Cell, type Run, shown, shownCell } from "../state/runs";
import { Grid } from "./grid";
import { JobProgress } from "./job-progress";
import { ResultActions } from "./result-actions";
import { RunProgress } from "./run-progress";
import { Viewer } from "./viewer";

/** The run that is shown: one image with its input, or a grid of images and the chosen one of them. */
export function Result() {
  const run = shown.value;
  const images = run ? imagesOf(run) : [];
  const chosen = images[Math.min(shownCell.value, images.length - 1)];
  if (!run || !chosen) return <Empty />;
  const { cell, index } = chosen;
  const view = cell.jobId ? viewOf(cell.jobId).value : null;
  const image = view?.lost ? undefined : view?.job.images[index];
  return (
    <div class={`result ${images.length > 1 ? "has-grid" : ""}`}>
      <Stage run={run} cell={cell} view={view} image={image} />
      {run.cells.length > 1 ? (
        <RunProgress run={run} />
      ) : (
        view && <JobProgress key={view.job.id} view={view} />
      )}
      {images.length > 1 && <Grid run={run} images={images} />}
      {view && image && (
        <ResultActions job={view.job} image={image} request={cell.request} imageId={run.imageId} />
      )}
    </div>
  );
}

/** One image of a run: of a cell, by its index in the job. */
export interface RunImage {
  cell: Cell;
  index: number;
}

function imagesOf({ cells }: Run): RunImage[] {
  return cells.flatMap((cell) => Array.from({ length: countOf(cell) }, (_, index) => ({ cell, index })));
}

/** The number of images that a cell has, or will have. */
function countOf({ jobId, request }: Cell): number {
  const job = jobId ? viewOf(jobId).value?.job.request : null;
  return request?.num_images ?? (job && "num_images" in job ? job.num_images : 1) ?? 1;
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

interface StageProps {
  run: Run;
  cell: Cell;
  view: JobView | null;
  image: JobImage | undefined;
}

/** The image, or its preview, or why there is none. */
function Stage({ run, cell, view, image }: StageProps) {
  const { jobId, error } = cell;
  useEffect(() => (jobId ? prefer(jobId) : undefined), [jobId]);
  if (view && image) {
    return <Viewer key={`${jobId}-${image.index}`} job={view.job} image={image} imageId={run.imageId} />;
  }
  const message = error || view?.lost || view?.job.error?.message;
  const isRunning = view && !isOver(view.job);
  return (
    <div class="stage is-waiting">
      {isRunning && view.preview && <img class="preview" src={view.preview} alt={t().result.preview} />}
      {message && <p class="error">{message}</p>}
      {view?.job.status === "cancelled" && <p>{t().run.cancelled}</p>}
      {!view && !message && <p role="status">{t().run.submitting}</p>}
    </div>
  );
}
